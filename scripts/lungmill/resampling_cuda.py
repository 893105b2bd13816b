"""Resampling on a GPU: what is where on the device, and in what portions it goes there and back.

Slices go up as int16 and planes come back as int16. The kernels' arrays take at most GPU_BYTES on the GPU, or the few
slices and planes that one step needs where these are larger; CUDA itself takes some hundred megabytes per process. The
host holds what the CPU path holds: two planes for linear interpolation, the scan as int16 for linear interpolation of
a tilted one, float32 coefficients for cubic; and the int16 volume, where it is not mapped.
"""

import math
import warnings

import numpy as np
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning

from lungmill import resampling_cuda_kernels as kernels
from lungmill.interpolation import factor, interval_of
from lungmill.resampling import axis_tables, lattice
from lungmill.resampling_kernels import spline_polynomials

GPU_BYTES = 256 << 20
# Slices whose columns are solved at once: a slice alone has too few columns to keep a GPU busy.
SLAB = 16


def resample_on_gpu(slices, geometry, grid, axes, method, volume, progress):
    """Fill int16 `volume`; arguments as the CPU path of `lungmill.resampling.resample` has them.

    axes: from `aligned_axes`, None for a tilted, oblique or drifting scan.
    """
    with warnings.catch_warnings():
        # A small scan does not fill a GPU, which numba warns of at every launch.
        warnings.simplefilter("ignore", NumbaPerformanceWarning)
        if axes is None:
            _oblique(slices, geometry, grid, method, volume)
            return
        tables = axis_tables(geometry, grid, axes, method)
        # The output seen in the scan's axis order: a view, so writing to it writes the volume.
        output = volume.transpose(axes)
        aligned = _aligned_linear if method == "linear" else _aligned_cubic
        aligned(slices, geometry.shape, tables, output, progress)


def _aligned_linear(slices, shape, tables, output, progress):
    across, down, right = tables
    planes_shape = len(down.indices), len(right.indices)
    raw = cuda.device_array((1, *shape[1:]), np.int16)
    # Two neighbouring slices, each resampled within its plane, slice k in slot k % 2.
    ring = cuda.device_array((2, *planes_shape), np.float32)
    out = cuda.device_array((1, *planes_shape), np.int16)
    in_plane = *_on_device(down.indices, down.weights), *_on_device(right.indices, right.weights)
    indices, weights = _on_device(across.indices, across.weights)
    newest = -1
    for plane in progress(_order_of_use(across.indices)):
        for k in np.unique(across.indices[plane]).tolist():
            if k > newest:
                raw[0].copy_to_device(_pixels(slices[k]))
                slot = ring[k % 2 : k % 2 + 1]
                kernels.in_plane[_per_voxel(slot.shape)](raw, *in_plane, slot)
                newest = k
        kernels.blend[_per_voxel(out.shape)](ring, indices, weights, plane, out)
        _download(out, output[plane : plane + 1])


def _aligned_cubic(slices, shape, tables, output, progress):
    across, down, right = tables
    stack = np.empty((shape[0], len(down.indices), len(right.indices)), dtype=np.float32)
    slab = _slab(shape, stack.shape)
    planes = cuda.device_array((slab, *stack.shape[1:]), np.float32)
    in_plane = *_on_device(down.indices, down.weights), *_on_device(right.indices, right.weights)
    for first, block in _in_plane_coefficients(slices, shape, slab, down.spline, right.spline, progress):
        done = planes[: len(block)]
        kernels.in_plane[_per_voxel(done.shape)](block, *in_plane, done)
        done.copy_to_host(stack[first : first + len(block)])
    del planes, done, block
    indices, weights = _on_device(across.indices, across.weights)
    height = _band_height(stack, 2 * len(output) * stack.shape[2])
    buffer = cuda.device_array(len(output) * height * stack.shape[2], np.int16)
    for top, band in _bands_of_coefficients(stack, across.spline, height):
        rows = slice(top, top + band.shape[1])
        out = _shaped(buffer, (len(output), *band.shape[1:]))
        kernels.blend[_per_voxel(out.shape)](band, indices, weights, 0, out)
        _download(out, output[:, rows])


def _order_of_use(indices):
    """Output planes in the order in which the scan's slices are needed, ascending."""
    planes = range(len(indices))
    return planes if indices[0, 0] <= indices[-1, 0] else reversed(planes)


def _slab(shape, planes_shape):
    """How many slices the GPU takes at once, with what is made of each."""
    each = 6 * math.prod(shape[1:]) + 4 * math.prod(planes_shape[1:])
    return min(SLAB, max(GPU_BYTES // each, 1), shape[0])


def _in_plane_coefficients(slices, shape, slab, down, right, progress):
    """Yield (first slice, float32 (n, rows, columns) on the GPU): slices as B-spline coefficients of their plane."""
    count = shape[0]
    raw = cuda.device_array((slab, *shape[1:]), np.int16)
    block = cuda.device_array((slab, *shape[1:]), np.float32)
    down, right = _factors(down), _factors(right)
    for k in progress(range(count)):
        filled = k % slab + 1
        raw[filled - 1].copy_to_device(_pixels(slices[k]))
        if filled == slab or k == count - 1:
            done = block[:filled]
            kernels.widen[_per_voxel(done.shape)](raw, done)
            kernels.solve_columns[_per_line(shape[2], filled)](done, *down)
            kernels.solve_rows[_per_line(shape[1], filled)](done, *right)
            yield k + 1 - filled, done


def _band_height(stack, more_bytes_per_row=0):
    """How many rows of all slices of `stack` the GPU takes at once."""
    rows = GPU_BYTES // (stack[:, 0].nbytes + more_bytes_per_row)
    return min(max(rows, 1), stack.shape[1])


def _bands_of_coefficients(stack, spline, height):
    """Yield (first row, float32 (slices, n, columns) on the GPU): `stack` as B-spline coefficients across slices."""
    slices, rows, columns = stack.shape
    buffer = cuda.device_array(slices * height * columns, np.float32)
    spline = _factors(spline)
    for top in range(0, rows, height):
        part = stack[:, top : top + height]
        band = _shaped(buffer, part.shape)
        for k in range(slices):
            band[k].copy_to_device(part[k])
        lines = part.shape[1] * columns
        kernels.solve_columns[_per_line(lines, 1)](band.reshape(1, slices, lines), *spline)
        yield top, band


def _oblique(slices, geometry, grid, method, volume):
    positions, drift, start, steps = lattice(geometry, grid)
    # What an index along each axis of the volume adds to a voxel's scan coordinates. The products are made here, so
    # that the GPU only adds and finds the CPU's coordinates to the last bit.
    places = [np.arange(n)[:, None] * steps[:, axis] for axis, n in enumerate(volume.shape)]
    places[0] = start + places[0]
    constants = _on_device(positions, drift)
    if method == "linear":
        samples = slices.to_array() if hasattr(slices, "to_array") else np.asarray(slices)
        kernel, reach, dtype = kernels.oblique_linear, 0, np.int16
    else:
        samples = _coefficients(slices, geometry)
        kernel, reach, dtype = kernels.oblique_cubic, 1, np.float32
        constants += _on_device(spline_polynomials(positions))
    slice_bytes = math.prod(samples.shape[1:]) * np.dtype(dtype).itemsize
    blocks = list(_blocks(places, positions, reach, slice_bytes))
    sources = cuda.device_array((max(last - first for _, first, last in blocks), *samples.shape[1:]), dtype)
    buffer = cuda.device_array(max(volume[block].size for block, _, _ in blocks), np.int16)
    there = None
    for block, first, last in blocks:
        if there != (first, last):
            for k in range(first, last):
                sources[k - first].copy_to_device(_pixels(samples[k], dtype))
            there = first, last
        target = volume[block]
        out = _shaped(buffer, target.shape)
        here = _on_device(*(place[part] for place, part in zip(places, block, strict=True)))
        kernel[_per_voxel(out.shape)](sources, first, *constants, *here, out)
        _download(out, target)


def _coefficients(slices, geometry):
    """B-spline coefficients of a scan, float32 (slices, rows, columns), in the host's memory."""
    coefficients = np.empty(geometry.shape, dtype=np.float32)
    down, right = (factor(np.arange(n)) for n in geometry.shape[1:])
    shape, slab = geometry.shape, _slab(geometry.shape, (0, 0))
    for first, block in _in_plane_coefficients(slices, shape, slab, down, right, lambda planes: planes):
        block.copy_to_host(coefficients[first : first + len(block)])
    spline = factor(geometry.positions_mm)
    for top, band in _bands_of_coefficients(coefficients, spline, _band_height(coefficients)):
        for k in range(len(coefficients)):
            band[k].copy_to_host(coefficients[k, top : top + band.shape[1]])
    return coefficients


def _blocks(places, positions, reach, slice_bytes):
    """Cut the volume into blocks that fit on the GPU: yields (slices of z, y and x, first slice, one past the last).

    The last two bound the scan's slices that a block needs, `reach` more on both sides included.
    """
    todo = [[(0, len(place)) for place in places]]
    while todo:
        block = todo.pop()
        ends = np.array([(place[a, 0], place[b - 1, 0]) for place, (a, b) in zip(places, block, strict=True)])
        # Summed as the kernels do: rounding keeps order, so no voxel lies beyond the block's corners.
        low, high = (end[0] + end[1] + end[2] for end in (ends.min(axis=1), ends.max(axis=1)))
        below, above = interval_of(positions, np.array([low, high])).tolist()
        first, last = max(below - reach, 0), min(above + 2 + reach, len(positions))
        lengths = [b - a for a, b in block]
        spans = np.ptp(ends, axis=1)
        if (last - first) * slice_bytes > GPU_BYTES // 4 * 3 and last - first > 2 + 2 * reach and spans.max() > 0:
            axis = int(np.argmax(spans))
        elif 2 * math.prod(lengths) > GPU_BYTES // 4 and max(lengths) > 1:
            axis = next(axis for axis in range(3) if lengths[axis] > 1)
        else:
            yield tuple(slice(a, b) for a, b in block), first, last
            continue
        a, b = block[axis]
        middle = (a + b) // 2
        for half in ((middle, b), (a, middle)):
            todo.append([half if at == axis else part for at, part in enumerate(block)])


def _pixels(pixels, dtype=np.int16):
    """A slice as it can go to the GPU; TypeError where it is not of whole numbers."""
    return np.ascontiguousarray(pixels).astype(dtype, casting="same_kind", copy=False)


def _on_device(*arrays):
    return tuple(cuda.to_device(np.ascontiguousarray(array)) for array in arrays)


def _factors(spline):
    return _on_device(spline.lower, spline.upper, spline.inverse_diagonal)


def _shaped(buffer, shape):
    """The start of a flat device array as an array of `shape`: the GPU's memory is asked for once."""
    return buffer[: math.prod(shape)].reshape(shape)


def _download(planes, target):
    """Copy int16 planes from the GPU into a part of the volume, whatever its strides."""
    for p in range(len(target)):
        if target[p].flags.c_contiguous:
            planes[p].copy_to_host(target[p])
        else:
            target[p][...] = planes[p].copy_to_host()


def _per_voxel(shape):
    """Launch with a thread per voxel of (n, rows, columns), neighbours of a row side by side."""
    n, rows, columns = shape
    block = min(columns, 32), min(rows, 4), 1
    return (math.ceil(columns / block[0]), math.ceil(rows / block[1]), n), block


def _per_line(lines, n):
    """Launch with a thread per line, for `n` slices."""
    block = min(lines, 64)
    return (math.ceil(lines / block), n), (block, 1)
