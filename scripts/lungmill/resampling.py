"""One interpolation from a scan's own sample positions to the output grid."""

import numpy as np

from lungmill.dicom.geometry import SliceGeometry
from lungmill.errors import LungmillError
from lungmill.grid import Grid
from lungmill.interpolation import METHODS, Axis, factor, make_axis, solve_columns, solve_rows
from lungmill.resampling_kernels import blend_planes, in_plane, oblique_cubic, oblique_linear, spline_polynomials

# A scan whose samples lie this close to an axis-aligned lattice is treated as aligned.
ALIGNED_MM = 0.01
# Slack for extents that are a whole number of voxels up to rounding of positions.
EXTENT_SLACK = 1e-4
DEVICES = ("cpu", "cuda", "auto")


def resample(slices, geometry: SliceGeometry | None = None, *, spacing_mm=1.0, interpolation="linear",
             out=None, progress=lambda planes: planes, device="cpu"):  # fmt: skip
    """Resample a scan to a regular grid along the patient's axes.

    slices: the scan in HU, int16: an array (slices, rows, columns), a `Series`, or anything whose `slices[k]` is
        slice k. Slices of an aligned scan are asked for once each, in order, so they need not be in memory together.
    geometry: where its samples lie; by default `slices.geometry`.
    spacing_mm: of the output, a number or (z, y, x). interpolation: 'linear' or 'cubic' (B-spline).
    out: None, or a function that takes a shape and returns the int16 array to fill, such as a memory map.
    device: 'cpu', 'cuda' for an NVIDIA GPU through numba.cuda, or 'auto' for the GPU where there is one. The grid is
        the same, and HU differ from the CPU's by at most 1.

    Returns (volume, grid): int16 HU [z, y, x], and the `Grid` that places it. Whatever the scan's orientation, z grows
    to the head, y to the back, x to the patient's left. Beyond the scan's outermost samples is air, -1024 HU.
    Uneven slice distances, gantry tilt and oblique or flipped directions are part of the one mapping.
    Raises LungmillError where device is 'cuda' and there is no GPU that numba.cuda can use.
    """
    if interpolation not in METHODS:
        raise ValueError(f"interpolation {interpolation!r} is not one of {', '.join(METHODS)}")
    device = chosen_device(device)
    geometry = geometry if geometry is not None else slices.geometry
    grid = output_grid(geometry, spacing_mm)
    volume = np.empty(grid.shape, dtype=np.int16) if out is None else out(grid.shape)
    axes = aligned_axes(geometry)
    if device == "cuda":
        from lungmill.resampling_cuda import resample_on_gpu

        resample_on_gpu(slices, geometry, grid, axes, interpolation, volume, progress)
    elif axes is None:
        _resample_oblique(slices, geometry, grid, interpolation, volume)
    else:
        _resample_aligned(slices, geometry, grid, axes, interpolation, volume, progress)
    return volume, grid


def chosen_device(device: str) -> str:
    """'cpu' or 'cuda' for 'cpu', 'cuda' or 'auto'; numba.cuda is loaded for the last two only.

    Raises LungmillError where 'cuda' is asked for and numba.cuda finds no GPU.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    obstacle = _why_no_gpu() if device != "cpu" else None
    if device == "cuda" and obstacle:
        raise LungmillError(f"device cuda: {obstacle}; or set resample.device to cpu or auto")
    return "cpu" if device == "cpu" or obstacle else "cuda"


def _why_no_gpu():
    """What keeps numba.cuda from using a GPU, and what helps, or None."""
    try:
        from numba import cuda
    except ImportError as error:  # numba will not always bring a CUDA target of its own
        return f"numba.cuda cannot be imported ({str(error).splitlines()[0]}): install numba-cuda"
    if cuda.is_available():
        return None
    failure = str(cuda.cuda_error() or "").strip().partition("\n")[0].rstrip(".")
    if failure:
        return f"numba.cuda finds no GPU here ({failure}): run on a machine with an NVIDIA GPU and driver"
    return "numba.cuda finds the GPU but not the CUDA toolkit's compiler: install the CUDA toolkit, or numba-cuda[cu12]"


def output_grid(geometry: SliceGeometry, spacing_mm) -> Grid:
    """The grid of the given spacing that starts at the lowest corner of the scan's samples and stays within them."""
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    corners = geometry.corners().reshape(-1, 3)[:, ::-1]
    low, high = corners.min(axis=0), corners.max(axis=0)
    shape = np.floor((high - low) / spacing + EXTENT_SLACK).astype(int) + 1
    origin = np.round(low, 6) + 0.0  # + 0.0 turns -0.0 into 0.0
    return Grid(tuple(shape.tolist()), tuple(spacing.tolist()), tuple(origin.tolist()))


def aligned_axes(geometry: SliceGeometry):
    """For each scan axis (slice, row index, column index) the patient axis it runs along, 0 = z, 1 = y, 2 = x.

    Returns None where the scan is tilted, oblique or drifts, so that its axes do not separate.
    """
    directions = (geometry.normal, geometry.column_direction, geometry.row_direction)
    axes = [int(np.argmax(np.abs(direction))) for direction in directions]
    if sorted(axes) != [0, 1, 2]:
        return None
    corners = geometry.corners()
    lengths = np.ptp(geometry.positions_mm), np.ptp(corners[0], axis=0).max(), np.ptp(corners[0], axis=0).max()
    for axis, direction, length in zip(axes, directions, lengths, strict=True):
        if np.abs(np.delete(direction, axis)).max() * length > ALIGNED_MM:
            return None
    if np.abs(geometry.origins - geometry.origins[0])[:, [axes[1], axes[2]]].max() > ALIGNED_MM:
        return None
    return tuple(2 - axis for axis in axes)


def sample_positions(geometry: SliceGeometry, axes):
    """Positions in mm of an aligned scan's samples along its slice, row-index and column-index axes."""
    _, rows, columns = geometry.shape
    slice_axis, row_axis, column_axis = (2 - axis for axis in axes)
    origin = geometry.origins[0]
    down = np.arange(rows) * geometry.pixel_spacing[0] * np.sign(geometry.column_direction[row_axis])
    right = np.arange(columns) * geometry.pixel_spacing[1] * np.sign(geometry.row_direction[column_axis])
    return geometry.origins[:, slice_axis], origin[row_axis] + down, origin[column_axis] + right


def axis_tables(geometry: SliceGeometry, grid: Grid, axes, method: str) -> tuple[Axis, Axis, Axis]:
    """How to interpolate an aligned scan along its slice, row-index and column-index axes."""
    positions = sample_positions(geometry, axes)
    return tuple(make_axis(samples, grid.axis_mm(axis), method) for samples, axis in zip(positions, axes, strict=True))


def _resample_aligned(slices, geometry, grid, axes, method, volume, progress):
    """Axis by axis: every slice once in its plane, then blends of such planes across the slices."""
    across, down, right = axis_tables(geometry, grid, axes, method)
    # The output seen in the scan's axis order: a view, so writing to it writes the volume.
    output = volume.transpose(axes)
    planes = _Planes(slices, down, right)
    if across.spline is None:
        wanted = across.indices
        for plane in progress(order_of_use(wanted)):
            _blend(plane, across, planes, output)
            planes.forget_before(wanted[plane].min())
        return
    stack = np.empty((len(slices), len(down.indices), len(right.indices)), dtype=np.float32)
    for k in progress(range(len(slices))):
        stack[k] = planes[k]
        planes.forget_before(k + 1)
    spline = across.spline
    solve_columns(stack.reshape(len(stack), -1), spline.lower, spline.upper, spline.inverse_diagonal)
    for plane in range(len(output)):
        _blend(plane, across, stack, output)


def order_of_use(indices):
    """Output planes in the order in which the scan's slices are needed, ascending."""
    planes = range(len(indices))
    return planes if indices[0, 0] <= indices[-1, 0] else reversed(planes)


class _Planes:
    """Slices resampled within their plane, made when first asked for: float32 (n_down, n_right)."""

    def __init__(self, slices, down: Axis, right: Axis):
        self.slices, self.down, self.right = slices, down, right
        self.ready = {}

    def __getitem__(self, k):
        if k not in self.ready:
            self.ready[k] = _resample_plane(self.slices[k], self.down, self.right)
        return self.ready[k]

    def forget_before(self, k):
        for done in [key for key in self.ready if key < k]:
            del self.ready[done]


def _resample_plane(pixels, down, right):
    if down.spline is not None:
        pixels = pixels.astype(np.float32)
        solve_columns(pixels, down.spline.lower, down.spline.upper, down.spline.inverse_diagonal)
        solve_rows(pixels, right.spline.lower, right.spline.upper, right.spline.inverse_diagonal)
    plane = np.empty((len(down.indices), len(right.indices)), dtype=np.float32)
    in_plane(pixels, down.indices, down.weights, right.indices, right.weights, plane)
    return plane


def _blend(plane, across, planes, output):
    """Write output plane `plane` as the weighted sum of resampled slices."""
    weights = across.weights[plane]
    parts = tuple(planes[k] for k in across.indices[plane])
    blend_planes(parts, weights, output[plane])


def lattice(geometry: SliceGeometry, grid: Grid):
    """Where a grid's voxels lie in a tilted, oblique or drifting scan: positions, drift, start and steps.

    A point p lies in the scan at slice coordinate k(p . normal), piecewise linear between the slices' positions, and
    in the plane at its offset from the origin that drifts, likewise piecewise linear, from slice to slice. The four
    are described with `lungmill.resampling_kernels.oblique_linear`.
    """
    normal, down, right = geometry.normal, geometry.column_direction, geometry.row_direction
    mapping = np.stack([normal, down / geometry.pixel_spacing[0], right / geometry.pixel_spacing[1]])[:, ::-1]
    start = mapping @ np.array(grid.origin_mm)
    steps = mapping * np.array(grid.spacing_mm)
    positions = geometry.positions_mm
    drift = np.stack([geometry.origins @ down / geometry.pixel_spacing[0],
                      geometry.origins @ right / geometry.pixel_spacing[1]], axis=1)  # fmt: skip
    return positions, drift, start, steps


def _resample_oblique(slices, geometry, grid, method, volume):
    """Voxel by voxel through the scan's own (slice, row, column) coordinates."""
    positions, drift, start, steps = lattice(geometry, grid)
    if method == "linear":
        samples = slices.to_array() if hasattr(slices, "to_array") else np.asarray(slices)
        oblique_linear(samples, positions, drift, start, steps, volume)
        return
    coefficients = np.empty(geometry.shape, dtype=np.float32)
    for k in range(geometry.shape[0]):
        coefficients[k] = slices[k]
    _prefilter(coefficients, positions)
    oblique_cubic(coefficients, positions, drift, spline_polynomials(positions), start, steps, volume)


def _prefilter(block, positions):
    """Turn float32 samples [slice, row, column] into B-spline coefficients, in place."""
    slices, rows, columns = block.shape
    along_slices, along_rows, along_columns = (
        factor(samples) for samples in (positions, np.arange(rows), np.arange(columns))
    )
    for plane in block:
        solve_columns(plane, along_rows.lower, along_rows.upper, along_rows.inverse_diagonal)
        solve_rows(plane, along_columns.lower, along_columns.upper, along_columns.inverse_diagonal)
    solve_columns(block.reshape(slices, -1), along_slices.lower, along_slices.upper, along_slices.inverse_diagonal)
