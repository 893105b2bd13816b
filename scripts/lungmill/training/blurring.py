"""Gaussian blur of a volume in place, separable, with numba kernels that need only a few rows of scratch."""

import numpy as np
from numba import njit

TRUNCATE = 4.0  # standard deviations; as scipy.ndimage.gaussian_filter


def gaussian_weights(sigma):
    """The sampled Gaussian from -4 to 4 sigma, normalised, float32 (2 r + 1,)."""
    reach = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def blur_in_place(values, sigmas):
    """Blur a C-ordered float32 [z, y, x] by `sigmas` voxels per axis; the edge's voxels go on beyond the edge."""
    depth, height, width = values.shape
    for axis, sigma in enumerate(sigmas):
        weights = gaussian_weights(sigma) if sigma > 0 else np.ones(1, np.float32)
        if len(weights) == 1:
            continue
        if axis == 2:
            _blur_rows(values.reshape(depth * height, width), weights)
        else:
            _blur_columns(values.reshape((1, depth, height * width) if axis == 0 else values.shape), weights)


@njit(cache=True, nogil=True)
def _blur_rows(values, weights):
    """Along the last axis of (rows, n)."""
    n = values.shape[1]
    reach = len(weights) // 2
    padded = np.empty(n + 2 * reach, dtype=np.float32)
    for i in range(len(values)):
        row = values[i]
        padded[:reach] = row[0]
        padded[reach : reach + n] = row
        padded[reach + n :] = row[n - 1]
        row[:] = 0
        for t in range(len(weights)):
            weight = weights[t]
            for j in range(n):
                row[j] += weight * padded[j + t]


@njit(cache=True, nogil=True)
def _blur_columns(values, weights):
    """Along the middle axis of (blocks, n, columns), some columns at a time so that the scratch stays in the cache."""
    blocks, n, columns = values.shape
    reach = len(weights) // 2
    strip = min(columns, 256)
    source = np.empty((n, strip), dtype=np.float32)
    for block in range(blocks):
        for first in range(0, columns, strip):
            width = min(strip, columns - first)
            source[:, :width] = values[block, :, first : first + width]
            for i in range(n):
                row = values[block, i, first : first + width]
                row[:] = 0
                for t in range(len(weights)):
                    weight = weights[t]
                    line = source[min(max(i + t - reach, 0), n - 1)]
                    for j in range(width):
                        row[j] += weight * line[j]
