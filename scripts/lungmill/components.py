"""Which enclosed air is lung, and which lung is right and which left."""

import numpy as np
from numba import njit

from lungmill.bits import dilate, erode, opened
from lungmill.mask_statistics import LEFT, RIGHT
from lungmill.morphology import bounding_box, meet, squared_distance
from lungmill.runs import components

# The median of lung, emphysema included, is more than this above gas, or its inside holds vessels; a pocket of pure gas
# has neither.
LUNG_ABOVE_GAS_HU, VESSEL_HU, VESSEL_SHARE = 35, -880, 0.02
# Lung is thick. Air between muscles, which is as dense as lung where it is mixed with tissue, comes in sheets.
CORE_MM, CORE_SHARE = 6.0, 0.08
# Pieces of lung cut off by a fissure or a scar, this near to a lung and at least this large, belong to it.
PIECE_GAP_MM, PIECE_ML = 6.0, 1.0
# A lung cut by the end of the scan may be this small, where together such pieces are large enough.
END_PIECE_ML = 8.0
# Gas below the diaphragm, where a wall thinner than a block joins it to a lung: a ball of this radius fits in, it is at
# least this large, in the lower part of the lungs, and this share of its surface at most faces lung.
POCKET_MM, POCKET_ML, POCKET_HEIGHT, POCKET_CONTACT = 6.0, 3.0, 0.4, 0.3
# Emphysema holds tissue still, and is brighter than this.
PURE_ABOVE_GAS_HU = 15
# One component is both lungs where at least this share of it lies beyond the midline.
STRADDLING_SHARE = 0.12
# Contacts of the lungs are at most twice this wide.
CUT_REACH_MM = 20.0
SEED_SHARE = 0.1
# Two pleurae of half a mm each, averaged with lung over a block, are brighter than this.
JUNCTION_HU = -720
# Two components are a pair of lungs where the smaller is this share of the larger and their middles are this far apart.
PAIR_SHARE, PAIR_MM = 0.1, 60.0


def choose_lungs(blocks, air, gas_hu, min_lung_ml):
    """Choose the components of enclosed air that are lung: large, thick, and not pure gas; then the pieces beside them.

    Returns (Components of the air, labels of those chosen, bool air of the lungs, ml of the largest component of air);
    where there is no lung, the labels and the lungs are None.
    """
    found = components(air)
    size_ml = found.counts * blocks.ml
    largest_ml = float(size_ml.max())

    def is_lung(label):
        part = found.part(label)
        # The box ends where the component ends: beyond it is wall, but for the ends of the scan, where lung goes on.
        part = np.pad(part, ((0, 0), (1, 1), (1, 1)))
        core = erode(part, blocks.spacing_mm, CORE_MM)[:, 1:-1, 1:-1]
        if np.count_nonzero(core) < CORE_SHARE * found.counts[label]:
            return False
        middle, bright = percentiles(blocks.hu, core, found.box(label), (50, 100 * (1 - VESSEL_SHARE)))
        return middle > gas_hu + LUNG_ABOVE_GAS_HU or bright > VESSEL_HU

    large = [int(label) for label in np.flatnonzero(size_ml >= min_lung_ml) if is_lung(label)]
    # Which components reach the lower and the upper end of the scan.
    at_end = np.stack([found.boxes[:, 0, 0] == 0, found.boxes[:, 0, 1] == found.shape[0]]) & (found.counts > 0)
    ends = [end for end in at_end if not large or end[large].any()]
    cut = sorted({int(label) for end in ends for label in np.flatnonzero(end)} - set(large))
    cut = [label for label in cut if size_ml[label] >= END_PIECE_ML and is_lung(label)]
    if not large and size_ml[cut].sum() < min_lung_ml:
        return found, None, None, largest_ml
    chosen_of = np.zeros(len(found.counts), bool)
    chosen_of[large + cut] = True
    lungs = found.paint(chosen_of)
    pieces = np.flatnonzero((size_ml >= PIECE_ML) & (size_ml < min_lung_ml) & ~chosen_of)
    if len(pieces):
        # Bowel just below the diaphragm holds gas darker than the lung's darkest blocks; a piece of lung does not.
        (darkest,) = percentiles(blocks.hu, lungs, None, (1,))
        beside = dilate(lungs, blocks.spacing_mm, PIECE_GAP_MM)
        for label in pieces:
            box, part = found.box(label), found.part(label)
            if beside[box][part].any() and percentiles(blocks.hu, part, box, (5,))[0] > darkest:
                chosen_of[label] = True
                lungs[box] |= part
    take_pockets_away(blocks, lungs, gas_hu)
    if not lungs.any():
        return found, None, None, largest_ml
    return found, np.flatnonzero(chosen_of), lungs, largest_ml


def percentiles(hu, mask, box, shares):
    """Percentiles of the int16 HU where a bool mask of a box of slices (None: all) is True, as np.percentile's."""
    low = [part.start for part in box] if box else (0, 0, 0)
    counted = np.cumsum(_histogram(hu, np.ascontiguousarray(mask), *low))
    out = []
    for share in shares:
        place = share / 100 * (counted[-1] - 1)
        one, other = np.searchsorted(counted, [int(place), min(int(place) + 1, counted[-1] - 1)], side="right") - 32768
        out.append(float(one + (other - one) * (place - int(place))))
    return out


@njit(cache=True, nogil=True)
def _histogram(hu, mask, z_low, y_low, x_low):
    counts = np.zeros(65536, np.int32)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                if mask[z, y, x]:
                    counts[np.int64(hu[z + z_low, y + y_low, x + x_low]) + 32768] += 1
    return counts


def take_pockets_away(blocks, lungs, gas_hu):
    """Take bowel gas that joins a lung through a thin wall away from the bool lungs, in place."""
    box = bounding_box(lungs)
    low = slice(box[0].start, box[0].start + int(POCKET_HEIGHT * (box[0].stop - box[0].start)))
    box = (low, *box[1:])
    lungs, hu = lungs[box], blocks.hu[box]
    gas = lungs & (hu < gas_hu + LUNG_ABOVE_GAS_HU)
    if np.count_nonzero(gas) * blocks.ml < POCKET_ML:
        return
    pockets = components(opened(gas, blocks.spacing_mm, POCKET_MM))
    step = 1.5 * max(blocks.spacing_mm)
    bowel = []
    for pocket in np.flatnonzero(pockets.counts * blocks.ml >= POCKET_ML):
        around = tuple(
            slice(max(0, cut.start - 4), min(size, cut.stop + 4))
            for cut, size in zip(pockets.box(pocket), pockets.shape, strict=True)
        )
        body = dilate(pockets.part(pocket, around), blocks.spacing_mm, step)
        shell = dilate(body, blocks.spacing_mm, step) & ~body
        if np.count_nonzero(shell & lungs[around]) < POCKET_CONTACT * np.count_nonzero(shell):
            bowel.append((around, body))
    for around, body in bowel:
        lungs[around][body] = False


def rejected_air(blocks, others):
    """Larger pieces of air that are no lung, bowel gas for instance, and a block around them."""
    found = components(others)
    return dilate(found.paint(found.counts * blocks.ml >= PIECE_ML), blocks.spacing_mm, 1.01 * max(blocks.spacing_mm))


def pure_gas_ml(blocks, sides, gas_hu):
    """Volume of gas without any tissue in the lungs, where a ball of 6 mm fits in."""
    gas = (sides > 0) & (blocks.hu < gas_hu + PURE_ABOVE_GAS_HU)
    if np.count_nonzero(gas) * blocks.ml < POCKET_ML:
        return 0.0
    gas = gas[bounding_box(gas)]
    # A block more than the ball's radius, as what lies beyond the box is no gas.
    gas = np.pad(gas, 1)
    return np.count_nonzero(opened(gas, blocks.spacing_mm, POCKET_MM)) * blocks.ml


def split_sides(blocks, found, chosen, lungs, midline):
    """Turn components into right (1) and left (2); one that holds both lungs is cut where it is narrowest.

    blocks, found, lungs   the body's blocks, Components of its air, and the bool lungs, which may have lost parts
    chosen                 labels of the components that are lung
    Returns (uint8 sides, whether a component had to be cut).
    """
    sides = np.zeros(lungs.shape, np.uint8)
    parts = []
    joined = False
    for label in chosen:
        inner, part = found.box(label), found.part(label)
        part &= lungs[inner]
        columns = found.columns(label)[inner[2]]
        if (count := np.count_nonzero(part)) < found.counts[label]:
            rest = bounding_box(part)
            if rest is None:
                continue
            inner = tuple(
                slice(cut.start + low.start, cut.start + low.stop) for cut, low in zip(inner, rest, strict=True)
            )
            part = np.ascontiguousarray(part[rest])
            columns = part.sum(axis=(0, 1), dtype=np.int64)
        x = np.arange(inner[2].start, inner[2].stop)
        share_left = columns[x > midline].sum() / count
        cut = None
        if STRADDLING_SHARE < share_left < 1 - STRADDLING_SHARE:
            cut = cut_in_two(part, blocks, np.ascontiguousarray(blocks.hu[inner]), midline - x[0])
        if cut is None:
            parts.append((count, float((columns * x).sum() / count), inner, part))
        else:
            joined = True
            np.copyto(sides[inner], cut.view(np.uint8), where=part)
    if not joined:
        midline = between_pair(parts, midline, blocks.spacing_mm[2])
    for _, middle, inner, part in parts:
        sides[inner][part] = LEFT if middle > midline else RIGHT
    return sides, joined


def between_pair(parts, midline, step_mm):
    """Where two large components lie side by side, they are the two lungs, wherever the midline is."""
    parts = sorted(parts, key=lambda part: part[:2], reverse=True)
    if len(parts) < 2:
        return midline
    (size, one, *_), (other_size, other, *_) = parts[:2]
    if other_size < PAIR_SHARE * size or abs(one - other) * step_mm < PAIR_MM:
        return midline
    return midline if min(one, other) < midline < max(one, other) else 0.5 * (one + other)


def cut_in_two(part, blocks, hu, midline):
    """Find two seeds, one on each side, and let them grow until they meet; None where there are no two.

    part, hu   a component and the HU of the same box of blocks
    A junction line of two pleurae shows as blocks brighter than lung, so seeds of dark blocks are tried first, and meet
    at the brightest ones. Where nothing shows, the component is eroded until it falls apart, and the seeds meet where
    it is narrowest.
    """
    step = min(blocks.spacing_mm[1:])
    for radius in (0.0, step):
        seeds = two_seeds(erode(part & (hu < JUNCTION_HU), blocks.spacing_mm, radius), part, midline)
        if seeds is not None:
            return meet(hu, seeds, part, 20)
    for radius in np.arange(step, CUT_REACH_MM, step):
        seeds = two_seeds(erode(part, blocks.spacing_mm, radius), part, midline)
        if seeds is not None:
            depth = squared_distance(part, blocks.spacing_mm, CUT_REACH_MM, to=False)
            return meet((-20 * np.sqrt(depth)).astype(np.int16), seeds, part, 20)
    return None


def two_seeds(core, part, midline):
    """Mark the two largest components of `core` as right and left; None unless both are large and on their side."""
    found = components(core)
    if len(found) < 2:
        return None
    largest = 1 + np.argsort(found.counts[1:], kind="stable")[::-1][:2]
    if found.counts[largest[1]] < SEED_SHARE * np.count_nonzero(part):
        return None
    x = [(found.columns(label) * np.arange(part.shape[2])).sum() / found.counts[label] for label in largest]
    right, left = largest[np.argsort(x)]
    if not min(x) < midline < max(x):
        return None
    sides = np.zeros(len(found.counts), np.uint8)
    sides[right], sides[left] = RIGHT, LEFT
    return found.paint(sides).view(np.int8)


def nearest_side(sides, spacing_mm):
    """Widen both lungs by a block: where voxels below the threshold still belong to them."""
    reach = 1.01 * max(spacing_mm[1], spacing_mm[2])
    right, left = (dilate(sides == label, spacing_mm, reach) for label in (RIGHT, LEFT))
    out = right.view(np.uint8) * np.uint8(RIGHT)
    out[left] = LEFT
    # Where both reach, the nearer one; the right one where neither is.
    contested = right & left
    box = bounding_box(contested, tuple(int(reach / mm) + 1 for mm in spacing_mm))
    if box is not None:
        to_right, to_left = (squared_distance(sides[box] == label, spacing_mm, reach) for label in (RIGHT, LEFT))
        out[box][contested[box] & (to_right <= to_left)] = RIGHT
    return out
