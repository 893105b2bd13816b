"""The numba kernels for scans whose axes run along the patient's: one slice in its plane, then planes across slices.

Every pass runs along contiguous memory, so that it becomes vector instructions: down the rows as they lie, along the
rows over a transposed strip of them, across the slices tile by tile. A spline's coefficients are solved for in the same
passes (`lungmill.interpolation`): elimination on the way there, substitution on the way back, and what is interpolated
follows the substitution while its rows are still in the cache.
"""

import numpy as np
from numba import njit

from lungmill.resampling_kernels import held

# Rows that are transposed together, and columns of a block of such a transposition: both small enough for the caches.
STRIP, BLOCK = 64, 16
# Pixels of a plane that are taken through all planes at once.
TILE = 4096


# Loops of their own function over the length of what they write: others LLVM leaves as they are, four times as slow.
@njit(cache=True, nogil=True)
def _copy(row, out):
    for j in range(len(out)):
        out[j] = np.float32(row[j])


@njit(cache=True, nogil=True)
def _take_off(row, before, factor, out):
    for j in range(len(out)):
        out[j] = np.float32(row[j]) - factor * before[j]


@njit(cache=True, nogil=True)
def _eliminate(row, before, factor):
    for j in range(len(row)):
        row[j] -= factor * before[j]


@njit(cache=True, nogil=True)
def _substitute(row, after, upper, inverse):
    for j in range(len(row)):
        row[j] = (row[j] - upper * after[j]) * inverse


@njit(cache=True, nogil=True)
def _scale(row, inverse):
    for j in range(len(row)):
        row[j] *= inverse


@njit(cache=True, nogil=True)
def _mix_two(rows, indices, weights, out):
    a, b = rows[indices[0]], rows[indices[1]]
    u, v = weights[0], weights[1]
    for j in range(len(out)):
        out[j] = u * np.float32(a[j]) + v * np.float32(b[j])


@njit(cache=True, nogil=True)
def _mix_four(rows, indices, weights, out):
    a, b, c, d = rows[indices[0]], rows[indices[1]], rows[indices[2]], rows[indices[3]]
    u, v, w, x = weights[0], weights[1], weights[2], weights[3]
    for j in range(len(out)):
        out[j] = u * a[j] + v * b[j] + w * c[j] + x * d[j]


@njit(cache=True, nogil=True)
def _transpose(rows, columns):
    """Copy `rows` (m, n) to `columns` (n, m), in blocks that stay in the cache."""
    m, n = rows.shape
    whole = n // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        for r in range(m):
            row = rows[r]
            for c in range(BLOCK):
                columns[start + c, r] = row[start + c]
    for r in range(m):
        for c in range(whole, n):
            columns[c, r] = rows[r, c]


@njit(cache=True, nogil=True)
def linear_plane(pixels, down, right, plane):
    """Interpolate one slice linearly: pixels (rows, columns) to float32 `plane` (n_down, n_right).

    down, right: (indices, weights) of an `Axis`.
    """
    (row_indices, row_weights), (column_indices, column_weights) = down, right
    row = np.empty(pixels.shape[1], dtype=np.float32)
    for d in range(plane.shape[0]):
        _mix_two(pixels, row_indices[d], row_weights[d], row)
        out = plane[d]
        for j in range(len(out)):
            left, after = row[column_indices[j, 0]], row[column_indices[j, 1]]
            out[j] = column_weights[j, 0] * left + column_weights[j, 1] * after


@njit(cache=True, nogil=True)
def cubic_plane(pixels, down, right, rows, before, factor, plane):
    """Interpolate one slice with cubic B-splines: pixels (rows, columns) to float32 `plane` (n_down, n_right).

    down, right: (indices, weights, lower, upper, inverse, order) of an `Axis`; order: its outputs, those first that
    need the last coefficients. rows: scratch, float32 like pixels. Then the slice's own elimination across the slices:
    factor * `before` is taken off, the plane of the slice before (any plane where factor is 0).
    """
    indices, weights, lower, upper, inverse, order = down
    n, columns = pixels.shape
    _copy(pixels[0], rows[0])
    for i in range(1, n):
        _take_off(pixels[i], rows[i - 1], lower[i], rows[i])
    _scale(rows[n - 1], inverse[n - 1])
    solved = n - 1
    strip = np.zeros((STRIP, columns), dtype=np.float32)
    turned = np.empty((columns, STRIP), dtype=np.float32)
    mixed = np.empty((plane.shape[1], STRIP), dtype=np.float32)
    finished = np.empty((STRIP, plane.shape[1]), dtype=np.float32)
    for start in range(0, len(order), STRIP):
        count = min(STRIP, len(order) - start)
        for r in range(count):
            wanted = indices[order[start + r]]
            while solved > wanted.min():
                solved -= 1
                _substitute(rows[solved], rows[solved + 1], upper[solved], inverse[solved])
            _mix_four(rows, wanted, weights[order[start + r]], strip[r])
        _transpose(strip, turned)
        _cubic_rows(turned, right, mixed)
        _transpose(mixed, finished)
        for r in range(count):
            place = order[start + r]
            if factor == 0:
                _copy(finished[r], plane[place])
            else:
                _take_off(finished[r], before[place], factor, plane[place])


@njit(cache=True, nogil=True)
def _cubic_rows(rows, axis, out):
    """Interpolate along axis 0 of float32 `rows` (n, m), which become coefficients, to `out` (n_out, m)."""
    indices, weights, lower, upper, inverse, _ = axis
    n = rows.shape[0]
    for i in range(1, n):
        _eliminate(rows[i], rows[i - 1], lower[i])
    _scale(rows[n - 1], inverse[n - 1])
    for i in range(n - 2, -1, -1):
        _substitute(rows[i], rows[i + 1], upper[i], inverse[i])
    for j in range(out.shape[0]):
        _mix_four(rows, indices[j], weights[j], out[j])


@njit(cache=True, nogil=True)
def _blend_two(a, b, u, v, out):
    for j in range(len(out)):
        out[j] = held(u * a[j] + v * b[j])


@njit(cache=True, nogil=True)
def _blend_four(a, b, c, d, u, v, w, x, out):
    for j in range(len(out)):
        out[j] = held(u * a[j] + v * b[j] + w * c[j] + x * d[j])


@njit(cache=True, nogil=True)
def substitute_and_blend(stack, done, upper, inverse, indices, weights, out):
    """Turn plane k of float32 `stack` (slices, pixels) into coefficients and blend output planes of all that is done.

    upper, inverse: of slice k, inverse 0 where there is nothing to solve. indices, weights: (n, 2) or (n, 4) of the
    output planes. out: int16 (n, pixels), rounded and held to [-1024, 32767].
    """
    last = stack.shape[0] - 1
    four = indices.shape[1] == 4
    for start in range(0, stack.shape[1], TILE):
        stop = min(start + TILE, stack.shape[1])
        if inverse != 0:
            if done == last:
                _scale(stack[done, start:stop], inverse)
            else:
                _substitute(stack[done, start:stop], stack[done + 1, start:stop], upper, inverse)
        for i in range(len(out)):
            k, v = indices[i], weights[i]
            a, b = stack[k[0], start:stop], stack[k[1], start:stop]
            if four:
                c, d = stack[k[2], start:stop], stack[k[3], start:stop]
                _blend_four(a, b, c, d, v[0], v[1], v[2], v[3], out[i, start:stop])
            else:
                _blend_two(a, b, v[0], v[1], out[i, start:stop])
