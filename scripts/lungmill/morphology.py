"""Shapes on a grid of blocks: balls, short distances, components, enclosed structures, growing from seeds."""

import numpy as np
from numba import njit


def components(mask):
    """Label face-connected components: (uint32 labels, voxel counts indexed by label; 0 is the background)."""
    import cc3d

    labels = cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32, binary_image=True)
    return labels, count_labels(labels, int(labels.max(initial=0)) + 1)


@njit(cache=True, nogil=True)
def count_labels(labels, size):
    """Count how often each of 0 ... size - 1 occurs in a 3-D array."""
    counts = np.zeros(size, np.int64)
    for plane in labels:
        for row in plane:
            for label in row:
                counts[label] += 1
    return counts


def largest_component(mask):
    """Keep the largest face-connected component of a boolean array; an empty array stays empty."""
    labels, counts = components(mask)
    if len(counts) == 1:
        return np.zeros_like(mask)
    return labels == 1 + np.argmax(counts[1:])


def squared_distance(mask, spacing_mm, reach_mm, *, to=True):
    """Squared distance (mm^2, float32) from every voxel to the nearest one that is `to`, exact up to `reach_mm`.

    Farther voxels get a value above reach_mm^2. Outside the array there is nothing. Three one-dimensional passes with
    few taps: for reaches of a few voxels much cheaper, in time and memory, than a full distance transform.
    """
    far = np.float32((2 * reach_mm) ** 2 + 1)
    taps = [
        np.array([(k * mm) ** 2 for k in range(1, min(int(reach_mm / mm + 1e-6), size - 1) + 1)], np.float32)
        for mm, size in zip(spacing_mm, mask.shape, strict=True)
    ]
    out = np.empty(mask.shape, np.float32)
    _spread(mask, bool(to), *taps, far, out)
    return out


@njit(cache=True, nogil=True)
def _spread(mask, source, taps_z, taps_y, taps_x, far, out):
    nz, ny, nx = mask.shape
    rows = np.empty((ny, nx), np.float32)
    line = np.empty(nx, np.float32)
    reached = np.zeros((nz, ny), np.bool_)  # rows with any finite distance in this plane
    hit = np.zeros(ny, np.bool_)
    zero = np.float32(0)
    for z in range(nz):
        for y in range(ny):
            found = False
            for x in range(nx):
                here = mask[z, y, x] == source
                found |= here
                line[x] = zero if here else far
            hit[y] = found
            rows[y] = line
            if found:
                for tap in range(len(taps_x)):
                    _lower(rows[y, tap + 1 :], line[: nx - tap - 1], taps_x[tap])
                    _lower(rows[y, : nx - tap - 1], line[tap + 1 :], taps_x[tap])
        for y in range(ny):
            out[z, y] = rows[y]
            reached[z, y] = hit[y]
            for tap in range(len(taps_y)):
                if y > tap and hit[y - tap - 1]:
                    _lower(out[z, y], rows[y - tap - 1], taps_y[tap])
                    reached[z, y] = True
                if y + tap + 1 < ny and hit[y + tap + 1]:
                    _lower(out[z, y], rows[y + tap + 1], taps_y[tap])
                    reached[z, y] = True
    if len(taps_z) == 0:
        return
    before = np.empty((nz, nx), np.float32)
    for y in range(ny):
        for z in range(nz):
            before[z] = out[z, y]
        for z in range(nz):
            for tap in range(len(taps_z)):
                if z > tap and reached[z - tap - 1, y]:
                    _lower(out[z, y], before[z - tap - 1], taps_z[tap])
                if z + tap + 1 < nz and reached[z + tap + 1, y]:
                    _lower(out[z, y], before[z + tap + 1], taps_z[tap])


@njit(cache=True, nogil=True, inline="always")
def _lower(row, other, cost):
    """row = min(row, other + cost); written so that it is vectorised."""
    for x in range(len(row)):
        value = other[x] + cost
        here = row[x]
        row[x] = value if value < here else here


def dilate(mask, spacing_mm, radius_mm):
    """Voxels within `radius_mm` of a True one (ball, centre to centre)."""
    return squared_distance(mask, spacing_mm, radius_mm) <= np.float32(radius_mm**2 + 1e-3)


def erode(mask, spacing_mm, radius_mm):
    """Voxels farther than `radius_mm` from any False one; the ends of the array do not erode."""
    if radius_mm < min(spacing_mm):
        return mask
    return squared_distance(mask, spacing_mm, radius_mm, to=False) > np.float32(radius_mm**2 + 1e-3)


def opened(mask, spacing_mm, radius_mm):
    """The parts of a boolean array that a ball of `radius_mm` fits into."""
    return dilate(erode(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) & mask


def fill_enclosed(mask):
    """Fill what a boolean array encloses in at least two of the three families of planes.

    A vessel or a nodule on a stalk is no hole in 3-D, as it hangs on to the hilum, yet planes across it are rings.
    The dome of the liver is enclosed in axial planes only, so one family of planes is not enough. What is enclosed in
    3-D, by then, is enclosed in all three.
    """
    for needed in (2, 3):
        votes = np.zeros(mask.shape, np.uint8)
        for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
            _vote_enclosed(mask.transpose(axes), votes.transpose(axes))
        mask = mask | (votes >= needed)
    return mask


@njit(cache=True, nogil=True)
def _vote_enclosed(mask, votes):
    """Add 1 to `votes` where no path through False voxels of the same plane mask[k] leads to the plane's border."""
    planes, rows, columns = mask.shape
    walls = np.empty((rows + 2, columns + 2), np.bool_)
    stack = np.empty(rows * columns + 2 * (rows + columns) + 4, np.int64)
    width = columns + 2
    flat = walls.ravel()
    for k in range(planes):
        found = False
        for i in range(rows):
            for j in range(columns):
                wall = mask[k, i, j]
                walls[i + 1, j + 1] = wall
                found |= wall
        if not found:
            continue
        # The frame is what the flood starts from; going round it as well would leave the array.
        walls[0] = walls[rows + 1] = True
        walls[:, 0] = walls[:, columns + 1] = True
        top = 0
        for i in range(1, rows + 1):
            for j in (1, columns):
                if not walls[i, j]:
                    walls[i, j] = True
                    stack[top] = i * width + j
                    top += 1
        for j in range(1, columns + 1):
            for i in (1, rows):
                if not walls[i, j]:
                    walls[i, j] = True
                    stack[top] = i * width + j
                    top += 1
        while top:
            top -= 1
            here = stack[top]
            for step in (1, -1, width, -width):
                if not flat[here + step]:
                    flat[here + step] = True
                    stack[top] = here + step
                    top += 1
        for i in range(rows):
            for j in range(columns):
                if not walls[i + 1, j + 1]:
                    votes[k, i, j] += 1


def bounding_box(mask, pad=(0, 0, 0)):
    """Slices of the box around the non-zero voxels, widened by `pad` voxels and cut at the array; None when empty."""
    planes = mask.any(axis=2)
    found = [np.flatnonzero(planes.any(axis=1))]
    if not len(found[0]):
        return None
    found.append(np.flatnonzero(planes.any(axis=0)))
    found.append(np.flatnonzero(mask[found[0][0] : found[0][-1] + 1].any(axis=(0, 1))))
    return tuple(
        slice(max(0, int(hit[0]) - margin), min(size, int(hit[-1]) + 1 + margin))
        for hit, margin, size in zip(found, pad, mask.shape, strict=True)
    )


def expand_blocks(coarse, factors, shape):
    """Repeat every block value over its voxels, cut to `shape`."""
    for axis, factor in enumerate(factors):
        coarse = np.repeat(coarse, factor, axis=axis)
    return coarse[tuple(slice(size) for size in shape)]


@njit(cache=True, nogil=True)
def meet(cost, seeds, mask, step):
    """Let seeds (int8, 0: none) grow through `mask` in the order of `cost` until they meet; returns int8 labels.

    Voxels of cost below a level are taken before any above it, the level rising in steps of `step`; within a level
    fronts advance at the same speed. Where costs rise towards a ridge, that is a watershed.
    """
    nz, ny, nx = mask.shape
    out = np.zeros(mask.shape, np.int8)
    queue = np.empty((mask.size, 3), np.int16)
    waiting = np.empty((mask.size, 3), np.int16)
    head = tail = held = 0
    top, level = -32768, 32767
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if mask[z, y, x]:
                    top = max(top, cost[z, y, x])
                    if seeds[z, y, x]:
                        out[z, y, x] = seeds[z, y, x]
                    else:
                        level = min(level, cost[z, y, x])
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if out[z, y, x] and (
                    (z and mask[z - 1, y, x] and not out[z - 1, y, x])
                    or (z + 1 < nz and mask[z + 1, y, x] and not out[z + 1, y, x])
                    or (y and mask[z, y - 1, x] and not out[z, y - 1, x])
                    or (y + 1 < ny and mask[z, y + 1, x] and not out[z, y + 1, x])
                    or (x and mask[z, y, x - 1] and not out[z, y, x - 1])
                    or (x + 1 < nx and mask[z, y, x + 1] and not out[z, y, x + 1])
                ):
                    waiting[held, 0], waiting[held, 1], waiting[held, 2] = z, y, x
                    held += 1
    while held:
        level += step
        # Fronts wait where their neighbours cost more than this level.
        head = 0
        tail = held
        queue[:held] = waiting[:held]
        held = 0
        while head < tail:
            z, y, x = queue[head]
            head += 1
            stays = False
            for side in range(6):
                k, j, i = z, y, x
                if side < 2:
                    k += 2 * side - 1
                elif side < 4:
                    j += 2 * side - 5
                else:
                    i += 2 * side - 9
                if not (0 <= k < nz and 0 <= j < ny and 0 <= i < nx) or not mask[k, j, i] or out[k, j, i]:
                    continue
                if cost[k, j, i] < level:
                    out[k, j, i] = out[z, y, x]
                    queue[tail, 0], queue[tail, 1], queue[tail, 2] = k, j, i
                    tail += 1
                else:
                    stays = True
            if stays:
                waiting[held, 0], waiting[held, 1], waiting[held, 2] = z, y, x
                held += 1
        if level > top:
            break
    return out
