"""The numba kernels of resampling voxel by voxel, for scans whose axes do not run along the patient's."""

import numpy as np
from numba import njit

from lungmill.interpolation import basis_weights, knots_around

AIR_HU = -1024
# Points this far (in samples) outside the outermost samples still count as on them: rounding of positions.
EDGE_SLACK = 1e-3


@njit(cache=True, nogil=True)
def held(value):
    """Round to the nearest HU that a volume holds."""
    return np.int16(min(max(np.rint(value), np.float32(AIR_HU)), np.float32(32767)))


@njit(cache=True, nogil=True)
def _slice_below(position, positions, k):
    """Walk from slice k to the one with positions[k] <= position <= positions[k + 1]."""
    last = len(positions) - 2
    while k < last and position > positions[k + 1]:
        k += 1
    while k > 0 and position < positions[k]:
        k -= 1
    return k


@njit(cache=True, nogil=True)
def _locate(z, y, x, k, positions, drift, start, steps):
    """Scan coordinates of a voxel: slice k below it, fraction s to the next, row v and column u in samples."""
    along = start[0] + z * steps[0, 0] + y * steps[0, 1] + x * steps[0, 2]
    k = _slice_below(along, positions, k)
    s = (along - positions[k]) / (positions[k + 1] - positions[k])
    v = start[1] + z * steps[1, 0] + y * steps[1, 1] + x * steps[1, 2]
    u = start[2] + z * steps[2, 0] + y * steps[2, 1] + x * steps[2, 2]
    v -= drift[k, 0] + s * (drift[k + 1, 0] - drift[k, 0])
    u -= drift[k, 1] + s * (drift[k + 1, 1] - drift[k, 1])
    return k, s, v, u


@njit(cache=True, nogil=True)
def _within(coordinate, samples):
    return -EDGE_SLACK <= coordinate <= samples - 1 + EDGE_SLACK


@njit(cache=True, nogil=True)
def oblique_linear(samples, positions, drift, start, steps, first, planes):
    """Trilinear interpolation in the sheared lattice of the scan.

    samples: int16 (slices, rows, columns). positions: float64 (slices,) along the normal.
    drift: float64 (slices, 2), each slice's origin in (row, column) samples. start, steps: (3,) and (3, 3), the
    (normal mm, row sample, column sample) coordinates of voxel 0 and their change per voxel of each output axis.
    planes: int16 (n, y, x), output planes from `first` on.
    """
    _, rows, columns = samples.shape
    k = 0
    for z in range(planes.shape[0]):
        for y in range(planes.shape[1]):
            for x in range(planes.shape[2]):
                k, s, v, u = _locate(first + z, y, x, k, positions, drift, start, steps)
                if not (_within(s, 2) and _within(v, rows) and _within(u, columns)):
                    planes[z, y, x] = AIR_HU
                    continue
                i = min(max(int(v), 0), max(rows - 2, 0))
                j = min(max(int(u), 0), max(columns - 2, 0))
                i2, j2 = min(i + 1, rows - 1), min(j + 1, columns - 1)
                a, b, c = np.float32(s), np.float32(v - i), np.float32(u - j)
                one = np.float32(1)
                low = (one - b) * ((one - c) * samples[k, i, j] + c * samples[k, i, j2]) + b * (
                    (one - c) * samples[k, i2, j] + c * samples[k, i2, j2]
                )
                high = (one - b) * ((one - c) * samples[k + 1, i, j] + c * samples[k + 1, i, j2]) + b * (
                    (one - c) * samples[k + 1, i2, j] + c * samples[k + 1, i2, j2]
                )
                planes[z, y, x] = held((one - a) * low + a * high)


def spline_polynomials(positions):
    """The four cubic B-splines of every interval between slices as polynomials of s in [0, 1].

    Returns float32 (slices - 1, 4, 4): weight t in interval k is sum over m of [k, t, m] * s**m.
    """
    k = np.arange(len(positions) - 1)
    s = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    knots = knots_around(positions, k)
    values = np.stack([basis_weights(knots, positions[k] + at * np.diff(positions)) for at in s], axis=1)
    return np.linalg.solve(np.vander(s, increasing=True), values).transpose(0, 2, 1).astype(np.float32)


@njit(cache=True, nogil=True)
def _reflect(i, n):
    if i < 0:
        i = -i
    if i >= n:
        i = 2 * (n - 1) - i
    return min(max(i, 0), n - 1)


@njit(cache=True, nogil=True)
def _uniform_weights(s, weights):
    """The four cubic B-splines on even knots at s in [0, 1]."""
    r = np.float32(1) - s
    sixth = np.float32(1 / 6)
    weights[0] = r * r * r * sixth
    weights[1] = (np.float32(4) - np.float32(6) * s * s + np.float32(3) * s * s * s) * sixth
    weights[2] = (np.float32(4) - np.float32(6) * r * r + np.float32(3) * r * r * r) * sixth
    weights[3] = s * s * s * sixth


@njit(cache=True, nogil=True)
def oblique_cubic(coefficients, positions, drift, polynomials, start, steps, first, planes):
    """Cubic B-spline interpolation in the sheared lattice; arguments as for `oblique_linear`.

    coefficients: float32 (slices, rows, columns). polynomials: from `spline_polynomials`.
    """
    slices, rows, columns = coefficients.shape
    across = np.empty(4, dtype=np.float32)
    down = np.empty(4, dtype=np.float32)
    right = np.empty(4, dtype=np.float32)
    column_index = np.empty(4, dtype=np.int64)
    k = 0
    for z in range(planes.shape[0]):
        for y in range(planes.shape[1]):
            for x in range(planes.shape[2]):
                k, s, v, u = _locate(first + z, y, x, k, positions, drift, start, steps)
                if not (_within(s, 2) and _within(v, rows) and _within(u, columns)):
                    planes[z, y, x] = AIR_HU
                    continue
                i = min(max(int(v), 0), max(rows - 2, 0))
                j = min(max(int(u), 0), max(columns - 2, 0))
                a = np.float32(s)
                for t in range(4):
                    p = polynomials[k, t]
                    across[t] = p[0] + a * (p[1] + a * (p[2] + a * p[3]))
                    column_index[t] = _reflect(j - 1 + t, columns)
                _uniform_weights(np.float32(v - i), down)
                _uniform_weights(np.float32(u - j), right)
                total = np.float32(0)
                for t in range(4):
                    plane = coefficients[_reflect(k - 1 + t, slices)]
                    for r in range(4):
                        row = _reflect(i - 1 + r, rows)
                        line = np.float32(0)
                        for c in range(4):
                            line += right[c] * plane[row, column_index[c]]
                        total += across[t] * down[r] * line
                planes[z, y, x] = held(total)
