"""Pictures of a scan and its lung mask: a montage of slices, its WebP file and the histogram of Hounsfield units.

Pillow does the scaling, text and WebP; it is imported inside the functions that need it.
"""

import io
import math
from itertools import pairwise, product

import numpy as np

# Hounsfield units shown as black and as white: the usual lung window, width 1500 at level -600.
LUNG_WINDOW = (-1350, 150)
# Orange and sky blue of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/): distinct for colour-blind readers.
RIGHT_RGB, LEFT_RGB = (230, 159, 0), (86, 180, 233)
MARGIN_MM = (12.0, 22.0, 30.0)  # [z, y, x]: what is shown around the lungs, so that the chest wall is seen
PROBES = 24  # slices read to find the lungs where no bounding box is given
GAP = 4  # pixels between two slices
MINUS = "\N{MINUS SIGN}"
LARGEST_ZOOM = 1.6  # of the coronal and sagittal views, relative to the axial ones


def montage(volume, mask, spacing_mm, *, bounding_box=None, width=900, window=LUNG_WINDOW, rows=3, columns=3):
    """Lay out axial slices, a coronal and a sagittal one on one picture, with the lungs outlined.

    Axial slices stand on the left, from the head down; on their right the coronal view above the sagittal one, with
    the head up. As radiologists look at it: the patient's right lung is on the left of the picture. Marks on the edge
    of the coronal view show where the axial slices are. Only the slices that are shown are read, and every n-th slice
    of the mask where `bounding_box` is missing, so memory-mapped arrays stay on the disk.

    :param volume: HU, [z, y, x], z to the head, y to the back, x to the patient's left; any array that can be sliced
    :param mask: 0 outside, 1 right lung, 2 left lung, same shape; or None for no outlines
    :param spacing_mm: [z, y, x]
    :param bounding_box: of the lungs, [[z0, z1], [y0, y1], [x0, x1]], half-open voxels as in the mask's sidecar
    :param width: of the picture in pixels; the height follows from the chest's proportions
    :param window: HU shown as black and as white
    :return: uint8 [height, width, 3], RGB
    :raises ValueError: the volume is not three-dimensional, or the mask has another shape
    """
    if len(volume.shape) != 3 or min(volume.shape) == 0:
        raise ValueError(f"montage needs a volume [z, y, x], got shape {tuple(volume.shape)}")
    if mask is not None and tuple(mask.shape) != tuple(volume.shape):
        raise ValueError(f"the mask's shape {tuple(mask.shape)} is not the volume's {tuple(volume.shape)}")
    lungs = bounding_box or _find_lungs(mask) or [[0, n] for n in volume.shape]
    (z0, z1), (y0, y1), (x0, x1) = lungs
    shown = [
        slice(max(0, first - math.ceil(mm / step)), min(n, end + math.ceil(mm / step)))
        for (first, end), n, step, mm in zip(lungs, volume.shape, spacing_mm, MARGIN_MM, strict=True)
    ]
    # Middles of equal parts of the lungs, from the head down; a short scan has fewer slices than places.
    places = rows * columns
    levels = sorted({int(z0 + (z1 - z0) * (k + 0.5) / places) for k in range(places)}, reverse=True)
    coronal_y = int(y0 + 0.5 * (y1 - y0))
    sagittal_x = int(x0 + 0.25 * (x1 - x0))  # through the right lung, not through the spine

    size_mm = [(part.stop - part.start) * step for part, step in zip(shown, spacing_mm, strict=True)]
    axial_scale, side_scale = _scales(size_mm, width, rows, columns)
    cell = _pixels(size_mm[1], size_mm[2], axial_scale)
    coronal, sagittal = (_pixels(size_mm[0], mm, side_scale) for mm in (size_mm[2], size_mm[1]))
    height = max(rows * (cell[0] + GAP) - GAP, coronal[0] + GAP + sagittal[0])
    picture = np.zeros((height, width, 3), dtype=np.uint8)

    def show(index, size, top, left, letters, caption):
        labels = None if mask is None else np.asarray(mask[index])
        view = np.asarray(volume[index])
        if not isinstance(index[0], int):  # coronal and sagittal: the head is the last row of the array
            view, labels = view[::-1], None if labels is None else labels[::-1]
        tile = outlined(view, labels, size, window)
        _write(tile, letters, caption)
        part = picture[top : top + size[0], left : left + size[1]]
        part[...] = tile[: part.shape[0], : part.shape[1]]

    for place, z in enumerate(levels):
        row, column = divmod(place, columns)
        top, left = row * (cell[0] + GAP), column * (cell[1] + GAP)
        show((z, shown[1], shown[2]), cell, top, left, "RL", f"z {z}")
    left = columns * (cell[1] + GAP)
    top = (height - coronal[0] - GAP - sagittal[0]) // 2
    show((shown[0], coronal_y, shown[2]), coronal, top, left, "RL", f"y {coronal_y}")
    for z in levels:
        mark = top + int((shown[0].stop - z - 0.5) * spacing_mm[0] * side_scale)
        picture[max(0, mark - 1) : mark + 2, left : left + 6] = 0
        picture[mark, left : left + 6] = 255
    top += coronal[0] + GAP
    left += max(0, (width - left - sagittal[1]) // 2)
    show((shown[0], shown[1], sagittal_x), sagittal, top, left, "AP", f"x {sagittal_x}")
    return picture


def _find_lungs(mask):
    """The lungs' bounding box from every n-th slice, a step larger along z; None without mask or lungs."""
    if mask is None:
        return None
    step = max(1, mask.shape[0] // PROBES)
    heights, seen = [], None
    for z in range(0, mask.shape[0], step):
        lungs = np.asarray(mask[z]) > 0
        if lungs.any():
            heights.append(z)
            seen = lungs if seen is None else seen | lungs
    if seen is None:
        return None
    inside = [np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0)]
    z_range = [max(0, heights[0] - step + 1), min(mask.shape[0], heights[-1] + step)]
    return [z_range, *([int(found[0]), int(found[-1]) + 1] for found in inside)]


def _scales(size_mm, width, rows, columns):
    """Pixels per mm of the axial and of the other views: equally high columns, unless the scan is too short."""
    z, y, x = size_mm
    room = width - columns * GAP
    # rows of y mm at the axial scale = two heights of z mm at the other scale
    zoom = min(LARGEST_ZOOM, rows * y / (2 * z))
    axial = room / (columns * x + zoom * max(x, y))
    return axial, axial * zoom


def _pixels(height_mm, width_mm, scale):
    return max(1, int(height_mm * scale)), max(1, int(width_mm * scale))


def outlined(view, labels, size, window=LUNG_WINDOW):
    """Scale one slice to `size` (rows, columns), window it and draw the border of each label inside that label.

    `view` is HU, `labels` 0, 1 (right lung) or 2 (left lung), or None; both two-dimensional. Returns uint8 RGB.
    """
    from PIL import Image

    black, white = window
    grey = (np.clip(view, black, white).astype(np.float32) - black) * (255 / (white - black)) + 0.5
    shape = size[1], size[0]
    picture = np.asarray(Image.fromarray(grey.astype(np.uint8)).resize(shape, Image.Resampling.BICUBIC))
    picture = np.repeat(picture[..., None], 3, axis=2)
    if labels is None:
        return picture
    labels = np.asarray(
        Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8)).resize(shape, Image.Resampling.NEAREST)
    )
    around = np.pad(labels, 1, mode="edge")
    height, length = labels.shape
    border = np.zeros(labels.shape, dtype=bool)
    for row, column in product(range(3), repeat=2):  # eight neighbours: a line that WebP's halved colours still show
        border |= around[row : row + height, column : column + length] != labels
    for label, colour in ((1, RIGHT_RGB), (2, LEFT_RGB)):
        picture[border & (labels == label)] = colour
    return picture


def _write(tile, letters, caption):
    """Write the orientation letters at half height and the slice's index below; small tiles stay without."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = tile.shape[:2]
    if min(height, width) < 60:
        return
    image = Image.fromarray(tile)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    style = {"font": font, "fill": (235, 235, 235), "stroke_width": 1, "stroke_fill": (0, 0, 0)}
    draw.text((8, height // 2), letters[0], anchor="lm", **style)
    draw.text((width - 8, height // 2), letters[1], anchor="rm", **style)
    draw.text((8, height - 4), caption, anchor="ls", **style)
    tile[...] = np.asarray(image)


def webp(picture, quality=80):
    """Encode a uint8 RGB array as a lossy WebP file; returns its bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality, method=2, use_sharp_yuv=True)
    return file.getvalue()


def histogram_svg(counts, start_hu, width_hu, *, last_hu=1000):
    """Draw a histogram of HU as an SVG element: a filled step line, as high as the highest bin above -900 HU.

    Air outside the body fills more voxels than all else together, so its peak is cut off at the upper edge. HU from
    `last_hu` on (cortical bone, metal) are not drawn. Classes `area`, `axis` and `label` are left to the page's style
    sheet. Returns '' where nothing was counted.
    """
    edges = [start_hu + k * width_hu for k in range(len(counts) + 1)]
    bars = [(a, b, count) for (a, b), count in zip(pairwise(edges), counts, strict=True) if a < last_hu]
    most = max((count for a, _, count in bars if a >= -900), default=0) or max((bar[2] for bar in bars), default=0)
    if not most:
        return ""
    width, base, top = 340, 100, 8
    first, last = bars[0][0], bars[-1][1]

    def x(hu):
        return round((hu - first) / (last - first) * width, 1)

    steps = "".join(f"V{max(0, base - count / most * (base - top)):.1f}H{x(b):g}" for _, b, count in bars)
    marks = [hu for hu in range(-1000, 1001, 250) if first <= hu <= last]
    lines = "".join(f'<path class="axis" d="M{x(hu):g} 0V{base + 4}"/>' for hu in marks)
    words = "".join(
        f'<text class="label" x="{x(hu):g}" y="{base + 17}" text-anchor="{_anchor(x(hu), width)}">'
        f"{str(hu).replace('-', MINUS)}</text>"
        for hu in marks
        if hu % 500 == 0
    )
    cut = [x(b) for _, b, count in bars if count > most]
    if cut:
        words += f'<text class="label" x="{cut[-1] + 5:g}" y="{top}">air, cut off</text>'
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {base + 20}" role="img" aria-label="Histogram of HU">'
        f'{lines}<path class="area" d="M0 {base}{steps}V{base}Z"/>{words}</svg>'
    )


def _anchor(x, width):
    return "start" if x < 0.08 * width else "end" if x > 0.92 * width else "middle"
