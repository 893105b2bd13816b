"""Resampling against SimpleITK, scipy, and a scene that is known at every point in space."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import AXIAL, plane_points, stack
from references import points_of, scipy_linear, simpleitk_linear

from lungmill.dicom.geometry import slice_geometry
from lungmill.resampling import aligned_axes, output_grid, resample
from lungmill.series import read_series
from lungmill.volume import CountedVolume, hounsfield_histogram

SHAPE = (36, 44)
SPHERES = [((-6.3, 4.2, 8.9), 7.0, 400.0), ((9.1, -8.4, -7.7), 6.0, -300.0), ((2.0, 7.5, -12.0), 5.0, 800.0)]


def tilted(degrees):
    angle = np.radians(degrees)
    return (1, 0, 0, 0, np.cos(angle), -np.sin(angle))


def turned(degrees):
    """Rotated about the body's long axis, as a patient who lies a little askew."""
    angle = np.radians(degrees)
    return (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)


# name: (orientation, direction of travel from slice to slice, slice offsets in mm along it)
EVEN = 1.5 * np.arange(-18, 19)
CASES = {
    "axial, head first": (AXIAL, (0, 0, 1), EVEN),
    "files from head to feet": (AXIAL, (0, 0, -1), EVEN),
    "prone": ((-1, 0, 0, 0, -1, 0), (0, 0, 1), EVEN),
    "flipped rows": ((1, 0, 0, 0, -1, 0), (0, 0, 1), EVEN),
    "flipped columns": ((-1, 0, 0, 0, 1, 0), (0, 0, 1), EVEN),
    "decubitus": ((0, 1, 0, -1, 0, 0), (0, 0, 1), EVEN),
    "sagittal": ((0, 1, 0, 0, 0, -1), (1, 0, 0), EVEN),
    "coronal": ((1, 0, 0, 0, 0, -1), (0, 1, 0), EVEN),
    "uneven steps": (AXIAL, (0, 0, 1), np.cumsum(np.tile([1.0, 2.1, 1.4], 12)) - 27),
    "a slice missing": (AXIAL, (0, 0, 1), np.delete(EVEN, 20)),
    "gantry tilted forward": (tilted(20), (0, 0, 1), EVEN),
    "gantry tilted back": (tilted(-20), (0, 0, 1), EVEN),
    "tilted, uneven steps": (tilted(15), (0, 0, 1), np.cumsum(np.tile([1.0, 2.1, 1.4], 12)) - 27),
    "oblique": (turned(7), (0, 0, 1), EVEN),
    "drifting sideways": (AXIAL, (0.05, -0.04, 1), EVEN),
}


def scene(points):
    """Spheres with soft edges in water: values vary on the scale of the sampling, so interpolation is fair."""
    values = np.zeros(points.shape[:-1], dtype=np.float32)
    for centre, radius, hounsfield in SPHERES:
        distance = np.linalg.norm(points - np.array(centre), axis=-1)
        values += hounsfield / (1 + np.exp(np.clip((distance - radius) / 0.6, -50, 50)))
    return values


def scan(orientation, travel, offsets, pixel_spacing=(1.2, 0.9), shape=SHAPE):
    """Slices of the scene centred on the origin, and their geometry."""
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    rows, columns = shape
    corner = -(columns - 1) / 2 * pixel_spacing[1] * right - (rows - 1) / 2 * pixel_spacing[0] * down
    positions = [corner + offset * np.array(travel, float) for offset in offsets]
    geometry, order = slice_geometry(positions, orientation, pixel_spacing, rows, columns)
    slices = np.stack([np.rint(scene(plane_points(positions[k], orientation, pixel_spacing, rows, columns)))
                       for k in order]).astype(np.int16)  # fmt: skip
    return slices, geometry


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("case", CASES)
def test_spheres_stay_where_they_are(case, method):
    slices, geometry = scan(*CASES[case])
    volume, grid = resample(slices, geometry, spacing_mm=1.0, interpolation=method)
    points = points_of(grid)
    for centre, radius, hounsfield in SPHERES:
        distance = np.linalg.norm(points - np.array(centre), axis=-1)
        inside = distance < radius - 2.5
        assert abs(volume[inside].mean() - hounsfield) < 0.02 * abs(hounsfield) + 3
        near = (distance < radius + 4) & (volume > -1024)
        weight = np.abs(volume[near].astype(float))
        found = (points[near] * weight[:, None]).sum(axis=0) / weight.sum()
        assert np.linalg.norm(found - np.array(centre)) < 0.15
    error = np.abs(volume - scene(points))[volume > -1024]
    assert np.percentile(error, 99) < (60 if method == "linear" else 30)


@pytest.mark.parametrize("case", CASES)
def test_air_beyond_the_scan_and_nowhere_else(case):
    slices, geometry = scan(*CASES[case])
    volume, grid = resample(slices, geometry, spacing_mm=1.0)
    points = points_of(grid)
    along = points @ geometry.normal
    positions = geometry.positions_mm
    origin = np.stack([np.interp(along, positions, geometry.origins[:, axis]) for axis in range(3)], axis=-1)
    row = ((points - origin) @ geometry.column_direction) / geometry.pixel_spacing[0]
    column = ((points - origin) @ geometry.row_direction) / geometry.pixel_spacing[1]
    depth = np.minimum.reduce([
        (along - positions[0]), (positions[-1] - along), row, SHAPE[0] - 1 - row, column, SHAPE[1] - 1 - column
    ])  # fmt: skip
    assert (volume[depth > 0.01] > -1024).all()
    assert (volume[depth < -0.01] == -1024).all()


# Wide and narrow, fewer and more rows and planes than the kernels take at once.
@pytest.mark.parametrize(
    "shape, spacing",
    [((12, 20, 24), (1.15, 0.9, 0.6)), ((7, 150, 83), (0.2, 0.53, 0.71)), ((40, 67, 200), (6.1, 2.3, 1.9))],
    ids=["small", "finer", "coarser"],
)
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_grid_shape_and_values_agree_with_simpleitk(method, shape, spacing):
    n, rows, columns = shape
    rng = np.random.default_rng(3)
    slices = rng.integers(-1000, 1000, shape).astype(np.int16)
    geometry, _ = slice_geometry(stack((-7.3, 4.1, 100.0), (0, 0, 2.5), n), AXIAL, (0.8, 0.7), rows, columns)
    volume, grid = resample(slices, geometry, spacing_mm=spacing, interpolation=method)
    assert grid.origin_mm == pytest.approx((100.0, 4.1, -7.3))
    lengths = zip(((n - 1) * 2.5, (rows - 1) * 0.8, (columns - 1) * 0.7), spacing, strict=True)
    assert grid.shape == tuple(int(length / step) + 1 for length, step in lengths)
    image = sitk.GetImageFromArray(slices)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-7.3, 4.1, 100.0))
    interpolator = sitk.sitkLinear if method == "linear" else sitk.sitkBSpline
    expected = sitk.GetArrayFromImage(
        sitk.Resample(image, grid.shape[::-1], sitk.Transform(), interpolator, grid.origin_mm[::-1],
                      grid.spacing_mm[::-1], np.eye(3).ravel().tolist(), -1024, sitk.sitkFloat32)
    )  # fmt: skip
    np.testing.assert_allclose(volume, np.clip(expected, -1024, None), atol=1)


@pytest.mark.parametrize("case", ["files from head to feet", "decubitus", "coronal", "sagittal", "flipped rows"])
def test_aligned_scans_agree_with_the_oblique_path(case, monkeypatch):
    slices, geometry = scan(*CASES[case])
    assert aligned_axes(geometry) is not None
    for method in ("linear", "cubic"):
        volume, _ = resample(slices, geometry, interpolation=method)
        monkeypatch.setattr("lungmill.resampling.aligned_axes", lambda geometry: None)
        other, _ = resample(slices, geometry, interpolation=method)
        monkeypatch.undo()
        np.testing.assert_allclose(volume, other, atol=1)


def test_output_can_be_a_memory_map(tmp_path):
    slices, geometry = scan(*CASES["axial, head first"])
    expected, _ = resample(slices, geometry)
    path = tmp_path / "volume.npy"
    resample(
        slices, geometry, out=lambda shape: np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape)
    )
    np.testing.assert_array_equal(np.load(path), expected)


@pytest.mark.parametrize("case", ["files from head to feet", "decubitus", "sagittal", "coronal", "oblique"])
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_planes_can_be_taken_instead_of_an_array(case, method):
    slices, geometry = scan(*CASES[case])
    expected, grid = resample(slices, geometry, spacing_mm=(0.15, 1, 1), interpolation=method)
    taken = []

    class Planes:
        volume = np.empty(grid.shape, np.int16)

        def __setitem__(self, planes, values):
            taken.extend(range(*planes.indices(grid.shape[0])))
            self.volume[planes] = values

    planes = Planes()
    assert resample(slices, geometry, spacing_mm=(0.15, 1, 1), interpolation=method, out=lambda shape: planes) == (
        planes,
        grid,
    )
    np.testing.assert_array_equal(planes.volume, expected)
    assert sorted(taken) == list(range(grid.shape[0]))


def test_slices_are_asked_for_once_in_order():
    slices, geometry = scan(*CASES["prone"])
    asked = []

    class Slices:
        shape = slices.shape

        def __len__(self):
            return len(slices)

        def __getitem__(self, k):
            asked.append(k)
            return slices[k]

    for method in ("linear", "cubic"):
        asked.clear()
        resample(Slices(), geometry, interpolation=method)
        assert asked == sorted(set(asked))


def test_overshoot_and_padding_never_leave_the_range():
    slices = np.full((6, 8, 8), -1024, np.int16)
    slices[:, 4:] = 32767
    geometry, _ = slice_geometry(stack((0, 0, 0), (0, 0, 1.3), 6), AXIAL, (1, 1), 8, 8)
    volume, _ = resample(slices, geometry, spacing_mm=0.4, interpolation="cubic")
    assert volume.min() == -1024 and volume.max() == 32767


def test_histogram_counts_every_voxel():
    volume = np.random.default_rng(0).integers(-1024, 5000, (3, 40, 40)).astype(np.int16)
    found = hounsfield_histogram(volume, width_hu=64)
    edges = np.concatenate([np.arange(-1024, 3072, 64)[:64], [40000]])
    np.testing.assert_array_equal(found["counts"], np.histogram(volume, edges)[0])


@pytest.mark.parametrize("shape", [(3, 40, 40), (5, 7, 9)])
def test_voxels_are_counted_on_their_way(shape):
    volume = np.random.default_rng(1).integers(-32768, 32767, shape, endpoint=True).astype(np.int16)
    counted = CountedVolume(np.empty_like(volume))
    counted[2:] = volume[2:]
    counted[0:2] = volume[0:2]
    np.testing.assert_array_equal(counted.volume, volume)
    edges = np.concatenate([[-40000], np.arange(-1024, 3072, 32)[1:], [40000]])
    np.testing.assert_array_equal(counted.histogram()["counts"], np.histogram(volume, edges)[0])
    assert counted.histogram() == hounsfield_histogram(volume)


def test_unknown_interpolation():
    slices, geometry = scan(*CASES["axial, head first"])
    with pytest.raises(ValueError, match="nearest"):
        resample(slices, geometry, interpolation="nearest")


def test_whole_chest_agrees_with_simpleitk(real_data):
    volume, grid = resample(read_series(real_data / "lidc-0001"))
    expected = simpleitk_linear(real_data / "lidc-0001", grid)
    assert (np.abs(volume - expected) <= 1).mean() > 0.999
    assert np.abs(volume - expected).max() < 2


def test_tilted_head_agrees_with_scipy_on_its_true_positions(real_data):
    volume, grid = resample(read_series(real_data / "tilt-ge"), spacing_mm=2.0)
    expected = scipy_linear(real_data / "tilt-ge", grid)
    assert (np.abs(volume - expected) <= 1).mean() > 0.999


def test_grid_stays_within_the_samples():
    geometry, _ = slice_geometry(stack((0, 0, 0), (0, 0, 3), 4), AXIAL, (1, 1), 5, 5)
    assert output_grid(geometry, 1.0).shape == (10, 5, 5)
    assert output_grid(geometry, 2.0).shape == (5, 3, 3)
