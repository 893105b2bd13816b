"""Dents that nodules on the chest wall leave in a lung: found with one ball, closed with a larger one."""

import numpy as np
from numba import njit

from lungmill.bits import dilate, erode
from lungmill.morphology import bounding_box, expand_blocks, squared_distance
from lungmill.runs import components

# Where a closing recovers something, the border goes this far beyond it, and this far around it.
PLEURA_MM, RECOVERED_MM = 1.5, 6.0
# A dent of this volume and thickness holds something. Ribs, which press in less, are told by their HU.
DENT_ML, DENT_MM = (0.25, 30.0), 3.0
BONE_HU, DENT_HU = 200, 90
# The ball's cap reaches into the dent that it closes: 0.8 mm for a contact 14 mm wide, 2.7 mm for one of 25 mm.
RADIUS_MM = 30.0
# Hollows that a ball of this radius does not fit into hold no diaphragm and no heart, both of which are rounder.
HOLLOW_RADIUS_MM, HOLLOW_MM, SOFT_HU = 40.0, 4.0, (-50, 120)


@njit(cache=True, nogil=True)
def outer_wall(sides):
    """Blocks outside the lungs and not between them: where the next lungs to the right and to the left differ."""
    nz, ny, nx = sides.shape
    out = np.ones(sides.shape, np.bool_)
    for z in range(nz):
        for y in range(ny):
            before, since = 0, 0
            for x in range(nx):
                here = sides[z, y, x]
                if here:
                    if before and before != here:
                        out[z, y, since:x] = False
                    before, since = here, x + 1
    return out


def close_dents(inner, lung, outer, hu, spacing_mm, closing_mm):
    """Close dents of the outer surface with a larger ball, in place.

    inner, hu     float32 depth in the closing, in mm, and int16 HU of the blocks
    lung, outer   bool: the lung, filled, and the outer wall
    Twice the closing's ball, on blocks twice as large, finds dents; it would take in much where lungs face the heart
    and the mediastinum, but the outer wall is smooth. Each dent is then closed with a ball larger still, whose cap
    reaches into it less.
    """
    coarse_mm = tuple(2 * mm for mm in spacing_mm)
    coarse = lung[::2, ::2, ::2]
    beyond = [(int(np.ceil(2 * closing_mm / mm)) + 1,) * 2 for mm in coarse_mm]
    found = in_closing(coarse, coarse_mm, 2 * closing_mm, beyond) & ~coarse
    whole = components(found)
    dents = components(found & outer[::2, ::2, ::2])
    coarse_ml = float(np.prod(coarse_mm)) / 1000
    margins = [int(np.ceil((RADIUS_MM + RECOVERED_MM) / mm)) + 1 for mm in coarse_mm]
    size_ml = dents.counts * coarse_ml
    for label in np.flatnonzero((size_ml >= DENT_ML[0]) & (size_ml <= DENT_ML[1])):
        box, dent = dents.box(label), dents.part(label)
        # What goes on between the lungs is the hilum.
        if whole.counts[whole.at(np.argwhere(dent)[0] + [cut.start for cut in box])] > dents.counts[label]:
            continue
        if hu[::2, ::2, ::2][box][dent].mean() > DENT_HU:
            continue
        wide = tuple(
            slice(max(0, cut.start - n), min(size, cut.stop + n))
            for cut, n, size in zip(box, margins, dents.shape, strict=True)
        )
        around = tuple(slice(2 * cut.start, 2 * cut.stop) for cut in wide)
        near = expand_blocks(dents.part(label, wide), (2, 2, 2), lung[around].shape)
        near = dilate(near, spacing_mm, RECOVERED_MM) & outer[around] & (hu[around] < BONE_HU)
        beyond = [
            (2 * max(0, n - cut.start), 2 * max(0, cut.stop + n - size))
            for cut, n, size in zip(box, margins, dents.shape, strict=True)
        ]
        depth = depth_in_closing(lung[around], spacing_mm, RADIUS_MM, beyond)
        thick = squared_distance(lung[around], spacing_mm, DENT_MM)[near & (depth > 0)] > DENT_MM**2
        if thick.any():
            np.maximum(inner[around], depth + np.float32(PLEURA_MM / 2), out=inner[around], where=near)


def depth_in_closing(mask, spacing_mm, radius_mm, beyond):
    """Distance in mm, float32, into the closing of a bool array by a ball; `beyond` is how much to add at its ends.

    Exact up to three voxels; farther in, it is larger than that. Outside the closing it is zero or less.
    """
    reach = radius_mm + 3 * min(spacing_mm[1:])
    closed = dilate(np.pad(mask, beyond), spacing_mm, radius_mm)
    inside = tuple(slice(low, low + size) for (low, _), size in zip(beyond, mask.shape, strict=True))
    return np.sqrt(squared_distance(closed, spacing_mm, reach, to=False)[inside]) - np.float32(radius_mm)


def in_closing(mask, spacing_mm, radius_mm, beyond, deeper_mm=0.0):
    """Where a bool array's closing by a ball is deeper than `deeper_mm`, bool; `beyond` as in `depth_in_closing`."""
    closed = dilate(np.pad(mask, beyond), spacing_mm, radius_mm)
    inside = tuple(slice(low, low + size) for (low, _), size in zip(beyond, mask.shape, strict=True))
    return erode(closed, spacing_mm, radius_mm + deeper_mm)[inside]


def dense_hollows_ml(sides, hu, spacing_mm):
    """Volume of soft tissue in hollows of the lungs' outer surface: masses and consolidations too wide to close.

    sides, hu   uint8 labels of the finished lungs and int16 HU, on the same blocks; every second one is looked at
    """
    total = 0
    sides, hu = np.ascontiguousarray(sides[::2, ::2, ::2]), hu[::2, ::2, ::2]
    coarse_mm = tuple(2 * mm for mm in spacing_mm)
    beyond = [(int(np.ceil(HOLLOW_RADIUS_MM / mm)) + 2,) * 2 for mm in coarse_mm]
    candidates = outer_wall(sides) & (sides == 0) & (hu > SOFT_HU[0]) & (hu < SOFT_HU[1])
    for label in (1, 2):
        box = bounding_box(sides == label)
        if box is None:
            continue
        deep = in_closing(sides[box] == label, coarse_mm, HOLLOW_RADIUS_MM, beyond, HOLLOW_MM)
        total += int(components(candidates[box] & deep).counts.max())
    return total * float(np.prod(coarse_mm)) / 1000
