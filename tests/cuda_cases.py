"""Resampling with device="cuda" against the CPU and scipy. Run by test_resampling_cuda.py in a process of its own: on
numba's CUDA simulator, which has to be chosen before numba is imported, and on a GPU where there is one."""

import weakref

import numpy as np
import pytest
from dicom_files import AXIAL
from numba import config, cuda
from references import points_of
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates

from lungmill import resampling, resampling_cuda
from lungmill.dicom.geometry import slice_geometry
from lungmill.resampling import aligned_axes, resample

AIR_HU = -1024
SLICES, ROWS, COLUMNS = 7, 9, 8
PIXEL_SPACING = (1.2, 0.9)
EVEN = 1.4 * np.arange(SLICES)
UNEVEN = np.cumsum([0.0, 1.0, 2.1, 1.4, 0.8, 2.0, 1.1])


def tilted(degrees):
    angle = np.radians(degrees)
    return (1, 0, 0, 0, np.cos(angle), -np.sin(angle))


def turned(about_z, about_x=0.0):
    z, x = np.radians(about_z), np.radians(about_x)
    right = np.array([np.cos(z), np.sin(z), 0])
    down = np.array([-np.sin(z) * np.cos(x), np.cos(z) * np.cos(x), np.sin(x)])
    return (*right, *down)


# name: (orientation, direction of travel from slice to slice, slice offsets in mm along it)
CASES = {
    "aligned": (AXIAL, (0, 0, 1), EVEN),
    "aligned, uneven": (AXIAL, (0, 0, 1), UNEVEN),
    "aligned, rows and columns flipped": ((-1, 0, 0, 0, -1, 0), (0, 0, -1), EVEN),
    "sagittal, uneven, from left to right": ((0, 1, 0, 0, 0, -1), (-1, 0, 0), UNEVEN),
    "decubitus": ((0, 1, 0, -1, 0, 0), (0, 0, 1), EVEN),
    "tilted": (tilted(20), (0, 0, 1), EVEN),
    "tilted, uneven": (tilted(-15), (0, 0, 1), UNEVEN),
    "drifting sideways": (AXIAL, (0.05, -0.04, 1), EVEN),
    "oblique": (turned(7), (0, 0, 1), EVEN),
    "oblique about two axes, rows flipped": (turned(12, 9) * np.array([-1, -1, -1, 1, 1, 1]), (0.2, 0.1, 1), UNEVEN),
    "near sagittal": ((0.1, np.sqrt(1 - 0.01), 0, 0, 0, -1), (1, 0, 0), EVEN),
}  # fmt: skip


def scan(orientation, travel, offsets, seed=0):
    rng = np.random.default_rng(seed)
    positions = [np.array([-7.3, 4.1, 100.0]) + offset * np.array(travel, float) for offset in offsets]
    geometry, _ = slice_geometry(positions, tuple(orientation), PIXEL_SPACING, ROWS, COLUMNS)
    return rng.integers(-1024, 2000, (len(offsets), ROWS, COLUMNS)).astype(np.int16), geometry


def scan_coordinates(geometry, grid):
    """Position along the normal in mm, row and column in samples of every voxel of a grid."""
    points = points_of(grid).reshape(-1, 3)
    along = points @ geometry.normal
    origin = np.stack([np.interp(along, geometry.positions_mm, geometry.origins[:, a]) for a in range(3)], axis=-1)
    row = (points - origin) @ geometry.column_direction / geometry.pixel_spacing[0]
    column = (points - origin) @ geometry.row_direction / geometry.pixel_spacing[1]
    return along, row, column


def by_scipy(slices, geometry, grid, method):
    """HU of a grid by scipy, in the plane of every slice and then across slices, and where there is no doubt: not
    within rounding of where air begins, which is a thousandth of a sample outside the outermost samples."""
    along, row, column = scan_coordinates(geometry, grid)
    positions = geometry.positions_mm
    depth = np.minimum.reduce([
        along - positions[0], positions[-1] - along, row, ROWS - 1 - row, column, COLUMNS - 1 - column
    ])  # fmt: skip
    order = {"linear": 1, "cubic": 3}[method]
    planes = [map_coordinates(p.astype(float), [row, column], order=order, mode="mirror") for p in slices]
    if method == "linear":
        k = np.interp(along, positions, np.arange(len(slices)))
        values = map_coordinates(np.array(planes), [k, np.arange(len(k))], order=1, mode="nearest")
    else:
        values = mirrored_spline(positions, np.array(planes), along)
    is_sure = (depth > -1e-5) | (depth < -0.01)
    return np.where(depth > -1e-5, values.clip(AIR_HU), AIR_HU).reshape(grid.shape), is_sure.reshape(grid.shape)


def mirrored_spline(positions, planes, along):
    """Cubic splines through the mirrored samples of every voxel, each at that voxel's own position."""
    before, after = 2 * positions[0] - positions[:0:-1], 2 * positions[-1] - positions[-2::-1]
    knots = np.concatenate([before, positions, after])
    values = np.concatenate([planes[:0:-1], planes, planes[-2::-1]])
    # Mirrored samples are level at the far ends too.
    spline = CubicSpline(knots, values, bc_type="clamped")
    k = np.clip(np.searchsorted(knots, along, side="right") - 1, 0, len(knots) - 2)
    t, every = along - knots[k], np.arange(len(along))
    return sum(spline.c[power, k, every] * t ** (3 - power) for power in range(4))


def check(slices, geometry, method, spacing=(1.3, 1.2, 1.1)):
    """The volume with device="cuda", after comparing it with the CPU's everywhere."""
    volume, grid = resample(slices, geometry, spacing_mm=spacing, interpolation=method, device="cuda")
    expected, expected_grid = resample(slices, geometry, spacing_mm=spacing, interpolation=method)
    assert grid == expected_grid
    assert volume.dtype == np.int16 and volume.shape == expected.shape
    assert np.abs(volume.astype(int) - expected).max() <= 1
    return volume, grid


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("case", CASES)
def test_as_the_cpu_and_scipy(case, method):
    slices, geometry = scan(*CASES[case])
    assert (aligned_axes(geometry) is not None) == case.startswith(("aligned", "sagittal", "decubitus"))
    volume, grid = check(slices, geometry, method)
    expected, is_sure = by_scipy(slices, geometry, grid, method)
    assert is_sure.mean() > 0.95 and (volume[is_sure] > AIR_HU).mean() > 0.3
    assert np.abs(volume - expected)[is_sure].max() <= 1


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("case", ["aligned", "sagittal, uneven, from left to right", "tilted", "near sagittal"])
def test_in_small_portions(case, method, monkeypatch):
    limit = 800 if method == "linear" else 1600
    monkeypatch.setattr(resampling_cuda, "GPU_BYTES", limit)
    living, most = [], []
    device_array = cuda.device_array

    def allocate(shape, dtype):
        array = device_array(shape, dtype)
        living.append(weakref.ref(array))
        most.append(sum(alive().nbytes for alive in living if alive() is not None))
        return array

    monkeypatch.setattr(resampling_cuda.cuda, "device_array", allocate)
    slices, geometry = scan(*CASES[case])
    check(slices, geometry, method)
    # Without a spline an aligned scan goes up slice by slice anyway: one slice, two planes, and the plane that results.
    assert limit / 4 < max(most) <= limit


def test_range_memory_map_and_slices_that_are_read_once(tmp_path):
    slices, geometry = scan(*CASES["aligned"])
    slices[...] = AIR_HU
    slices[:, 4:] = 32767
    asked = []

    class Slices:
        shape = slices.shape

        def __len__(self):
            return len(slices)

        def __getitem__(self, k):
            asked.append(k)
            # neither writable nor contiguous, as a decoder may give them
            pixels = np.broadcast_to(slices[k][:, ::-1], slices[k].shape)
            assert not pixels.flags.writeable and not pixels.flags.c_contiguous
            return pixels

    for method in ("linear", "cubic"):
        path = tmp_path / f"{method}.npy"
        asked.clear()
        resample(Slices(), geometry, spacing_mm=1.3, interpolation=method, device="cuda",
                 out=lambda shape, path=path: np.lib.format.open_memmap(path, "w+", np.int16, shape))  # fmt: skip
        assert asked == sorted(set(asked))
        volume = np.load(path)
        expected, _ = resample(slices[:, :, ::-1], geometry, spacing_mm=1.3, interpolation=method)
        assert np.abs(volume.astype(int) - expected).max() <= 1
        assert volume.min() == -1024 and volume.max() == 32767


def test_auto_takes_the_gpu_and_fractions_of_hu_are_refused():
    assert resampling.chosen_device("auto") == "cuda"
    slices, geometry = scan(*CASES["aligned"])
    with pytest.raises(TypeError, match="float"):
        resample(slices.astype(np.float32), geometry, device="cuda")


@pytest.mark.skipif(bool(config.ENABLE_CUDASIM), reason="the simulator is too slow for a scan of usual size")
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("orientation", [AXIAL, tilted(20), turned(7, 5)])
def test_scans_of_usual_size(orientation, method, monkeypatch):
    monkeypatch.setattr(resampling_cuda, "GPU_BYTES", 24 << 20)
    rng = np.random.default_rng(1)
    positions = [(-180.0, -170.0, 1.5 * k) for k in range(90)]
    geometry, _ = slice_geometry(positions, tuple(orientation), (0.7, 0.7), 300, 320)
    slices = rng.integers(-1024, 3000, (90, 300, 320)).astype(np.int16)
    check(slices, geometry, method, spacing=1.0)
