"""Each plane of a block predicted from the planes before it: the arithmetic of the codec "lungmill.planes".

Everything is in integers that wrap, except the fit of the weights, which are stored. So any block of int16 comes back
exactly, on every machine, whatever the weights are worth.
"""

import numpy as np
from numba import njit

TAPS = 6  # planes that a plane is predicted from; 4 and 8: 4 % larger and 1 % smaller on a volume resampled by splines
PRECISION = 11  # bits of a weight behind the binary point; an int16 holds weights up to 16

# Variance of the error that rounding to integers adds to every voxel. It keeps apart planes that are otherwise
# combinations of each other, as planes interpolated from the same slices are.
ROUNDING = 1 / 12


BASE = -1024  # air, in HU: predicted exactly, whatever the weights


def encode_block(block, level):
    """Bytes of an int16 block [z, y, x]: the weights, int16 [z, TAPS] little-endian, and a Blosc buffer.

    The buffer holds, [z, y, x] as uint16, twice the miss where it is positive and one less than twice its size where it
    is negative. level: of zstd in Blosc, 0 to 9.
    """
    from numcodecs import blosc

    block = np.ascontiguousarray(block, np.int16)
    weights = fit_weights(block, BASE)
    residuals = to_residuals(block, weights, BASE)
    coder = blosc.Blosc("zstd", clevel=level, shuffle=blosc.BITSHUFFLE, blocksize=residuals.nbytes)
    return weights.astype("<i2").tobytes() + coder.encode(residuals.astype("<u2", copy=False))


def decode_block(encoded, shape):
    """The int16 block of this shape that `encode_block` gave these bytes of."""
    from numcodecs import blosc

    size = 2 * TAPS * shape[0]
    weights = np.frombuffer(encoded[:size], "<i2").astype(np.int16).reshape(shape[0], TAPS)
    residuals = np.frombuffer(blosc.decompress(encoded[size:]), "<u2").astype(np.uint16, copy=False)
    return from_residuals(residuals.reshape(shape), weights, BASE)


@njit(cache=True, nogil=True)
def fit_weights(block, base):
    """Least-squares weights [z, TAPS], int16, with which the planes z-1, z-2 .. of `block` add up to plane z.

    block: int16 [z, y, x]. base: what is subtracted from every voxel first.
    """
    depth = len(block)
    planes = block.reshape(depth, -1)
    size = planes.shape[1]
    products = np.zeros((depth, TAPS + 1), np.int64)  # of plane z with plane z - k
    weights = np.zeros((depth, TAPS), np.int16)
    for z in range(depth):
        taps = min(TAPS, z)
        for k in range(taps + 1):
            total = np.int64(0)
            one, other = planes[z], planes[z - k]
            for i in range(size):
                total += np.int64(np.int32(one[i]) - base) * np.int64(np.int32(other[i]) - base)
            products[z, k] = total
        system = np.empty((taps, taps + 1))
        for i in range(taps):
            for j in range(taps):
                system[i, j] = products[z - 1 - min(i, j), abs(i - j)]
            system[i, i] += size * ROUNDING
            system[i, taps] = products[z, i + 1]
        _solve(system)
        for i in range(taps):
            weights[z, i] = max(-32768, min(32767, np.rint(system[i, taps] * (1 << PRECISION))))
    return weights


@njit(cache=True, nogil=True)
def _solve(system):
    """Gaussian elimination of a positive definite system [n, n + 1] in place; the last column becomes the solution."""
    n = len(system)
    for i in range(n):
        for row in range(i + 1, n):
            factor = system[row, i] / system[i, i]
            for column in range(i, n + 1):
                system[row, column] -= factor * system[i, column]
    for i in range(n - 1, -1, -1):
        for column in range(i + 1, n):
            system[i, n] -= system[i, column] * system[column, n]
        system[i, n] /= system[i, i]


@njit(cache=True, nogil=True)
def _predict(planes, z, base, weights, predicted):
    """What the planes before z say of plane z, relative to base, into `predicted`, int32. Planes are flat."""
    a, b, c = planes[max(z - 1, 0)], planes[max(z - 2, 0)], planes[max(z - 3, 0)]
    d, e, f = planes[max(z - 4, 0)], planes[max(z - 5, 0)], planes[max(z - 6, 0)]
    u, v, w = np.int32(weights[z, 0]), np.int32(weights[z, 1]), np.int32(weights[z, 2])
    r, s, t = np.int32(weights[z, 3]), np.int32(weights[z, 4]), np.int32(weights[z, 5])
    start = np.int32((1 << (PRECISION - 1)) - base * (u + v + w + r + s + t))
    for i in range(len(predicted)):
        total = np.int32(start + u * a[i] + v * b[i] + w * c[i] + r * d[i] + s * e[i] + t * f[i])
        predicted[i] = total >> PRECISION


@njit(cache=True, nogil=True)
def _median_edge(plane, y, x, base):
    """The first plane has none before it: the predictor of JPEG-LS (ITU-T T.87, A.4.2), from left, above and both."""
    if y == 0:
        return np.int32(plane[0, x - 1]) if x > 0 else np.int32(base)
    above = np.int32(plane[y - 1, x])
    if x == 0:
        return above
    left = np.int32(plane[y, x - 1])
    corner = np.int32(plane[y - 1, x - 1])
    if corner >= max(left, above):
        return min(left, above)
    if corner <= min(left, above):
        return max(left, above)
    return left + above - corner


@njit(cache=True, nogil=True)
def to_residuals(block, weights, base):
    """What the prediction misses, as uint16 with the sign in the lowest bit: small numbers, either side of 0."""
    depth, height, width = block.shape
    size = height * width
    planes = block.reshape(depth, size)
    residuals = np.empty((depth, size), np.uint16)
    predicted = np.empty(size, np.int32)
    for z in range(depth):
        if z == 0:
            for i in range(size):
                predicted[i] = _median_edge(block[0], i // width, i % width, base) - base
        else:
            _predict(planes, z, base, weights, predicted)
        plane, missed = planes[z], residuals[z]
        for i in range(size):
            miss = np.int16(np.int32(plane[i]) - base - predicted[i])
            missed[i] = np.uint16((miss << 1) ^ (miss >> 15))
    return residuals.reshape(block.shape)


@njit(cache=True, nogil=True)
def from_residuals(residuals, weights, base):
    """The block of which `to_residuals` gave these residuals with these weights."""
    depth, height, width = residuals.shape
    size = height * width
    block = np.empty(residuals.shape, np.int16)
    planes = block.reshape(depth, size)
    missed = residuals.reshape(depth, size)
    predicted = np.empty(size, np.int32)
    for i in range(size):
        y, x = i // width, i % width
        block[0, y, x] = np.int16(_median_edge(block[0], y, x, base) + _signed(missed[0, i]))
    for z in range(1, depth):
        _predict(planes, z, base, weights, predicted)
        plane, coded = planes[z], missed[z]
        for i in range(size):
            plane[i] = np.int16(_signed(coded[i]) + predicted[i] + base)
    return block


@njit(cache=True, nogil=True)
def _signed(coded):
    return np.int32(coded >> 1) ^ -np.int32(coded & 1)
