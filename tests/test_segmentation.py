"""Lung masks against a phantom of known shape and against two real scans with outlines by people."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lungmill.errors import LungmillError
from lungmill.segmentation import segment_lungs

TISSUE, LUNG, GAS, BONE = 40, -860, -1000, 400


def grid_mm(extent, spacing):
    """Open grids of the voxel centres in mm, and the shape."""
    shape = tuple(int(mm / step) for mm, step in zip(extent, spacing, strict=True))
    return np.ogrid[tuple(slice(n) for n in shape)], shape


def ellipsoid(z, y, x, centre, radii):
    return sum(((p - c) / r) ** 2 for p, c, r in zip((z, y, x), centre, radii, strict=True)) <= 1


def tube(z, y, x, start, end, radius):
    """Everything within `radius` of the line from start to end: no caps beyond the ends."""
    start, axis = np.array(start, float), np.subtract(end, start)
    along = sum((p - s) * a for p, s, a in zip((z, y, x), start, axis, strict=True)) / (axis @ axis)
    square = sum((p - s - along * a) ** 2 for p, s, a in zip((z, y, x), start, axis, strict=True))
    return (square <= radius**2) & (along >= 0) & (along <= 1)


def thorax(spacing, *, junction="line", airway=True):
    """A chest of ellipsoids and tubes on a table, with what is true about it.

    In mm: two ellipsoid lungs that may meet at the anterior junction, a trachea that forks into bronchi which open into
    the lungs, a vessel, a nodule on the right chest wall, bowel gas far below and just below the left lung, a table
    with foam. Edges are blurred as a scanner blurs them, with noise of 25 HU.
    """
    from scipy import ndimage

    (k, j, i), shape = grid_mm((300, 270, 340), spacing)
    z, y, x = k * spacing[0], j * spacing[1], i * spacing[2]
    hu = np.full(shape, GAS, np.float32)
    body = ((y - 130) / 108) ** 2 + ((x - 170) / 155) ** 2 <= 1
    hu[np.broadcast_to(body, shape)] = TISSUE
    hu[np.broadcast_to((y > 246) & (y < 249) & (abs(x - 170) < 150), shape)] = 0
    hu[np.broadcast_to((y >= 249) & (y < 266) & (abs(x - 170) < 140), shape)] = -930
    hu[np.broadcast_to(((y - 215) / 12) ** 2 + ((x - 170) / 12) ** 2 <= 1, shape)] = BONE

    right = ellipsoid(z, y, x, (150, 130, 100), (120, 78, 62))
    left = ellipsoid(z, y, x, (150, 130, 240), (120, 78, 62))
    if junction == "line":  # wide contact, with the two pleurae between the lungs
        middle = ellipsoid(z, y, x, (165, 72, 170), (45, 13, 30))
        right, left = right | (middle & (x < 169.2)), left | (middle & (x > 170.8))
    elif junction == "touching":  # narrow contact, with nothing between the lungs
        right |= ellipsoid(z, y, x, (165, 72, 148), (45, 13, 26)) & (x < 170)
        left |= ellipsoid(z, y, x, (165, 72, 192), (45, 13, 26)) & (x >= 170)
    hu[right | left] = LUNG

    lumen = np.zeros(shape, bool)
    main = lumen.copy()
    if airway:
        main = tube(z, y, x, (200, 125, 170), (300, 125, 170), 8)
        wall = tube(z, y, x, (198, 125, 170), (300, 125, 170), 9.5)
        lumen |= main
        for side in (-1, 1):
            fork, hilum = (203, 125, 170), (170, 125, 170 + side * 38)
            lumen |= tube(z, y, x, fork, hilum, 5.5)
            wall |= tube(z, y, x, fork, hilum, 7)
        hu[wall] = TISSUE
        hu[lumen] = GAS
    vessel = tube(z, y, x, (150, 130, 45), (150, 120, 160), 2.5)
    hu[vessel] = TISSUE
    nodule = ellipsoid(z, y, x, (160, 130, 42), (6, 6, 6))
    hu[nodule] = 20
    bubbles = ellipsoid(z, y, x, (12, 80, 230), (11, 30, 40)) | ellipsoid(z, y, x, (40, 70, 250), (12, 12, 14))
    bubbles &= ~(left | right)
    hu[bubbles] = GAS

    hu = ndimage.gaussian_filter(hu, [0.6 / step for step in spacing], output=np.float32)
    hu += np.random.default_rng(3).normal(0, 25, shape).astype(np.float32)
    hu[np.broadcast_to((y - 135) ** 2 + (x - 170) ** 2 > 178**2, shape)] = -1024
    truth = np.where(right, np.uint8(1), np.where(left, np.uint8(2), np.uint8(0)))
    return SimpleNamespace(
        volume=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        spacing=spacing,
        truth=truth,
        trachea=main,
        lumen=lumen,
        bubbles=bubbles,
        nodule=nodule & right,
        vessel=vessel & (right | left),
    )


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def inner(mask, spacing, margin_mm):
    from scipy import ndimage

    return ndimage.distance_transform_edt(mask, sampling=spacing) > margin_mm


@pytest.fixture(scope="module")
def chest():
    return thorax((1.5, 1.5, 1.5))


@pytest.fixture(scope="module")
def chest_result(chest):
    chest.volume.flags.writeable = False
    return segment_lungs(chest.volume, chest.spacing)


def test_each_lung_is_found_and_labelled(chest, chest_result):
    mask, _ = chest_result
    assert mask.dtype == np.uint8 and mask.shape == chest.volume.shape
    for label in (1, 2):
        assert dice(mask == label, chest.truth == label) > 0.99


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.5, 1.5, 1.5)])
@pytest.mark.parametrize("junction", ["line", "touching"])
def test_lungs_that_meet_are_separated(junction, spacing):
    chest = thorax(spacing, junction=junction)
    mask, statistics = segment_lungs(chest.volume, chest.spacing)
    assert statistics["joined"] or junction == "line"  # a line may part them before any cut
    swapped = ((mask == 1) & (chest.truth == 2)) | ((mask == 2) & (chest.truth == 1))
    assert np.count_nonzero(swapped) < 0.002 * np.count_nonzero(chest.truth)


def test_trachea_bronchi_bowel_gas_and_table_are_not_lung(chest, chest_result):
    mask, _ = chest_result
    outside = chest.truth == 0
    assert not mask[inner(chest.trachea, chest.spacing, 2.0)].any()
    assert not mask[chest.lumen & outside].any()
    assert not mask[chest.bubbles].any()
    assert not mask[:, int(240 / chest.spacing[1]) :].any()


def test_nodule_on_the_pleura_and_vessels_are_lung(chest, chest_result):
    mask, _ = chest_result
    assert (mask[chest.nodule] == 1).all()
    assert mask[chest.vessel].mean() > 0.99
    without_closing, _ = segment_lungs(chest.volume, chest.spacing, closing_mm=0)
    assert (without_closing[chest.nodule] == 1).mean() < 0.6


def test_closing_adds_little(chest, chest_result):
    from scipy import ndimage

    mask, _ = chest_result
    filled = ndimage.binary_fill_holes((chest.volume < -400) & (mask > 0))
    assert np.count_nonzero(mask) < 1.03 * np.count_nonzero(filled)


def test_statistics_say_what_is_in_the_mask(chest, chest_result):
    mask, statistics = chest_result
    assert json.loads(json.dumps(statistics)) == statistics
    assert statistics["status"] == "ok" and statistics["flags"] == []
    voxel_ml = np.prod(chest.spacing) / 1000
    for label, name in ((1, "right"), (2, "left")):
        assert statistics["volume_ml"][name] == pytest.approx((mask == label).sum() * voxel_ml, abs=0.051)
    for (low, high), indices in zip(statistics["bounding_box"], np.nonzero(mask), strict=True):
        assert (low, high) == (indices.min(), indices.max() + 1)


def test_same_input_gives_the_same_mask(chest, chest_result):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: segment_lungs(chest.volume, chest.spacing), range(2)))
    for mask, statistics in results:
        np.testing.assert_array_equal(mask, chest_result[0])
        assert statistics == chest_result[1]


@pytest.mark.parametrize("spacing", [(5.0, 1.5, 1.5), (2.5, 2.0, 2.0)])
def test_other_spacings(spacing):
    chest = thorax(spacing)
    mask, _ = segment_lungs(chest.volume, spacing)
    for label in (1, 2):
        assert dice(mask == label, chest.truth == label) > 0.985
    assert not mask[inner(chest.trachea, spacing, 2.0)].any()
    assert mask[chest.nodule].mean() > 0.9


def test_lungs_apart_need_no_cut():
    chest = thorax((2.0, 2.0, 2.0), junction=None, airway=False)
    mask, statistics = segment_lungs(chest.volume, chest.spacing)
    assert not statistics["joined"]
    assert [flag["code"] for flag in statistics["flags"]] == ["no_trachea"]
    assert not ((mask == 1) & (chest.truth == 2)).any() and not ((mask == 2) & (chest.truth == 1)).any()


@pytest.mark.parametrize(("lost", "kept"), [(1, 2), (2, 1)])
def test_one_lung_keeps_its_side(lost, kept):
    chest = thorax((2.0, 2.0, 2.0), junction=None, airway=False)
    chest.volume[chest.truth == lost] = TISSUE
    mask, statistics = segment_lungs(chest.volume, chest.spacing)
    assert not (mask == lost).any()
    assert dice(mask == kept, chest.truth == kept) > 0.98
    assert "asymmetry" in [flag["code"] for flag in statistics["flags"]]


def test_side_of_a_single_lung_that_has_moved_over():
    """After the loss of a lung the mediastinum moves over, and the other lung crosses the middle of the body."""
    chest = thorax((2.0, 2.0, 2.0), junction=None, airway=False)
    chest.volume[chest.truth == 1] = TISSUE
    moved = np.roll(chest.truth == 2, -26, axis=2)
    spine = chest.volume > 300
    chest.volume[chest.truth == 2] = TISSUE
    chest.volume[moved & ~spine] = LUNG
    x = np.flatnonzero(moved.any(axis=(0, 1)))
    assert x[0] * 2 < 150  # the spine stands at 170 mm
    mask, _ = segment_lungs(chest.volume, chest.spacing)
    assert not (mask == 1).any() and dice(mask == 2, moved) > 0.98


def test_arms_on_one_side_do_not_move_the_midline():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    chest.volume[chest.truth == 2] = TISSUE
    wide = np.pad(chest.volume, ((0, 0), (0, 0), (0, 110)), constant_values=GAS)
    wide[:, 40:100, 155:250] = TISSUE  # an arm that lies against the chest
    mask, _ = segment_lungs(wide, chest.spacing)
    assert not (mask == 2).any() and dice((mask == 1)[:, :, :170], chest.truth == 1) > 0.98


@pytest.mark.parametrize(
    ("spacing", "noise_hu"),
    [((1.5, 1.5, 1.5), 25), ((1.5, 1.5, 1.5), 110), ((2.5, 1.2, 1.2), 25), ((5.0, 1.4, 1.4), 25)],
)
def test_random_anatomies(spacing, noise_hu):
    from lungmill.grid import Grid
    from lungmill.phantom import Anatomy

    anatomy = Anatomy.random(11)  # its nodule lies on the front wall
    low, high = np.array([-205, -145, -195]), np.array([125, 165, 195])
    grid = Grid(tuple(int(n) for n in (high - low) // spacing + 1), spacing, tuple(float(mm) for mm in low))
    volume = anatomy.render(grid, noise_hu=noise_hu, seed=1)
    lungs, nodules = anatomy.labels(grid), anatomy.labels(grid, of="nodules")
    mask, statistics = segment_lungs(volume, spacing)
    assert statistics["flags"] == []
    for label in (1, 2):
        assert dice(mask == label, lungs == label) > 0.985
    assert not mask[anatomy.labels(grid, of="trachea") > 0].any()
    assert mask[(nodules > 0) & (lungs > 0)].all()


def test_mass_too_wide_to_close_is_flagged_with_its_volume():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    z, y, x = np.ogrid[tuple(slice(0, 2 * n, 2) for n in chest.volume.shape)]
    mass = ellipsoid(z, y, x, (150, 130, 300), (34, 34, 30)) & (chest.truth == 2)
    chest.volume[mass] = TISSUE
    mask, statistics = segment_lungs(chest.volume, chest.spacing)
    detail = {flag["code"]: flag["detail"] for flag in statistics["flags"]}["dense_lung"]
    assert 5 <= float(detail.split()[0]) <= np.count_nonzero(mass) * 0.008
    assert not mask[mass].all()


def test_free_gas_is_flagged_with_its_volume():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    y = np.arange(chest.volume.shape[1])[None, :, None] * 2
    gas = (chest.truth == 2) & (y < 85)  # a pneumothorax in front
    chest.volume[gas] = GAS
    _, statistics = segment_lungs(chest.volume, chest.spacing)
    detail = {flag["code"]: flag["detail"] for flag in statistics["flags"]}["pure_gas"]
    assert float(detail.split()[0]) == pytest.approx(np.count_nonzero(gas) * 0.008, rel=0.25)


def test_bowel_gas_behind_a_thin_diaphragm_is_not_lung():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    z, y, x = np.ogrid[tuple(slice(0, 2 * n, 2) for n in chest.volume.shape)]
    bubble = ellipsoid(z, y, x, (8, 130, 240), (24, 30, 30)) & ~ellipsoid(z, y, x, (150, 130, 240), (122, 80, 64))
    chest.volume[bubble] = GAS
    mask, _ = segment_lungs(chest.volume, chest.spacing)
    assert mask[bubble].mean() < 0.01
    assert dice(mask == 2, chest.truth == 2) > 0.98


def test_apices_alone_are_lungs():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    part = slice(int(246 / 2), None)  # the uppermost 24 mm
    truth = chest.truth[part]
    assert 60 < np.count_nonzero(truth == 1) * 0.008 < 100  # each is less than the smallest lung
    mask, _ = segment_lungs(np.ascontiguousarray(chest.volume[part]), chest.spacing)
    assert dice(mask > 0, truth > 0) > 0.97


def test_lungs_cut_by_the_field_of_view_stay():
    chest = thorax((2.0, 2.0, 2.0), junction=None)
    _, y, x = np.ogrid[tuple(slice(n) for n in chest.volume.shape)]
    beyond = np.broadcast_to((2 * y - 130) ** 2 + (2 * x - 170) ** 2 > 100**2, chest.volume.shape)
    chest.volume[beyond] = -1024
    truth = np.where(beyond, 0, chest.truth)
    mask, statistics = segment_lungs(chest.volume, chest.spacing)
    for label in (1, 2):
        assert dice(mask == label, truth == label) > 0.97
    assert "cut_by_field_of_view" in [flag["code"] for flag in statistics["flags"]]


def test_lungs_cut_by_the_ends_of_the_volume_are_flagged():
    chest = thorax((2.0, 2.0, 2.0))
    part = (slice(40, 90), slice(None), slice(35, None))
    mask, statistics = segment_lungs(np.ascontiguousarray(chest.volume[part]), chest.spacing)
    assert dice(mask > 0, chest.truth[part] > 0) > 0.98
    detail = {flag["code"]: flag["detail"] for flag in statistics["flags"]}["touches_border"]
    assert all(f"the {end} end" in detail for end in ("lower", "upper", "right")) and "the left end" not in detail


def test_small_lungs_are_flagged_with_their_volume():
    chest = thorax((2.0, 2.0, 2.0))
    _, statistics = segment_lungs(chest.volume, (1.0, 1.0, 1.0))
    detail = {flag["code"]: flag["detail"] for flag in statistics["flags"]}["lung_volume"]
    assert f"{sum(statistics['volume_ml'].values()):.0f} ml" in detail


def test_a_head_has_no_lungs():
    spacing = (1.5, 1.5, 1.5)
    (k, j, i), shape = grid_mm((240, 240, 200), spacing)
    z, y, x = k * 1.5, j * 1.5, i * 1.5
    hu = np.full(shape, -1000, np.int16)
    hu[ellipsoid(z, y, x, (110, 120, 100), (100, 95, 78))] = TISSUE
    hu[ellipsoid(z, y, x, (130, 120, 100), (80, 85, 68)) & ~ellipsoid(z, y, x, (130, 120, 100), (74, 79, 62))] = 1000
    for side in (-1, 1):
        hu[ellipsoid(z, y, x, (80, 65, 100 + side * 22), (18, 16, 14))] = -990
    hu[tube(z, y, x, (0, 95, 100), (90, 95, 100), 9)] = -1000
    mask, statistics = segment_lungs(hu, spacing)
    assert not mask.any() and mask.shape == shape and mask.dtype == np.uint8
    assert statistics["status"] == "no_lungs" and "100 ml" in statistics["reason"]
    assert statistics["bounding_box"] is None and statistics["volume_ml"] == {"right": 0.0, "left": 0.0}


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 1, 1), (3, 3, 3), (20, 40, 40)])
@pytest.mark.parametrize("hu", [-1024, -850, 40])
def test_volumes_of_one_value_have_no_lungs(shape, hu):
    mask, statistics = segment_lungs(np.full(shape, hu, np.int16), (1.0, 1.0, 1.0))
    assert statistics["status"] == "no_lungs" and mask.shape == shape and not mask.any()


@pytest.mark.parametrize(
    ("volume", "spacing", "settings"),
    [
        (np.zeros((4, 4, 4), np.float32), (1, 1, 1), {}),
        (np.zeros((4, 4), np.int16), (1, 1, 1), {}),
        (np.zeros((4, 4, 4), np.int16), (1, 0, 1), {}),
        (np.zeros((4, 4, 4), np.int16), (1, 1, 1), {"threshold_hu": 100}),
        (np.zeros((4, 4, 4), np.int16), (1, 1, 1), {"closing_mm": -1}),
    ],
)
def test_arguments_that_make_no_volume_are_refused(volume, spacing, settings):
    with pytest.raises(LungmillError, match="segment_lungs"):
        segment_lungs(volume, spacing, **settings)


def read_with_itk(folder, spacing_mm):
    """A series read, clamped and resampled by SimpleITK: (int16 array, spacing and origin as [z, y, x], the image)."""
    import SimpleITK as sitk

    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.Clamp(sitk.ReadImage(files), sitk.sitkFloat32, -1024, 3071)
    size = [int((n - 1) * mm / spacing_mm) + 1 for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    image = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [spacing_mm] * 3, image.GetDirection(), -1024
    )
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    return np.rint(sitk.GetArrayFromImage(image)).astype(np.int16), np.array(image.GetOrigin()[::-1]), image


def test_nodule_of_a_real_scan_is_inside_the_left_lung(real_data):
    folder = real_data / "lidc-0001"
    volume, origin, _ = read_with_itk(folder, 1.0)
    mask, statistics = segment_lungs(volume, (1.0, 1.0, 1.0))
    assert statistics["status"] == "ok"
    with np.load(next(folder.glob("*bitmask.npz"))) as annotation:
        labels, z_mm, pixel_mm = annotation["labels"], annotation["z_mm"], float(annotation["pixel_spacing"])
    # The nodule lies in the patient's left lung (world x 55 mm, positive towards the left).
    index = np.argwhere(labels)
    readers = np.bitwise_count(labels[tuple(index.T)])
    offset = np.stack([z_mm[index[:, 0]] - origin[0], index[:, 1] * pixel_mm, index[:, 2] * pixel_mm], axis=1)
    inside = mask[tuple(np.rint(offset).astype(int).T)] == 2
    assert inside.mean() >= 0.995
    assert inside[readers >= 3].all()


def test_overlap_with_lungs_outlined_in_another_real_scan(real_data):
    import SimpleITK as sitk

    volume, _, image = read_with_itk(real_data / "ct64", 1.0)
    mask, statistics = segment_lungs(volume, (1.0, 1.0, 1.0))
    outlined = sitk.Cast(sitk.ReadImage(str(real_data / "ct64" / "wholeLung-64.nrrd")) > 0, sitk.sitkFloat32)
    outlined = sitk.GetArrayFromImage(sitk.Resample(outlined, image, sitk.Transform(), sitk.sitkLinear, 0)) > 0.5
    assert dice(mask > 0, outlined) >= 0.97
    assert statistics["flags"] == []


def test_a_real_head_has_no_lungs(real_data):
    import pydicom

    # Stacked as if the slices were equally spaced and not tilted: that no lung is in them does not hang on it.
    slices = [pydicom.dcmread(path) for path in (real_data / "tilt-ge").glob("*.dcm")]
    slices.sort(key=lambda item: item.ImagePositionPatient[2])
    pixels = np.stack([item.pixel_array[::2, ::2] * item.RescaleSlope + item.RescaleIntercept for item in slices])
    volume = np.clip(pixels, -1024, 3071).astype(np.int16)
    mask, statistics = segment_lungs(volume, (4.0, 0.98, 0.98))
    assert statistics["status"] == "no_lungs" and not mask.any()
