"""One-dimensional interpolation along one axis of a scan, as tables: indices, weights and, for splines, a prefilter."""

from dataclasses import dataclass

import numpy as np
from numba import njit

METHODS = ("linear", "cubic")


@dataclass(frozen=True)
class Axis:
    """How to interpolate along one axis: output i = sum over t of `weights[i, t] * coefficients[indices[i, t]]`.

    indices: int32 (n_out, taps) into the samples. weights: float32 (n_out, taps).
    spline: `Tridiagonal` that turns samples into B-spline coefficients, None for linear interpolation.
    """

    indices: np.ndarray
    weights: np.ndarray
    spline: "Tridiagonal | None"


@dataclass(frozen=True)
class Tridiagonal:
    """Factors of the B-spline collocation matrix, float32 (n,): solve with `solve_rows` or `solve_columns`."""

    lower: np.ndarray
    upper: np.ndarray
    inverse_diagonal: np.ndarray


def make_axis(samples_mm, targets_mm, method: str) -> Axis:
    """Tables that interpolate from `samples_mm` (strictly ascending or descending, any distances) at `targets_mm`.

    method: `linear`, or `cubic` for the interpolating cubic B-spline on the samples' own knots, mirrored at both ends
    (on even samples this is scipy.ndimage's order 3 with mode 'mirror'). Targets beyond the ends take the end's value.
    """
    samples = np.asarray(samples_mm, dtype=np.float64)
    flipped = len(samples) > 1 and samples[0] > samples[-1]
    if flipped:
        samples = samples[::-1]
    targets = np.clip(np.asarray(targets_mm, dtype=np.float64), samples[0], samples[-1])
    if method == "linear":
        indices, weights = _linear(samples, targets)
        spline = None
    elif method == "cubic":
        indices, weights = _cubic(samples, targets)
        spline = factor(samples if not flipped else -samples[::-1])
    else:
        raise ValueError(f"interpolation {method!r} is not one of {', '.join(METHODS)}")
    if flipped:
        indices = len(samples) - 1 - indices
    return Axis(np.ascontiguousarray(indices, dtype=np.int32), weights.astype(np.float32), spline)


def interval_of(samples, targets):
    """Index k with samples[k] <= target <= samples[k + 1]; 0 where there is a single sample."""
    return np.clip(np.searchsorted(samples, targets, side="right") - 1, 0, max(len(samples) - 2, 0))


def _linear(samples, targets):
    k = interval_of(samples, targets)
    last = np.minimum(k + 1, len(samples) - 1)
    width = np.where(last > k, samples[last] - samples[k], 1.0)
    fraction = (targets - samples[k]) / width
    return np.stack([k, last], axis=1), np.stack([1 - fraction, fraction], axis=1)


def _cubic(samples, targets):
    k = interval_of(samples, targets)
    indices = reflect(k[:, None] + np.arange(-1, 3), len(samples))
    return indices, basis_weights(knots_around(samples, k), targets)


def reflect(indices, n: int):
    """Mirror indices at the first and the last of n samples, without repeating these."""
    if n == 1:
        return np.zeros_like(indices)
    period = 2 * (n - 1)
    folded = np.mod(indices, period)
    return np.where(folded < n, folded, period - folded)


def knots_around(samples, k):
    """The six knots samples[k - 2] ... samples[k + 3], mirrored beyond the ends: float64 (len(k), 6)."""
    n = len(samples)
    if n == 1:
        return samples[0] + np.arange(-2.0, 4.0) + np.zeros((len(k), 1))
    wanted = k[:, None] + np.arange(-2, 4)
    before, after = 2 * samples[0] - samples[::-1][:-1], 2 * samples[-1] - samples[::-1][1:]
    extended = np.concatenate([before, samples, after])
    # Two or three samples do not reach far enough in one mirror image: go on at the last distance.
    for _ in range(3):
        extended = np.concatenate(
            [[2 * extended[0] - extended[1]], extended, [2 * extended[-1] - extended[-2]]]
        )  # fmt: skip
    return extended[wanted + len(before) + 3]


def basis_weights(knots, targets):
    """The four cubic B-splines that are not zero between knots[:, 2] and knots[:, 3], at `targets`.

    Cox - de Boor recursion (de Boor, A Practical Guide to Splines, 1978, X). Returns float64 (n, 4).
    """
    left, right = targets[:, None] - knots[:, 2::-1], knots[:, 3:] - targets[:, None]
    weights = np.zeros((len(targets), 4))
    weights[:, 0] = 1.0
    for degree in range(1, 4):
        saved = np.zeros(len(targets))
        for j in range(degree):
            term = weights[:, j] / (right[:, j] + left[:, degree - 1 - j])
            weights[:, j] = saved + right[:, j] * term
            saved = left[:, degree - 1 - j] * term
        weights[:, degree] = saved
    return weights


def factor(samples) -> Tridiagonal:
    """LU factors of the matrix that maps B-spline coefficients to the samples, mirrored at both ends.

    The matrix is totally positive, so no pivoting is needed (de Boor and Pinkus, 1977).
    """
    samples = np.asarray(samples, dtype=np.float64)
    n = len(samples)
    if n == 1:
        one = np.ones(1, dtype=np.float32)
        return Tridiagonal(0 * one, 0 * one, one)
    k = np.arange(n)
    rows = basis_weights(knots_around(samples, k), samples)[:, :3]
    below, diagonal, above = rows[:, 0].copy(), rows[:, 1].copy(), rows[:, 2].copy()
    above[0] += below[0]
    below[-1] += above[-1]
    lower, inverse = np.zeros(n), np.zeros(n)
    inverse[0] = 1 / diagonal[0]
    for i in range(1, n):
        lower[i] = below[i] * inverse[i - 1]
        inverse[i] = 1 / (diagonal[i] - lower[i] * above[i - 1])
    return Tridiagonal(*(part.astype(np.float32) for part in (lower, above, inverse)))


@njit(cache=True, nogil=True)
def solve_columns(block, lower, upper, inverse):
    """Turn samples along axis 0 of float32 (n, m) into B-spline coefficients, in place."""
    n, m = block.shape
    for i in range(1, n):
        for j in range(m):
            block[i, j] -= lower[i] * block[i - 1, j]
    for j in range(m):
        block[n - 1, j] *= inverse[n - 1]
    for i in range(n - 2, -1, -1):
        for j in range(m):
            block[i, j] = (block[i, j] - upper[i] * block[i + 1, j]) * inverse[i]


@njit(cache=True, nogil=True)
def solve_rows(block, lower, upper, inverse):
    """Turn samples along axis 1 of float32 (m, n) into B-spline coefficients, in place."""
    m, n = block.shape
    for row in range(m):
        for i in range(1, n):
            block[row, i] -= lower[i] * block[row, i - 1]
        block[row, n - 1] *= inverse[n - 1]
        for i in range(n - 2, -1, -1):
            block[row, i] = (block[row, i] - upper[i] * block[row, i + 1]) * inverse[i]
