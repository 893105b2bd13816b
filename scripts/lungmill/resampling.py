"""One interpolation from a scan's own sample positions to the output grid."""

import math
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from lungmill.aligned_kernels import cubic_plane, linear_plane, substitute_and_blend
from lungmill.dicom.geometry import SliceGeometry
from lungmill.errors import LungmillError
from lungmill.grid import Grid
from lungmill.interpolation import METHODS, Axis, factor, make_axis, solve_columns, solve_rows
from lungmill.resampling_kernels import oblique_cubic, oblique_linear, spline_polynomials

# A scan whose samples lie this close to an axis-aligned lattice is treated as aligned.
ALIGNED_MM = 0.01
# Slack for extents that are a whole number of voxels up to rounding of positions.
EXTENT_SLACK = 1e-4
# Output planes that are written at once.
MOST_PLANES = 8
# What the kernels take as "nothing to solve"; of one type, so that they are compiled once.
ZERO = np.float32(0)
DEVICES = ("cpu", "cuda", "auto")


def resample(slices, geometry: SliceGeometry | None = None, *, spacing_mm=1.0, interpolation="linear",
             out=None, progress=lambda planes: planes, device="cpu"):  # fmt: skip
    """Resample a scan to a regular grid along the patient's axes.

    slices: the scan in HU, int16: an array (slices, rows, columns), a `Series`, or anything whose `slices[k]` is
        slice k. Slices of an aligned scan are asked for once each, in order, so they need not be in memory together.
    geometry: where its samples lie; by default `slices.geometry`.
    spacing_mm: of the output, a number or (z, y, x). interpolation: 'linear' or 'cubic' (B-spline).
    out: None, or a function that takes a shape and returns the int16 array to fill, such as a memory map, or anything
        that takes planes, `array[first:stop] = planes`, each once and in any order.
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

        filled = volume if isinstance(volume, np.ndarray) else np.empty(grid.shape, dtype=np.int16)
        resample_on_gpu(slices, geometry, grid, axes, interpolation, filled, progress)
        if filled is not volume:
            volume[:] = filled
    elif axes is None:
        _resample_oblique(slices, geometry, grid, interpolation, volume, progress)
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
    output = _Output(volume, grid, axes)
    resample_planes = _linear if method == "linear" else _cubic
    resample_planes(_reader(slices, geometry), across, down, right, output, progress)
    output.finish()


def _reader(slices, geometry):
    """Return a function that returns slice k; a `Series` decodes to the same array again and again."""
    if hasattr(slices, "read"):
        pixels = np.empty(geometry.shape[1:], dtype=np.int16)
        return lambda k: slices.read(k, pixels)
    return lambda k: np.ascontiguousarray(slices[k])


def _linear(read, across, down, right, output, progress):
    """Blend pairs of slices as they come: two resampled slices are in memory at a time."""
    down, right = (down.indices, down.weights), (right.indices, right.weights)
    pair = np.empty((2, len(down[0]), len(right[0])), dtype=np.float32)
    held = [None, None]
    for lowest, blocks in progress(_blocks_by_lowest_slice(across)):
        for k in sorted({lowest, *across.indices[blocks[0].start].tolist()}):
            if held[k % 2] != k:
                linear_plane(read(k), down, right, pair[k % 2])
                held[k % 2] = k
        for planes in blocks:
            with output.open(planes) as out:
                indices = across.indices[planes] % 2
                substitute_and_blend(pair.reshape(2, -1), 0, ZERO, ZERO, indices, across.weights[planes], out)


def _cubic(read, across, down, right, output, progress):
    """All slices on the way to the last, from where the spline across them can be solved; then back, blending."""
    spline = across.spline
    down, right = _spline_tables(down), _spline_tables(right)
    stack = np.empty((len(spline.lower), len(down[0]), len(right[0])), dtype=np.float32)
    scratch = np.empty((len(down[2]), len(right[2])), dtype=np.float32)
    for k in progress(range(len(stack))):
        cubic_plane(read(k), down, right, scratch, stack[max(k - 1, 0)], spline.lower[k], stack[k])
    stack = stack.reshape(len(stack), -1)
    blocks_of = dict(_blocks_by_lowest_slice(across))
    for k in reversed(range(len(stack))):
        upper, inverse = spline.upper[k], spline.inverse_diagonal[k]
        for planes in blocks_of.get(k, [slice(0, 0)]):
            with output.open(planes) as out:
                substitute_and_blend(stack, k, upper, inverse, across.indices[planes], across.weights[planes], out)
            inverse = ZERO  # slice k is done


def _spline_tables(axis):
    """What the kernels take: the tables of `Axis`, and its outputs in the order in which coefficients get ready."""
    spline = axis.spline
    order = np.argsort(-axis.indices.min(axis=1), kind="stable")
    return axis.indices, axis.weights, spline.lower, spline.upper, spline.inverse_diagonal, order


def _blocks_by_lowest_slice(across):
    """For each slice that is the lowest one of some output planes: these, ascending, in short blocks."""
    lowest = across.indices.min(axis=1)
    starts = np.flatnonzero(np.diff(lowest, prepend=-1)).tolist()
    blocks = [
        (int(lowest[start]), [slice(k, min(k + MOST_PLANES, stop)) for k in range(start, stop, MOST_PLANES)])
        for start, stop in pairwise([*starts, len(lowest)])
    ]
    return sorted(blocks, key=lambda block: block[0])


class _Output:
    """Output planes in the scan's axis order, whichever that is, written to the volume a few at a time."""

    def __init__(self, volume, grid, axes):
        self.volume, self.axes = volume, axes
        if isinstance(volume, np.ndarray):
            array = np.asarray(volume)
        else:  # takes planes [z], which a sagittal or coronal scan completes only at its end
            array = None if axes[0] == 0 else np.empty(grid.shape, dtype=np.int16)
        self.array = array
        self.view = None if array is None else array.transpose(axes)
        self.shape = tuple(grid.shape[axis] for axis in axes[1:])
        self.buffer = None

    @contextmanager
    def open(self, planes):
        """Yield an int16 array (planes, pixels) to be filled, which then is in the volume."""
        count = planes.stop - planes.start
        flat = count, math.prod(self.shape)
        if self.view is not None and self.view.flags.c_contiguous:
            yield self.view[planes].reshape(flat)
            return
        if self.buffer is None:
            self.buffer = np.empty((MOST_PLANES, *self.shape), dtype=np.int16)
        block = self.buffer[:count]
        yield block.reshape(flat)
        if count and self.view is not None:
            self.view[planes] = block
        elif count:
            self.volume[planes] = block.transpose(self.axes)

    def finish(self):
        if self.array is not None and not isinstance(self.volume, np.ndarray):
            self.volume[:] = self.array


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


def _resample_oblique(slices, geometry, grid, method, volume, progress):
    """Voxel by voxel through the scan's own (slice, row, column) coordinates."""
    positions, drift, start, steps = lattice(geometry, grid)
    if method == "linear":
        samples = slices.to_array() if hasattr(slices, "to_array") else np.asarray(slices)
        kernel, arguments = oblique_linear, (samples, positions, drift, start, steps)
    else:
        coefficients = np.empty(geometry.shape, dtype=np.float32)
        for k in range(geometry.shape[0]):
            coefficients[k] = slices[k]
        _prefilter(coefficients, positions)
        kernel = oblique_cubic
        arguments = coefficients, positions, drift, spline_polynomials(positions), start, steps
    block = np.empty((MOST_PLANES, *grid.shape[1:]), dtype=np.int16)
    for first in progress(range(0, grid.shape[0], MOST_PLANES)):
        planes = block[: grid.shape[0] - first]
        kernel(*arguments, first, planes)
        volume[first : first + len(planes)] = planes


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
