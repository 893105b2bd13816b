"""Trachea and main bronchi: a round tube of gas near the midline, grown until it would leak into the lung."""

import numpy as np
from numba import njit

from lungmill.bits import dilate, erode, opened
from lungmill.body import block_mean
from lungmill.morphology import bounding_box, expand_blocks
from lungmill.runs import components

# Cross-sections of adult tracheas are 10 to 27 mm wide (Breatnach, Abbott, Fraser. AJR 1984;142:903); wider here
# because blocks of 2 mm and scans of 4 mm blur them, and because saber-sheath and dilated tracheas exist.
LUMEN_AREA_MM2 = (30.0, 900.0)
LUMEN_WIDTH_MM = (5.0, 45.0)
TUBE_LENGTH_MM = 20.0
LUMEN_HU = -750
OFF_MIDLINE_MM = 60.0
# From the lower end of the clear tube to the ends of the main bronchi.
BOX_BELOW_MM, BOX_IN_PLANE_MM = 120.0, 75.0
# An airway tree holds 30 to 100 ml.
AIRWAY_ML = 160.0
# Each step in HU adds a shell of the lumen and a few ends of bronchi; a leak into the lung adds more than this at once.
# Two or three bronchi leak before the others have grown to their ends; where more do, the level is that of lung.
LEAK_ML, LEAKS, LEVEL_STEP_HU = 6.0, 6, 10
GROWN, REFUSED = 1, 2
# Main bronchi are 8 mm wide and more, what is lung within the lung is thinner; noise roughens lumens by this much.
MAIN_BRONCHUS_RADIUS_MM, BRONCHUS_RADIUS_MM = 4.0, 3.0
NOISE_MM = 1.5
# Half a blurred edge, and a bronchus' wall.
EDGE_MM, WALL_MM = 1.5, 3.0
# Above this noise the levels of gas and lung overlap, and growing needs smoothed HU. Noise from the median absolute
# step between neighbours: 1 / (0.6745 * sqrt(2)).
NOISY_HU, NOISE_OF_STEP, SMOOTH_MM = 45.0, 1.05, 3.0


def find_trachea(hu, air, spacing_mm, midline_x, lung_z):
    """Mark the clear part of the trachea on the coarse grid; None when there is none.

    hu, air       HU of the blocks, and which of them are enclosed air
    midline_x     index of the body's midline
    lung_z        index of the middle of the enclosed air: the tube must reach above it
    The tube is the tallest stack of small, compact, dark cross-sections, each an island in its axial plane.
    """
    half = int(OFF_MIDLINE_MM / spacing_mm[2])
    left, right = max(0, int(midline_x) - half), min(air.shape[2], int(midline_x) + half + 1)
    sections = components(air[:, :, left:right], in_plane=True)
    area = sections.counts * spacing_mm[1] * spacing_mm[2]
    (low_y, high_y), (low_x, high_x) = sections.boxes[:, 1].T, sections.boxes[:, 2].T
    height, width = (high_y - low_y) * spacing_mm[1], (high_x - low_x) * spacing_mm[2]
    keep = (area >= LUMEN_AREA_MM2[0]) & (area <= LUMEN_AREA_MM2[1])
    # What reaches beyond the window is a lung.
    keep &= ~(((low_x == 0) & (left > 0)) | ((high_x == right - left) & (right < air.shape[2])))
    longer, shorter = np.maximum(height, width), np.minimum(height, width)
    keep &= (area >= 0.5 * height * width) & (longer <= 2.5 * shorter)
    keep &= (longer >= LUMEN_WIDTH_MM[0]) & (longer <= LUMEN_WIDTH_MM[1])
    tubes = components(sections.paint(keep))
    best, tallest = None, TUBE_LENGTH_MM
    for tube in range(1, len(tubes) + 1):
        box = tubes.box(tube)
        length = (box[0].stop - box[0].start) * spacing_mm[0]
        area = tubes.counts[tube] * spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / length
        if length < tallest or box[0].stop <= lung_z or area < LUMEN_AREA_MM2[0]:
            continue
        lumen = hu[:, :, left:right][box][tubes.part(tube)]
        if np.percentile(lumen, 20) < LUMEN_HU:
            best, tallest = tube, length
    if best is None:
        return None
    trachea = np.zeros(air.shape, bool)
    trachea[:, :, left:right][tubes.box(best)] = tubes.part(best)
    return trachea


def airway_box(trachea, spacing_mm):
    """The box of blocks that holds the trachea and the main bronchi."""
    z, y, x = bounding_box(trachea)
    low = trachea[z.start : z.start + 3].any(axis=0)
    middle = [np.flatnonzero(low.any(axis=axis)).mean() for axis in (1, 0)]
    below = int(BOX_BELOW_MM / spacing_mm[0])
    # Above, a block more: the blocks at the trachea's upper end may be half air.
    box = [slice(max(0, z.start - below), min(trachea.shape[0], z.stop + 2))]
    for axis, centre, cut in ((1, middle[0], y), (2, middle[1], x)):
        half = int(BOX_IN_PLANE_MM / spacing_mm[axis])
        box.append(
            slice(
                min(cut.start, max(0, int(centre) - half)),
                max(cut.stop, min(trachea.shape[axis], int(centre) + half + 1)),
            )
        )
    return tuple(box)


def grow_airway(hu, seeds, spacing_mm, threshold_hu):
    """Grow the seeds through gas, level by level, and stop each branch by itself where it would leak into the lung.

    hu, seeds   int16 and bool of the same box
    Raising the level adds bronchi a few ml at a time; where it breaks through a thin wall into lung, the volume that
    hangs on to that break jumps. That part is left out for good, the rest goes on, until there are many leaks.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lumen = int(np.percentile(hu[seeds], 20))
    state = np.where(seeds & (hu < lumen + 30), np.uint8(GROWN), np.uint8(0))
    _grow(
        hu,
        state,
        lumen + 30,
        threshold_hu - 100,
        LEVEL_STEP_HU,
        LEAKS,
        int(LEAK_ML / voxel_ml),
        int(AIRWAY_ML / voxel_ml),
    )
    return state == GROWN


@njit(cache=True, nogil=True)
def _grow(hu, state, level, last_level, step, leaks, leak, limit):
    """Raise `state` from 0 to GROWN or REFUSED, in place; see grow_airway. Sizes are in voxels."""
    nz, ny, nx = hu.shape
    flat, values = state.ravel(), hu.ravel()
    strides, sizes = (ny * nx, nx, 1), (nz, ny, nx)
    seeds = 0
    for here in range(flat.size):
        seeds += flat[here] == GROWN
    front = np.empty(seeds + limit + leak + 1, np.int64)
    rest = np.empty_like(front)
    piece = np.empty(limit + 2, np.int64)
    held, total, allowed = 0, seeds, limit
    for here in range(flat.size):
        if flat[here] == GROWN:
            front[held] = here
            held += 1
    while level < last_level and total < limit:
        kept = 0
        for n in range(held):
            start = front[n]
            waits = False
            for side in range(6):
                to = _beside(start, side, strides, sizes)
                if to < 0 or flat[to]:
                    continue
                if values[to] >= level:
                    waits = True
                    continue
                size = _piece(to, level, allowed, flat, values, strides, sizes, piece)
                if size > allowed:
                    for m in range(size):
                        flat[piece[m]] = REFUSED
                    leaks -= 1
                    if leaks == 0:
                        return
                    continue
                total += size
                if total > limit:
                    return
                for m in range(size):
                    rest[kept] = piece[m]
                    kept += 1
            if waits:
                rest[kept] = start
                kept += 1
        front, rest = rest, front
        held = kept
        level += step
        allowed = leak


@njit(cache=True, nogil=True)
def _piece(start, level, allowed, flat, values, strides, sizes, piece):
    """Collect the connected voxels below `level` from `start` on, one more than `allowed` at most; mark them GROWN."""
    piece[0] = start
    flat[start] = GROWN
    size, done = 1, 0
    while done < size:
        at = piece[done]
        done += 1
        for side in range(6):
            to = _beside(at, side, strides, sizes)
            if to >= 0 and flat[to] == 0 and values[to] < level:
                flat[to] = GROWN
                piece[size] = to
                size += 1
                if size > allowed:
                    return size
    return size


@njit(cache=True, nogil=True, inline="always")
def _beside(here, side, strides, sizes):
    """The flat index of one of the six neighbours, -1 beyond the array."""
    axis = side >> 1
    place = here // strides[axis] % sizes[axis]
    if side & 1:
        return here + strides[axis] if place + 1 < sizes[axis] else -1
    return here - strides[axis] if place else -1


def main_airway(grown, spacing_mm, edge_mm):
    """The thick part of the airway tree, twice: (lumen of trachea and main bronchi, the same with walls and more).

    grown     bool: gas that belongs to the airway; its outermost edge_mm, too blurred, is not in it

    The first is what no lung holds. The second, wider by a wall and down to thinner bronchi, keeps the mediastinum's
    air and fat apart from the lung where bronchi enter it; within the lung it is lung.
    """
    solid = erode(dilate(grown, spacing_mm, NOISE_MM), spacing_mm, NOISE_MM) | grown
    lumen = opened(solid, spacing_mm, MAIN_BRONCHUS_RADIUS_MM)
    # A ball does not reach the ends of a tube that narrows.
    lumen = dilate(lumen, spacing_mm, MAIN_BRONCHUS_RADIUS_MM) & solid
    # At least a voxel in every direction.
    lumen = dilate(lumen, tuple(min(mm, edge_mm) for mm in spacing_mm), edge_mm)
    walled = dilate(opened(solid, spacing_mm, BRONCHUS_RADIUS_MM), spacing_mm, WALL_MM)
    return lumen, walled


def segment_airway(volume, trachea, blocks, spacing_mm, threshold_hu):
    """Grow the airway of the volume from the coarse trachea.

    Returns (lumen and walled as bool masks of a box of the volume, the box in blocks, the box in voxels).
    """
    from scipy import ndimage

    coarse_box = airway_box(trachea, blocks.spacing_mm)
    box = blocks.voxels(coarse_box, volume.shape)
    hu = np.ascontiguousarray(volume[box])
    edge_mm = EDGE_MM
    step = np.diff(hu[::4, ::4], axis=2)
    if np.median(np.abs(step)) * NOISE_OF_STEP > NOISY_HU:
        # In the plane always; across thick slices it would blur bronchi away.
        size = [max(least, 2 * int(SMOOTH_MM / 2 / mm) + 1) for least, mm in zip((1, 3, 3), spacing_mm, strict=True)]
        hu = ndimage.uniform_filter(hu, size)
        edge_mm += SMOOTH_MM / 2
    seeds = expand_blocks(trachea[coarse_box], blocks.factors, hu.shape)
    grown = grow_airway(hu, seeds, spacing_mm, threshold_hu)
    inner = bounding_box(grown, tuple(int(np.ceil(2 * WALL_MM / mm)) for mm in spacing_mm))
    # Whole blocks, so that coarse and fine boxes agree.
    cut = [(part.start // n, -(-part.stop // n)) for part, n in zip(inner, blocks.factors, strict=True)]
    grown = np.ascontiguousarray(
        grown[tuple(slice(low * n, high * n) for (low, high), n in zip(cut, blocks.factors, strict=True))]
    )
    coarse_box = tuple(
        slice(part.start + low, part.start + high) for part, (low, high) in zip(coarse_box, cut, strict=True)
    )
    lumen, walled = main_airway(grown, spacing_mm, edge_mm)
    return lumen, walled, coarse_box, blocks.voxels(coarse_box, volume.shape)


def blocks_of(mask, factors):
    """Blocks of which at least half is True."""
    return block_mean(mask.astype(np.int16) * 100, *factors) >= 50
