"""The kernels of resampling for a GPU: those of `resampling_kernels` and the solvers of `interpolation` in numba.cuda.

Values are float32 as on the CPU; where a voxel lies is float64, for it decides what is air. Sums run in the same order
as on the CPU, but a GPU may fuse a multiplication and an addition, which rounds once instead of twice.
"""

import numpy as np
from numba import cuda

from lungmill.resampling_kernels import AIR_HU, EDGE_SLACK

LOWEST, HIGHEST = np.float32(AIR_HU), np.float32(32767)


@cuda.jit(device=True)
def _clamped(value, low, high):
    # min and max of two arguments do not compile in the CUDA target of numba 0.66 to 0.68 (numba issue 10753).
    if value < low:
        return low
    if value > high:
        return high
    return value


@cuda.jit(device=True)
def _held(value):
    """Round to the nearest HU that a volume holds; halves to the even one, as np.rint does."""
    return np.int16(round(_clamped(value, LOWEST, HIGHEST)))


@cuda.jit(cache=True)
def widen(raw, block):
    """Copy int16 (n, rows, columns) to float32. A thread per pixel."""
    j, i, b = cuda.grid(3)
    if b < block.shape[0] and i < block.shape[1] and j < block.shape[2]:
        block[b, i, j] = np.float32(raw[b, i, j])


@cuda.jit(cache=True)
def solve_columns(block, lower, upper, inverse):
    """Turn samples along axis 1 of float32 (n, rows, columns) into B-spline coefficients. A thread per column."""
    j, b = cuda.grid(2)
    if b < block.shape[0] and j < block.shape[2]:
        n = block.shape[1]
        value = block[b, 0, j]
        for i in range(1, n):
            value = block[b, i, j] - lower[i] * value
            block[b, i, j] = value
        value = value * inverse[n - 1]
        block[b, n - 1, j] = value
        for i in range(n - 2, -1, -1):
            value = (block[b, i, j] - upper[i] * value) * inverse[i]
            block[b, i, j] = value


@cuda.jit(cache=True)
def solve_rows(block, lower, upper, inverse):
    """Turn samples along axis 2 of float32 (n, rows, columns) into B-spline coefficients. A thread per row."""
    i, b = cuda.grid(2)
    if b < block.shape[0] and i < block.shape[1]:
        n = block.shape[2]
        value = block[b, i, 0]
        for j in range(1, n):
            value = block[b, i, j] - lower[j] * value
            block[b, i, j] = value
        value = value * inverse[n - 1]
        block[b, i, n - 1] = value
        for j in range(n - 2, -1, -1):
            value = (block[b, i, j] - upper[j] * value) * inverse[j]
            block[b, i, j] = value


@cuda.jit(cache=True)
def in_plane(pixels, row_indices, row_weights, column_indices, column_weights, planes):
    """Interpolate slices: pixels (n, rows, columns), int16 or float32, to float32 `planes` (n, n_down, n_right)."""
    j, i, b = cuda.grid(3)
    if b < planes.shape[0] and i < planes.shape[1] and j < planes.shape[2]:
        taps = row_indices.shape[1]
        total = np.float32(0)
        for r in range(taps):
            row = row_indices[i, r]
            line = np.float32(0)
            for c in range(taps):
                line += column_weights[j, c] * np.float32(pixels[b, row, column_indices[j, c]])
            total += row_weights[i, r] * line
        planes[b, i, j] = total


@cuda.jit(cache=True)
def blend(stack, indices, weights, first, out):
    """Write output planes `first`, `first` + 1, ... to int16 `out` (n, n_down, n_right).

    stack: float32 (slots, n_down, n_right); slice k of the scan is in slot k modulo slots.
    """
    j, i, p = cuda.grid(3)
    if p < out.shape[0] and i < out.shape[1] and j < out.shape[2]:
        slots = stack.shape[0]
        total = np.float32(0)
        for t in range(indices.shape[1]):
            total += weights[first + p, t] * stack[indices[first + p, t] % slots, i, j]
        out[p, i, j] = _held(total)


@cuda.jit(device=True)
def _interval(position, positions):
    """Index k with positions[k] <= position <= positions[k + 1]: `lungmill.interpolation.interval_of`."""
    low, high = 0, positions.shape[0] - 2
    while low < high:
        middle = (low + high + 1) // 2
        if positions[middle] <= position:
            low = middle
        else:
            high = middle - 1
    return low


@cuda.jit(device=True)
def _locate(z, y, x, positions, drift, along_z, along_y, along_x):
    """Scan coordinates of a voxel: slice k below it, fraction s to the next, row v and column u in samples."""
    along = along_z[z, 0] + along_y[y, 0] + along_x[x, 0]
    k = _interval(along, positions)
    s = (along - positions[k]) / (positions[k + 1] - positions[k])
    v = along_z[z, 1] + along_y[y, 1] + along_x[x, 1]
    u = along_z[z, 2] + along_y[y, 2] + along_x[x, 2]
    v -= drift[k, 0] + s * (drift[k + 1, 0] - drift[k, 0])
    u -= drift[k, 1] + s * (drift[k + 1, 1] - drift[k, 1])
    return k, s, v, u


@cuda.jit(device=True)
def _within(s, v, u, rows, columns):
    return (
        -EDGE_SLACK <= s <= 1 + EDGE_SLACK
        and -EDGE_SLACK <= v <= rows - 1 + EDGE_SLACK
        and -EDGE_SLACK <= u <= columns - 1 + EDGE_SLACK
    )


@cuda.jit(device=True)
def _below(coordinate, samples):
    """The sample below a coordinate, one that has another above it; 0 where there is a single sample."""
    return _clamped(int(coordinate), 0, _clamped(samples - 2, 0, samples))


@cuda.jit(cache=True)
def oblique_linear(samples, first, positions, drift, along_z, along_y, along_x, out):
    """Trilinear interpolation in the sheared lattice of the scan. A thread per voxel of a block of the volume.

    samples: int16 (n, rows, columns), slices `first`, `first` + 1, ... of the scan. positions, drift: as for the CPU.
    along_z, along_y, along_x: float64 (n, 3), what each index adds to the voxel's scan coordinates. out: int16 block.
    """
    x, y, z = cuda.grid(3)
    if z >= out.shape[0] or y >= out.shape[1] or x >= out.shape[2]:
        return
    rows, columns = samples.shape[1], samples.shape[2]
    k, s, v, u = _locate(z, y, x, positions, drift, along_z, along_y, along_x)
    if not _within(s, v, u, rows, columns):
        out[z, y, x] = AIR_HU
        return
    i, j = _below(v, rows), _below(u, columns)
    i2, j2 = _clamped(i + 1, 0, rows - 1), _clamped(j + 1, 0, columns - 1)
    a, b, c = np.float32(s), np.float32(v - i), np.float32(u - j)
    one = np.float32(1)
    k -= first
    low = (one - b) * ((one - c) * np.float32(samples[k, i, j]) + c * np.float32(samples[k, i, j2])) + b * (
        (one - c) * np.float32(samples[k, i2, j]) + c * np.float32(samples[k, i2, j2])
    )
    k += 1
    high = (one - b) * ((one - c) * np.float32(samples[k, i, j]) + c * np.float32(samples[k, i, j2])) + b * (
        (one - c) * np.float32(samples[k, i2, j]) + c * np.float32(samples[k, i2, j2])
    )
    out[z, y, x] = _held((one - a) * low + a * high)


@cuda.jit(device=True)
def _reflect(i, n):
    if i < 0:
        i = -i
    if i >= n:
        i = 2 * (n - 1) - i
    return _clamped(i, 0, n - 1)


@cuda.jit(device=True)
def _uniform_weights(s, weights):
    """The four cubic B-splines on even knots at s in [0, 1]."""
    r = np.float32(1) - s
    sixth = np.float32(1 / 6)
    weights[0] = r * r * r * sixth
    weights[1] = (np.float32(4) - np.float32(6) * s * s + np.float32(3) * s * s * s) * sixth
    weights[2] = (np.float32(4) - np.float32(6) * r * r + np.float32(3) * r * r * r) * sixth
    weights[3] = s * s * s * sixth


@cuda.jit(cache=True)
def oblique_cubic(coefficients, first, positions, drift, polynomials, along_z, along_y, along_x, out):
    """Cubic B-spline interpolation in the sheared lattice; arguments as for `oblique_linear`.

    coefficients: float32 (n, rows, columns). polynomials: from `resampling_kernels.spline_polynomials`.
    """
    x, y, z = cuda.grid(3)
    if z >= out.shape[0] or y >= out.shape[1] or x >= out.shape[2]:
        return
    rows, columns = coefficients.shape[1], coefficients.shape[2]
    k, s, v, u = _locate(z, y, x, positions, drift, along_z, along_y, along_x)
    if not _within(s, v, u, rows, columns):
        out[z, y, x] = AIR_HU
        return
    i, j = _below(v, rows), _below(u, columns)
    down = cuda.local.array(4, np.float32)
    right = cuda.local.array(4, np.float32)
    _uniform_weights(np.float32(v - i), down)
    _uniform_weights(np.float32(u - j), right)
    a = np.float32(s)
    total = np.float32(0)
    for t in range(4):
        plane = _reflect(k - 1 + t, positions.shape[0]) - first
        across = polynomials[k, t, 0] + a * (
            polynomials[k, t, 1] + a * (polynomials[k, t, 2] + a * polynomials[k, t, 3])
        )
        for r in range(4):
            row = _reflect(i - 1 + r, rows)
            line = np.float32(0)
            for c in range(4):
                line += right[c] * coefficients[plane, row, _reflect(j - 1 + c, columns)]
            total += across * down[r] * line
    out[z, y, x] = _held(total)
