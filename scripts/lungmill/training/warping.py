"""The numba kernels of augmentation: composed source coordinates, then one interpolation of image and mask.

Some rows of the result are worked on at a time. Their source coordinates are computed into small buffers (affine maps
and cubic B-spline displacements composed in float64), brought back into the source by the fill mode, and used for the
image (linear) and the mask (nearest). Arrays come flat, with their strides in elements, so that any view is read where
it is. Interpolation is in float32. Everything is serial: a result never depends on a number of threads.
"""

import numpy as np
from numba import njit

NEAREST, CONSTANT, REFLECT, WRAP = range(4)
# Coordinates this far outside the outermost pixels still count as on them: rounding of composed coordinates.
EDGE_SLACK = 1e-6
BLOCK = 512  # pixels worked on at a time, at least one row: the buffers stay in the first cache


@njit(cache=True, nogil=True)
def _fold(coordinate, n, mode):
    """Bring a coordinate beyond the edges into [0, n - 1] ([0, n) to wrap); -1 where only the constant is."""
    if mode == CONSTANT and not -EDGE_SLACK <= coordinate <= n - 1 + EDGE_SLACK:
        return -1.0
    if mode == REFLECT:
        coordinate = (coordinate + 0.5) % (2.0 * n)
        coordinate = min(coordinate, 2.0 * n - coordinate) - 0.5
    if mode == WRAP:
        coordinate %= n
        return coordinate if coordinate < n else 0.0
    return min(max(coordinate, 0.0), n - 1.0)


@njit(cache=True, nogil=True)
def _place(coordinates, n, mode, index, fraction, outside):
    """Split one axis' coordinates into index and fraction; mark what is outside. Returns whether any is."""
    top = n - 1.0
    lost = False
    if mode == NEAREST:
        for j in range(len(coordinates)):
            coordinate = min(max(coordinates[j], 0.0), top)
            index[j] = np.int32(coordinate)
            fraction[j] = np.float32(coordinate - index[j])
        return lost
    beyond = 0
    for j in range(len(coordinates)):
        beyond += (coordinates[j] < 0) | (coordinates[j] > top)
    if beyond:
        for j in range(len(coordinates)):
            if not 0 <= coordinates[j] <= top:
                coordinates[j] = _fold(coordinates[j], n, mode)
                if coordinates[j] < 0:
                    lost = outside[j] = True
                    coordinates[j] = 0.0
    for j in range(len(coordinates)):
        index[j] = np.int32(coordinates[j])
        fraction[j] = np.float32(coordinates[j] - index[j])
    return lost


@njit(cache=True, nogil=True)
def _address(index, n, mode, stride, base, step):
    """Add one axis to the flat address of each pixel, and find the step to its upper neighbour along that axis."""
    last = (1 - n) * stride if mode == WRAP else 0
    narrow = np.int64(np.int32(stride))  # a product of two int32 is a fast vector instruction, one of int64 is not
    for j in range(len(index)):
        base[j] += index[j] * narrow
        step[j] = stride if index[j] < n - 1 else last


@njit(cache=True, nogil=True)
def _address_nearest(index, fraction, n, mode, stride, base):
    """Add one axis to the flat address of the nearest pixel."""
    last = np.int32(0 if mode == WRAP else n - 1)
    end = np.int32(n)
    narrow = np.int64(np.int32(stride))
    for j in range(len(index)):
        near = np.int32(index[j] + np.int32(fraction[j] >= np.float32(0.5)))
        base[j] += np.int64(near if near < end else last) * narrow


@njit(cache=True, nogil=True)
def _bilinear(image, start, base, steps, fractions, row):
    one = np.float32(1)
    for j in range(len(row)):
        # unsigned: no test for negative indices, so that the loop becomes vector gathers
        k, down, right = np.uint64(start + base[j]), np.uint64(steps[1, j]), np.uint64(steps[2, j])
        b, a = fractions[1, j], fractions[2, j]
        upper = (one - a) * image[k] + a * image[k + right]
        lower = (one - a) * image[k + down] + a * image[k + down + right]
        row[j] = (one - b) * upper + b * lower


@njit(cache=True, nogil=True)
def _trilinear(image, start, base, steps, fractions, row):
    one = np.float32(1)
    for j in range(len(row)):
        k = np.uint64(start + base[j])
        above, down, right = np.uint64(steps[0, j]), np.uint64(steps[1, j]), np.uint64(steps[2, j])
        c, b, a = fractions[0, j], fractions[1, j], fractions[2, j]
        upper = (one - a) * image[k] + a * image[k + right]
        lower = (one - a) * image[k + down] + a * image[k + down + right]
        here = (one - b) * upper + b * lower
        k += above
        upper = (one - a) * image[k] + a * image[k + right]
        lower = (one - a) * image[k + down] + a * image[k + down + right]
        row[j] = (one - c) * here + c * ((one - b) * upper + b * lower)


@njit(cache=True, nogil=True)
def exchange(labels, swaps):
    """Exchange pairs of labels (k, 2), one pair after the other, in a flat array."""
    for k in range(len(swaps)):
        a, b = swaps[k]
        for j in range(len(labels)):
            labels[j] = b if labels[j] == a else a if labels[j] == b else labels[j]


@njit(cache=True, nogil=True)
def _labels(mask, start, base, outside, lost, fill, swaps, row):
    for j in range(len(row)):
        row[j] = mask[np.uint64(start + base[j])]
    exchange(row, swaps)
    if lost:
        row[outside] = fill


@njit(cache=True, nogil=True)
def _spline_weights(s):
    """The four cubic B-splines on even knots at s in [0, 1]."""
    r = 1 - s
    return r * r * r / 6, (4 - 6 * s * s + 3 * s * s * s) / 6, (4 - 6 * r * r + 3 * r * r * r) / 6, s * s * s / 6


@njit(cache=True, nogil=True)
def _interval(g, n):
    """Knot k in [-2, n] below the position g in a lattice of n control points, and the fraction to the next one.

    Beyond those knots a spline whose outermost points go on for ever is constant.
    """
    g = min(max(g, -2.0), n + 1.0)
    k = min(int(np.floor(g)), n)
    return k, g - k


@njit(cache=True, nogil=True)
def _spline_table(start, step, n, first, weights):
    """First of the four points in a padded line, and weights (4, length), at the positions start + j * step."""
    for j in range(len(first)):
        k, s = _interval(start + j * step, n)
        first[j] = k + 2
        weights[0, j], weights[1, j], weights[2, j], weights[3, j] = _spline_weights(s)


@njit(cache=True, nogil=True)
def _displace_rows(control, gz, gy, step, first, weights, line, rows):
    """Add the displacements (one component) of rows that lie at gy, gy + step, ... in the plane gz of a lattice.

    control: float32 (nz, ny, nx); beyond its ends the outermost points go on. line: scratch, nx + 6.
    """
    nz, ny, nx = control.shape
    width = len(first)
    kz, sz = _interval(gz, nz)
    down = _spline_weights(sz)
    for r in range(len(rows) // width):
        ky, sy = _interval(gy + r * step, ny)
        across = _spline_weights(sy)
        line[:] = 0
        for p in range(4):
            z = min(max(kz - 1 + p, 0), nz - 1)
            for q in range(4):
                y = min(max(ky - 1 + q, 0), ny - 1)
                weight = down[p] * across[q]
                for x in range(nx + 6):
                    line[x] += weight * control[z, y, min(max(x - 3, 0), nx - 1)]
        row = rows[r * width : (r + 1) * width]
        for j in range(width):
            k = np.uint64(first[j])
            low = weights[0, j] * line[k] + weights[1, j] * line[k + np.uint64(1)]
            row[j] += low + weights[2, j] * line[k + np.uint64(2)] + weights[3, j] * line[k + np.uint64(3)]


@njit(cache=True, nogil=True)
def _displace_points(control, scale, origin, points):
    """Add the displacements at points (3, length) anywhere."""
    _, nz, ny, nx = control.shape
    for j in range(points.shape[1]):
        kz, sz = _interval(points[0, j] * scale[0] + origin[0], nz)
        ky, sy = _interval(points[1, j] * scale[1] + origin[1], ny)
        kx, sx = _interval(points[2, j] * scale[2] + origin[2], nx)
        wz, wy, (w0, w1, w2, w3) = _spline_weights(sz), _spline_weights(sy), _spline_weights(sx)
        x0, x1 = min(max(kx - 1, 0), nx - 1), min(max(kx, 0), nx - 1)
        x2, x3 = min(max(kx + 1, 0), nx - 1), min(max(kx + 2, 0), nx - 1)
        dz = dy = dx = 0.0
        for p in range(4):
            z = min(max(kz - 1 + p, 0), nz - 1)
            for q in range(4):
                y = min(max(ky - 1 + q, 0), ny - 1)
                w = wz[p] * wy[q]
                c = control[0, z, y]
                dz += w * (w0 * c[x0] + w1 * c[x1] + w2 * c[x2] + w3 * c[x3])
                c = control[1, z, y]
                dy += w * (w0 * c[x0] + w1 * c[x1] + w2 * c[x2] + w3 * c[x3])
                c = control[2, z, y]
                dx += w * (w0 * c[x0] + w1 * c[x1] + w2 * c[x2] + w3 * c[x3])
        points[0, j] += dz
        points[1, j] += dy
        points[2, j] += dx


@njit(cache=True, nogil=True)
def _start_rows(matrix, z, y, x, width, rows):
    """One coordinate of the pixels from (z, y, x) on, row by row, through one line of a matrix."""
    for r in range(len(rows) // width):
        row = rows[r * width : (r + 1) * width]  # apart: only then the loop is compiled to vector stores
        start, step = matrix[0] * z + matrix[1] * (y + r) + matrix[3], matrix[2]
        for j in range(width):
            row[j] = start + step * (x + j)


@njit(cache=True, nogil=True)
def _map(matrix, zs, ys, xs):
    """Send points through a matrix, in place."""
    m = matrix
    for j in range(len(zs)):
        z, y, x = zs[j], ys[j], xs[j]
        zs[j] = m[0, 0] * z + m[0, 1] * y + m[0, 2] * x + m[0, 3]
        ys[j] = m[1, 0] * z + m[1, 1] * y + m[1, 2] * x + m[1, 3]
        xs[j] = m[2, 0] * z + m[2, 1] * y + m[2, 2] * x + m[2, 3]


@njit(cache=True, nogil=True)
def _finish(rows, shift, limits):
    """Add `shift`; round and hold to `limits` where they are finite."""
    low, high = limits
    for j in range(len(rows)):
        rows[j] += shift
    if np.isfinite(low):
        for j in range(len(rows)):
            rows[j] = min(max(np.rint(rows[j]), low), high)


@njit(cache=True, nogil=True)
def _copy(row, line):
    for j in range(len(row)):
        line[j] = row[j]


@njit(cache=True, nogil=True)
def _store(rows, width, out, start, strides):
    """Write rows to their places in the flat result."""
    for r in range(len(rows) // width):
        address = start + r * strides[2]
        if strides[3] == 1:
            _copy(rows[r * width : (r + 1) * width], out[address : address + width])
        else:
            for j in range(width):
                out[address + j * strides[3]] = rows[r * width + j]


@njit(cache=True, nogil=True)
def _trace(z, y, x, axes, matrices, controls, lattices, straight, first, weights, line, points):
    """Fill `points` with the source coordinates of the rows of the result from (z, y, x) on."""
    for axis in axes:
        _start_rows(matrices[0, axis], z, y, x, len(first), points[axis])
    end = 0
    for k in range(len(lattices)):
        n, scale, origin = lattices[k]
        begin, end = end, end + 3 * int(n[0] * n[1] * n[2])
        control = controls[begin:end].reshape((3, int(n[0]), int(n[1]), int(n[2])))
        if straight and k == 0:
            gz, gy = points[0, 0] * scale[0] + origin[0], points[1, 0] * scale[1] + origin[1]
            step = matrices[0, 1, 1] * scale[1]
            for axis in axes:
                _displace_rows(control[axis], gz, gy, step, first, weights, line, points[axis])
        else:
            _displace_points(control, scale, origin, points)
        _map(matrices[k + 1], points[0], points[1], points[2])


@njit(cache=True, nogil=True)
def warp(
    image, image_start, image_layout, mask, mask_start, mask_layout, in_plane, mode, window, matrices, controls,
    lattices, straight, fill, shift, limits, mask_fill, swaps, out, out_mask,
):  # fmt: skip
    """Transform an image (channels, z, y, x) and its mask in one pass.

    image, mask: flat, with the address of their first pixel. image_layout, mask_layout: int64 (3, 4): shape, strides
    and strides of the result, for channel, z, y, x; no mask has no channels. in_plane: there is a single plane, which
    no coordinate leaves. window: int64 (2, 3): first pixel and
    shape of the result. matrices: float64 (k + 1, 3, 4), from pixels of the result to the source, with k elastic
    displacements in between: points go through matrices[0], are displaced, go through matrices[1], and so on.
    controls: float32, the displacements' control points (3, nz, ny, nx) in pixels, one set after the other. lattices:
    float64 (k, 3, 3): number of control points, control points per pixel, and where pixel 0 lies, for z, y, x.
    straight: matrices[0] is diagonal, so that the first displacements can be looked up row by row. fill, mask_fill:
    what stands outside where the mode is CONSTANT. shift: added to all of the image. limits: float32 (2,), what the
    result is rounded and held to; infinite leaves it. swaps: (k, 2) pairs of labels to exchange.
    """
    shape = image_layout[0, 1:]
    depth, height, width = window[1]
    axes = range(1 if in_plane else 0, 3)
    per_block = min(max(1, BLOCK // width), height)
    n = per_block * width
    points, steps = np.zeros((3, n)), np.empty((3, n), dtype=np.int64)
    index, fractions = np.empty((3, n), dtype=np.int32), np.empty((3, n), dtype=np.float32)
    base, outside = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_)
    rows, labels = np.empty(n, dtype=np.float32), np.empty(n, dtype=mask.dtype)
    first, weights = np.empty(width, dtype=np.int64), np.empty((4, width))
    line = np.empty(int(lattices[0, 0, 2]) + 6 if straight else 0)
    if straight:
        step = matrices[0, 2, 2] * lattices[0, 1, 2]
        start = matrices[0, 2, 3] * lattices[0, 1, 2] + lattices[0, 2, 2]
        _spline_table(start + window[0, 2] * step, step, int(lattices[0, 0, 2]), first, weights)
    blocks = -(-height // per_block)
    for block in range(depth * blocks):
        z, y = block // blocks, min(block % blocks * per_block, height - per_block)  # the last may overlap: same values
        top = window[0]
        _trace(
            top[0] + z, top[1] + y, top[2], axes, matrices, controls, lattices, straight, first, weights, line, points
        )
        outside[:] = False
        lost = False
        for axis in axes:
            lost |= _place(points[axis], shape[axis], mode, index[axis], fractions[axis], outside)
        base[:] = 0
        for axis in axes:
            _address(index[axis], shape[axis], mode, image_layout[1, axis + 1], base, steps[axis])
        for channel in range(image_layout[0, 0]):
            start = image_start + channel * image_layout[1, 0]
            if in_plane:
                _bilinear(image, start, base, steps, fractions, rows)
            else:
                _trilinear(image, start, base, steps, fractions, rows)
            if lost:
                rows[outside] = fill
            _finish(rows, shift, limits)
            start = channel * image_layout[2, 0] + z * image_layout[2, 1] + y * image_layout[2, 2]
            _store(rows, width, out, start, image_layout[2])
        if mask_layout[0, 0] == 0:
            continue
        base[:] = 0
        for axis in axes:
            _address_nearest(index[axis], fractions[axis], shape[axis], mode, mask_layout[1, axis + 1], base)
        for channel in range(mask_layout[0, 0]):
            start = mask_start + channel * mask_layout[1, 0]
            _labels(mask, start, base, outside, lost, mask_fill, swaps, labels)
            start = channel * mask_layout[2, 0] + z * mask_layout[2, 1] + y * mask_layout[2, 2]
            _store(labels, width, out_mask, start, mask_layout[2])
