"""Shapes on a grid of blocks: short distances, boxes, growing from seeds. Balls and filling are in `bits`."""

import numpy as np
from numba import njit


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
    _spread(np.ascontiguousarray(mask), bool(to), *taps, far, out)
    return out


@njit(cache=True, nogil=True)
def _spread(mask, source, taps_z, taps_y, taps_x, far, out):
    nz, ny, nx = mask.shape
    rows = np.empty((ny, nx), np.float32)
    line = np.empty(nx, np.float32)
    reached = np.zeros((nz, ny), np.bool_)  # rows with any finite distance in this plane
    done = np.zeros((nz, ny), np.bool_)  # rows that are nothing but source
    hit = np.zeros(ny, np.bool_)
    zero = np.float32(0)
    for z in range(nz):
        for y in range(ny):
            count = np.int32(0)
            for x in range(nx):
                here = mask[z, y, x] == source
                count += np.int32(here)
                line[x] = zero if here else far
            hit[y], done[z, y] = count > 0, count == nx
            rows[y] = line
            if hit[y] and not done[z, y]:
                for tap in range(len(taps_x)):
                    _lower(rows[y, tap + 1 :], line[: nx - tap - 1], taps_x[tap])
                    _lower(rows[y, : nx - tap - 1], line[tap + 1 :], taps_x[tap])
        for y in range(ny):
            out[z, y] = rows[y]
            reached[z, y] = hit[y]
            if done[z, y]:
                continue
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
            if done[z, y]:
                continue
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
    # A frame of -1, which nothing grows into, spares looking for the ends of the array.
    frame = np.full((nz + 2, ny + 2, nx + 2), np.int8(-1))
    height = np.empty(frame.shape, np.int16)
    top, level = -32768, 32767
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if mask[z, y, x]:
                    here = cost[z, y, x]
                    frame[z + 1, y + 1, x + 1] = seeds[z, y, x]
                    height[z + 1, y + 1, x + 1] = here
                    top = max(top, here)
                    if seeds[z, y, x] == 0:
                        level = min(level, here)
    state, costs = frame.reshape(-1), height.reshape(-1)
    row, plane = nx + 2, (ny + 2) * (nx + 2)
    # Fronts in the order in which they were reached, and the cheapest voxel that each still waits for.
    front, wake = np.empty(mask.size, np.int32), np.empty(mask.size, np.int16)
    held = 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                here = ((z + 1) * (ny + 2) + y + 1) * (nx + 2) + x + 1
                if state[here] > 0 and (
                    state[here - plane] == 0
                    or state[here + plane] == 0
                    or state[here - row] == 0
                    or state[here + row] == 0
                    or state[here - 1] == 0
                    or state[here + 1] == 0
                ):
                    front[held], wake[held] = here, -32768
                    held += 1
    reached = np.empty(mask.size, np.int32)
    while held and level <= top:
        level += step
        kept = tail = 0
        for n in range(held):
            here, until = front[n], wake[n]
            if until < level:
                until, tail = _advance(here, level, state, costs, row, plane, reached, tail)
            if until < 32767:
                front[kept], wake[kept] = here, until
                kept += 1
        head = 0
        while head < tail:
            here = reached[head]
            head += 1
            until, tail = _advance(here, level, state, costs, row, plane, reached, tail)
            if until < 32767:
                front[kept], wake[kept] = here, until
                kept += 1
        held = kept
    out = np.zeros(mask.shape, np.int8)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                out[z, y, x] = max(np.int8(0), frame[z + 1, y + 1, x + 1])
    return out


@njit(cache=True, nogil=True)
def _advance(here, level, state, costs, row, plane, reached, tail):
    """Take the neighbours of a front that cost less than `level`: (the least cost of the others, end of `reached`)."""
    until = 32767
    for side in (-plane, plane, -row, row, -1, 1):
        to = here + side
        if state[to] == 0:
            if costs[to] < level:
                state[to] = state[here]
                reached[tail] = to
                tail += 1
            else:
                until = min(until, np.int64(costs[to]))
    return until, tail
