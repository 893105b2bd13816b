"""Which enclosed air is lung, and which lung is right and which left."""

import numpy as np

from lungmill.mask_statistics import LEFT, RIGHT
from lungmill.morphology import bounding_box, components, dilate, erode, meet, opened, squared_distance

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

    Returns (labels of the chosen components or None, ml of the largest component of air).
    """
    from scipy import ndimage

    labels, counts = components(air)
    counts[0] = 0
    size_ml = counts * blocks.ml
    boxes = ndimage.find_objects(labels.view(np.int32))

    def hu_of(label):
        box = boxes[label - 1]
        return blocks.hu[box][labels[box] == label]

    def is_lung(label):
        box = boxes[label - 1]
        part = labels[box] == label
        # The box ends where the component ends: beyond it is wall, but for the ends of the scan, where lung goes on.
        part = np.pad(part, ((0, 0), (1, 1), (1, 1)))
        core = erode(part, blocks.spacing_mm, CORE_MM)[:, 1:-1, 1:-1]
        inner = blocks.hu[box][core]
        if len(inner) < CORE_SHARE * counts[label]:
            return False
        above = np.percentile(inner, (50, 100 * (1 - VESSEL_SHARE)))
        return above[0] > gas_hu + LUNG_ABOVE_GAS_HU or above[1] > VESSEL_HU

    large = [label for label in np.flatnonzero(size_ml >= min_lung_ml) if is_lung(label)]
    ends = [0, -1] if not large else [end for end in (0, -1) if np.isin(labels[end], large).any()]
    cut = {int(label) for end in ends for label in np.unique(labels[end])} - {0} - {int(label) for label in large}
    cut = sorted(label for label in cut if size_ml[label] >= END_PIECE_ML and is_lung(label))
    if large or size_ml[cut].sum() >= min_lung_ml:
        chosen = large + cut
    else:
        return None, float(size_ml.max())
    chosen_of = np.zeros(len(counts), bool)
    chosen_of[chosen] = True
    if ((size_ml >= PIECE_ML) & ~chosen_of).any():
        lungs = chosen_of[labels]
        # Bowel just below the diaphragm holds gas darker than the lung's darkest blocks; a piece of lung does not.
        darkest = np.percentile(blocks.hu[lungs], 1)
        beside = dilate(lungs, blocks.spacing_mm, PIECE_GAP_MM)
        for label in np.flatnonzero((size_ml >= PIECE_ML) & (size_ml < min_lung_ml) & ~chosen_of):
            part = labels[boxes[label - 1]] == label
            if beside[boxes[label - 1]][part].any() and np.percentile(hu_of(label), 5) > darkest:
                chosen_of[label] = True
    labels *= chosen_of[labels]
    take_pockets_away(blocks, labels, gas_hu)
    return labels, float(size_ml.max())


def take_pockets_away(blocks, labels, gas_hu):
    """Set the labels of bowel gas that joins a lung through a thin wall to 0, in place."""
    from scipy import ndimage

    lungs = labels > 0
    box = bounding_box(lungs)
    low = slice(box[0].start, box[0].start + int(POCKET_HEIGHT * (box[0].stop - box[0].start)))
    box = (low, *box[1:])
    lungs, hu = lungs[box], blocks.hu[box]
    gas = lungs & (hu < gas_hu + LUNG_ABOVE_GAS_HU)
    if np.count_nonzero(gas) * blocks.ml < POCKET_ML:
        return
    pockets, counts = components(opened(gas, blocks.spacing_mm, POCKET_MM))
    step = 1.5 * max(blocks.spacing_mm)
    for pocket, inner in enumerate(ndimage.find_objects(pockets.view(np.int32)), start=1):
        if counts[pocket] * blocks.ml < POCKET_ML:
            continue
        around = tuple(slice(max(0, cut.start - 4), cut.stop + 4) for cut in inner)
        body = dilate(pockets[around] == pocket, blocks.spacing_mm, step)
        shell = dilate(body, blocks.spacing_mm, step) & ~body
        if np.count_nonzero(shell & lungs[around]) < POCKET_CONTACT * np.count_nonzero(shell):
            labels[box][around][body] = 0


def rejected_air(blocks, others):
    """Larger pieces of air that are no lung, bowel gas for instance, and a block around them."""
    labels, counts = components(others)
    large = counts * blocks.ml >= PIECE_ML
    large[0] = False
    return dilate(large[labels], blocks.spacing_mm, 1.01 * max(blocks.spacing_mm))


def pure_gas_ml(blocks, sides, gas_hu):
    """Volume of gas without any tissue in the lungs, where a ball of 6 mm fits in."""
    gas = (sides > 0) & (blocks.hu < gas_hu + PURE_ABOVE_GAS_HU)
    if np.count_nonzero(gas) * blocks.ml < POCKET_ML:
        return 0.0
    gas = gas[bounding_box(gas)]
    # A block more than the ball's radius, as what lies beyond the box is no gas.
    gas = np.pad(gas, 1)
    return np.count_nonzero(opened(gas, blocks.spacing_mm, POCKET_MM)) * blocks.ml


def split_sides(blocks, labels, midline):
    """Turn components into right (1) and left (2); one that holds both lungs is cut where it is narrowest.

    Returns (uint8 sides, whether a component had to be cut).
    """
    from scipy import ndimage

    sides = np.zeros(labels.shape, np.uint8)
    parts = []
    joined = False
    for label, box in enumerate(ndimage.find_objects(labels.view(np.int32)), start=1):
        if box is None:
            continue
        part = labels[box] == label
        columns = part.sum(axis=(0, 1), dtype=np.int64)
        x = np.arange(box[2].start, box[2].stop)
        share_left = columns[x > midline].sum() / columns.sum()
        cut = None
        if STRADDLING_SHARE < share_left < 1 - STRADDLING_SHARE:
            cut = cut_in_two(part, blocks, blocks.hu[box], midline - box[2].start)
        if cut is None:
            parts.append((int(columns.sum()), float((columns * x).sum() / columns.sum()), label, box))
        else:
            joined = True
            sides[box][part] = cut[part]
    if not joined:
        midline = between_pair(parts, midline, blocks.spacing_mm[2])
    for _, middle, label, box in parts:
        sides[box][labels[box] == label] = LEFT if middle > midline else RIGHT
    return sides, joined


def between_pair(parts, midline, step_mm):
    """Where two large components lie side by side, they are the two lungs, wherever the midline is."""
    parts = sorted(parts, reverse=True)
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
    labels, counts = components(core)
    if len(counts) < 3:
        return None
    largest = 1 + np.argsort(counts[1:], kind="stable")[::-1][:2]
    if counts[largest[1]] < SEED_SHARE * np.count_nonzero(part):
        return None
    x = [_middle_x(labels == label) for label in largest]
    right, left = largest[np.argsort(x)]
    if not min(x) < midline < max(x):
        return None
    sides = np.zeros(len(counts), np.int8)
    sides[right], sides[left] = RIGHT, LEFT
    return sides[labels]


def _middle_x(part):
    columns = part.sum(axis=(0, 1), dtype=np.int64)
    return (columns * np.arange(len(columns))).sum() / columns.sum()


def nearest_side(sides, spacing_mm):
    """Widen both lungs by a block: where voxels below the threshold still belong to them."""
    out = np.zeros(sides.shape, np.uint8)
    reach = 1.01 * max(spacing_mm[1], spacing_mm[2])
    box = bounding_box(sides, tuple(int(reach / mm) + 1 for mm in spacing_mm))
    right = squared_distance(sides[box] == RIGHT, spacing_mm, reach)
    left = squared_distance(sides[box] == LEFT, spacing_mm, reach)
    limit = np.float32(reach**2)
    out[box][left <= limit] = LEFT
    out[box][(right <= left) & (right <= limit)] = RIGHT
    return out
