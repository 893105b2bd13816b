import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, signal

from lungmill.pictures import LEFT_RGB, RIGHT_RGB, histogram_svg, montage, outlined, webp


class Recorder:
    """An array that remembers which parts were asked for, as a stand-in for a file on disk."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, index):
        part = self.array[index]
        self.read.append(part.size)
        return part


def chest(shape=(60, 80, 110), spacing=(3.0, 3.0, 3.0)):
    """Two ellipsoids of lung in soft tissue; the right one at smaller x, and smaller, so that sides can be told."""
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    volume = np.full(shape, 40, dtype=np.int16)
    mask = np.zeros(shape, dtype=np.uint8)
    for label, centre, half in ((1, 0.3, 0.13), (2, 0.7, 0.17)):
        along = ((z / shape[0] - 0.5) / 0.4) ** 2 + ((y / shape[1] - 0.5) / 0.3) ** 2
        inside = along + ((x / shape[2] - centre) / half) ** 2
        mask[inside <= 1] = label
        volume[inside <= 1] = -850
    return volume, mask, spacing


def box_of(mask):
    return [[int(i.min()), int(i.max()) + 1] for i in np.nonzero(mask)]


def tiles(picture):
    """The slices on a montage, found by the black gaps between them: [(slice, slice), ...]."""
    labels, _ = ndimage.label(ndimage.binary_closing(picture.max(axis=2) > 20, iterations=1))
    found = ndimage.find_objects(labels)
    return [part for part in found if min(part[0].stop - part[0].start, part[1].stop - part[1].start) > 30]


def coloured(picture, colour):
    return (picture == np.array(colour, dtype=np.uint8)).all(axis=2)


def test_outline_follows_the_border_of_the_lungs_in_the_picture():
    volume, mask, spacing = chest()
    box = box_of(mask)
    plain = montage(volume, None, spacing, bounding_box=box)
    drawn = montage(volume, mask, spacing, bounding_box=box)
    assert plain.shape == drawn.shape and plain.dtype == np.uint8
    outline = (plain != drawn).any(axis=2)
    # Independent of the mask: lungs are the dark regions of the picture without outlines.
    near = 0
    for part in tiles(plain):
        grey = plain[part][..., 0].astype(float)
        lung = ndimage.binary_opening(grey < 150, iterations=3)
        border = lung ^ ndimage.binary_erosion(lung)
        line = outline[part]
        if not lung.any():
            continue
        near += 1
        away = ndimage.distance_transform_edt(~border)
        assert np.percentile(away[line], 99) <= 3  # a voxel is 1.8 to 2.9 pixels
        assert (ndimage.distance_transform_edt(~line)[border] <= 3).mean() > 0.95
    assert near == 11


def test_outline_is_the_border_inside_each_label_at_full_size():
    rng = np.random.default_rng(0)
    labels = (ndimage.gaussian_filter(rng.normal(size=(90, 120)), 6) > 0).astype(np.uint8)
    labels[:, 60:] *= 2
    picture = outlined(np.full(labels.shape, 40, np.int16), labels, labels.shape)
    square = np.ones((3, 3))
    for label, colour in ((1, RIGHT_RGB), (2, LEFT_RGB)):
        region = labels == label
        expected = region & ~ndimage.binary_erosion(region, square, border_value=1)
        np.testing.assert_array_equal(coloured(picture, colour), expected)


def test_right_lung_is_on_the_left_and_both_colours_are_where_they_belong():
    volume, mask, spacing = chest()
    picture = montage(volume, mask, spacing)
    parts = tiles(picture)
    assert len(parts) == 11
    sided = 0
    for part in parts:
        right, left = (np.nonzero(coloured(picture[part], colour))[1] for colour in (RIGHT_RGB, LEFT_RGB))
        if len(right) and len(left):
            sided += 1
            assert right.max() < left.min()
    assert sided == 10  # nine axial slices and the coronal one; the sagittal one cuts the right lung only


def test_axes_head_up_and_back_down():
    shape = (60, 60, 60)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    for axis, bright in (("z", z >= 30), ("y", y >= 30), ("x", x >= 30)):
        volume = np.where(bright, 100, -900).astype(np.int16)
        picture = montage(volume, None, (4, 4, 4), width=1200)[..., 0].astype(float)
        parts = tiles(montage(np.zeros(shape, np.int16), None, (4, 4, 4), width=1200))
        side = sorted((p for p in parts if p[1].start > 700), key=lambda p: p[0].start)
        axial = [p for p in parts if p not in side]
        assert len(side) == 2 and len(axial) == 9

        def difference(part, direction, picture=picture):
            half = picture[part].shape[direction] // 2
            first, second = np.split(picture[part], [half], axis=direction)
            return second.mean() - first.mean()

        coronal, sagittal = side
        if axis == "z":
            assert difference(coronal, 0) < -100 and difference(sagittal, 0) < -100  # the head above
            order = [picture[p].mean() for p in sorted(axial, key=lambda p: (p[0].start // 20, p[1].start))]
            assert order[0] > order[-1] + 100  # axial slices from the head down
        elif axis == "y":
            assert all(difference(p, 0) > 100 for p in axial) and difference(sagittal, 1) > 100  # the back below
        else:
            assert all(difference(p, 1) > 100 for p in [*axial, coronal])  # the patient's left on the right


def test_marks_on_the_coronal_view_stand_at_the_axial_slices():
    shape, spacing = (50, 60, 60), (5.0, 4.0, 4.0)
    volume = np.broadcast_to(np.linspace(-1000, -200, 50, dtype=np.int16)[:, None, None], shape)
    picture = montage(volume, None, spacing)
    parts = tiles(picture)
    coronal = min((p for p in parts if p[1].start > 450), key=lambda p: p[0].start)
    axial = sorted((np.median(picture[p]) for p in parts if p[1].start < 450), reverse=True)
    edge = picture[coronal][:, 3].min(axis=1)
    marks = np.flatnonzero(edge == 255)
    assert len(marks) == len(axial) == 9
    beside = picture[coronal][marks, 40, 0].astype(float)  # the slice's grey tells its height
    step = 800 / 49 * 255 / 1500
    np.testing.assert_allclose(beside, axial, atol=step)


def test_letters_name_the_sides():
    volume = np.full((40, 40, 40), -1000, np.int16)
    picture = montage(volume, None, (5.0, 5.0, 5.0))
    glyphs = {}
    for letter in "RLAP":
        canvas = Image.new("L", (20, 20))
        ImageDraw.Draw(canvas).text((4, 2), letter, font=ImageFont.load_default(size=12), fill=255)
        glyphs[letter] = np.asarray(canvas) / 255

    def read(part, columns):
        tile = picture[part][..., 0].astype(float)
        middle, paper = tile.shape[0] // 2, np.median(tile)
        ink = np.clip((tile[middle - 10 : middle + 10, columns] - paper) / (235 - paper), 0, 1)
        # Squared difference of ink and glyph at the best shift, without their constant part |ink|^2.
        misfit = {k: (g**2).sum() - 2 * signal.correlate2d(ink, g).max() for k, g in glyphs.items()}
        return min(misfit, key=misfit.get)

    found = [read(part, slice(7, 20)) + read(part, slice(-20, -7)) for part in tiles(picture)]
    assert sorted(found) == ["AP"] + ["RL"] * 10


def test_anisotropic_spacing_keeps_a_sphere_round():
    spacing = (5.0, 1.0, 1.0)
    shape = (40, 200, 200)
    z, y, x = (np.arange(n) * mm - (n - 1) * mm / 2 for n, mm in zip(shape, spacing, strict=True))
    radius = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    mask = (radius < 70**2).astype(np.uint8)
    volume = np.where(mask, -850, 40).astype(np.int16)
    picture = montage(volume, mask, spacing)
    tops = [p for p in tiles(picture) if p[0].start < 20]
    coronal = max(tops, key=lambda p: p[1].start)
    rows, columns = np.nonzero(coloured(picture[coronal], RIGHT_RGB))
    height, width = np.ptp(rows), np.ptp(columns)
    assert height == pytest.approx(width, rel=0.06)


@pytest.mark.parametrize("with_box", [True, False])
def test_only_the_slices_shown_are_read(with_box):
    shape = (300, 90, 110)
    volume, mask, _ = chest(shape)
    volume, recorded = Recorder(volume), Recorder(mask)
    montage(volume, recorded, (1.0, 3.0, 3.0), bounding_box=box_of(mask) if with_box else None)
    assert len(volume.read) == 11
    assert sum(volume.read) <= 9 * 90 * 110 + 300 * (90 + 110)
    assert sum(recorded.read) <= (9 if with_box else 9 + 26) * 90 * 110 + 300 * (90 + 110)


def test_box_found_from_few_slices_shows_the_same_slices_nearly():
    volume, mask, spacing = chest((300, 90, 110), (1.0, 3.0, 3.0))
    given = montage(volume, mask, spacing, bounding_box=box_of(mask))
    found = montage(volume, mask, spacing)
    assert found.shape == pytest.approx(given.shape, abs=30)
    for colour in (RIGHT_RGB, LEFT_RGB):
        assert coloured(found, colour).sum() == pytest.approx(coloured(given, colour).sum(), rel=0.15)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 20, 200), (400, 30, 30), (5, 1, 7)])
def test_odd_shapes_and_no_lungs(shape):
    volume = np.full(shape, -1000, np.int16)
    picture = montage(volume, np.zeros(shape, np.uint8), (2.0, 1.0, 1.0), width=600)
    assert picture.shape[1:] == (600, 3) and picture.any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mask's shape"):
        montage(np.zeros((4, 4, 4), np.int16), np.zeros((4, 4, 5), np.uint8), (1, 1, 1))
    with pytest.raises(ValueError, match=r"\[z, y, x\]"):
        montage(np.zeros((4, 4), np.int16), None, (1, 1, 1))


def test_webp_is_what_it_says_and_close_to_the_picture():
    volume, mask, spacing = chest()
    picture = montage(volume, mask, spacing)
    data = webp(picture)
    assert data == webp(picture)
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - picture)
    assert difference.mean() < 4
    assert len(data) < 60_000


def test_histogram_heights_are_the_counts_and_the_air_is_cut():
    counts = np.zeros(128, dtype=int)
    counts[0], counts[6], counts[32] = 1_000_000, 5_000, 10_000  # air, lung, water
    drawing = histogram_svg(counts.tolist(), -1024, 32)
    steps = re.search(r'class="area" d="([^"]+)"', drawing)[1]
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", steps)]
    base = float(re.match(r"M0 ([\d.]+)", steps)[1])
    assert (base - heights[6]) * 2 == pytest.approx(base - heights[32])
    assert heights[0] == 0 and heights[1] == base
    assert "cut off" in drawing
    assert histogram_svg([0] * 128, -1024, 32) == ""
    assert "cut off" not in histogram_svg([0] * 6 + [5] * 50, -1024, 32)
