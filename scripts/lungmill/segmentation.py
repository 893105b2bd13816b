"""Lung masks from Hounsfield units alone, in 3-D: `segment_lungs`.

What is lung, trachea, bowel or room is decided on blocks of about 2 mm; the border is drawn on the volume's own voxels.
The steps, each a function here or in `body`, `airway` and `regions`, in the order in which `segment_lungs` takes them:
field of view, body, enclosed air, trachea and main bronchi, lung components, right and left, filling and closing.
"""

import numpy as np

from lungmill.airway import blocks_of, find_trachea, segment_airway
from lungmill.body import (
    Blocks,
    body_midline,
    enclosed_air,
    find_body,
    find_padding,
    in_plane_neighbours,
    middle_z,
)
from lungmill.errors import LungmillError
from lungmill.mask_statistics import BORDER_CM2, LEFT, RIGHT, describe_mask
from lungmill.regions import (
    close_lungs,
    components,
    dilate,
    erode,
    expand_blocks,
    project_labels,
    squared_distance,
)

METHOD = "threshold3d"

# Lung, emphysema included, has a higher median than a pocket of pure gas.
GAS_HU = -965
# Pieces of lung cut off by a fissure or a scar, this near to a lung and at least this large, belong to it.
PIECE_GAP_MM, PIECE_ML = 6.0, 1.0
# One component is both lungs where at least this share of it lies beyond the midline.
STRADDLING_SHARE = 0.15
# Contacts of the lungs are at most twice this wide.
CUT_REACH_MM = 20.0
SEED_SHARE = 0.1
# Two pleurae of half a mm each, averaged with lung over a block, are brighter than this.
JUNCTION_HU = -720
# Bronchi this deep inside a lung count as lung.
DEEP_MM = 6.0


def segment_lungs(volume, spacing_mm, *, threshold_hu=-400, closing_mm=9.0, min_lung_ml=100.0, plausible=None):
    """Label the lungs of a chest CT: 0 outside, 1 right lung, 2 left lung.

    volume        int16 HU, [z, y, x], z to the head, y to the back, x to the patient's left; may be memory-mapped
                  and read-only. Outside the scanner's field of view it is -1024
    spacing_mm    voxel size (z, y, x)
    threshold_hu  HU below which a voxel is air; halfway between lung and soft tissue
    closing_mm    radius of the ball that recovers what touches the pleura, half the width of the widest contact;
                  taken to the nearest half of an odd number of blocks; 0 switches it off
    min_lung_ml   smallest enclosed volume of air that counts as a lung
    plausible     lungmill.Plausible: what the mask may measure without being flagged

    Returns (mask, statistics): uint8 of the volume's shape, and a dict of plain values, ready for JSON: status 'ok' or
    'no_lungs' (the mask is then empty and `reason` says why), method, settings, and what
    `lungmill.mask_statistics.describe_mask` measures (flags, volume_ml, area_mm2, bounding_box).
    Vessels, nodules and small airways count as lung; trachea, main bronchi, mediastinum and bowel gas do not.
    The result does not depend on the number of threads. Raises LungmillError where the arguments make no volume.
    """
    volume, spacing_mm = _checked(volume, spacing_mm, threshold_hu, closing_mm)
    settings = {"threshold_hu": threshold_hu, "closing_mm": closing_mm, "min_lung_ml": min_lung_ml}
    blocks = Blocks.of(volume, spacing_mm)
    padding = find_padding(blocks)
    body = find_body(blocks, threshold_hu)
    air = enclosed_air(blocks, (blocks.hu < threshold_hu) & ~padding, padding, body)
    midline = body_midline(body, air)

    airway = None
    trachea = find_trachea(blocks.hu, air, blocks.spacing_mm, midline, middle_z(air))
    if trachea is not None:
        airway, coarse_box, box = segment_airway(
            volume, trachea, blocks.factors, blocks.spacing_mm, spacing_mm, threshold_hu
        )
        airway_blocks = np.zeros(air.shape, bool)
        airway_blocks[coarse_box] = blocks_of(airway, blocks.factors)
        air &= ~airway_blocks

    lungs, largest_ml = lung_components(blocks, air, min_lung_ml)
    if lungs is None:
        mask = np.zeros(volume.shape, np.uint8)
        return mask, _no_lungs(mask, spacing_mm, settings, largest_ml, min_lung_ml)
    sides, joined = split_sides(blocks, lungs, midline)

    other_air = (blocks.hu < threshold_hu) & (sides == 0)
    air_side = nearest_side(sides, blocks.spacing_mm)
    air_side[other_air & ~padding] = 0
    solid_side, depth = close_lungs(sides, blocks.spacing_mm, closing_mm)
    solid_side[padding] = 0
    mask = np.empty(volume.shape, np.uint8)
    project_labels(volume, threshold_hu, air_side, solid_side, depth, blocks.factors, mask)
    if airway is not None:
        deep = expand_blocks(depth[coarse_box] > DEEP_MM, blocks.factors, airway.shape)
        mask[box][airway & ~deep] = 0
    statistics = {
        "method": METHOD,
        "status": "ok",
        **describe_mask(mask, spacing_mm, plausible),
        **settings,
        "joined": joined,
    }
    cut_cm2 = field_cut_cm2(blocks, sides, padding)
    if cut_cm2 >= BORDER_CM2:
        detail = f"the field of view cuts the lung over {cut_cm2:.0f} cm2"
        statistics["flags"].append({"code": "cut_by_field_of_view", "detail": detail})
    if trachea is None:
        statistics["flags"].append({"code": "no_trachea", "detail": "no trachea found: it may be part of the mask"})
    return mask, statistics


def _checked(volume, spacing_mm, threshold_hu, closing_mm):
    volume = np.asarray(volume)
    if volume.ndim != 3 or volume.dtype != np.int16 or 0 in volume.shape:
        raise LungmillError(f"segment_lungs: int16 HU [z, y, x] expected, not {volume.dtype} of shape {volume.shape}")
    spacing_mm = tuple(float(mm) for mm in spacing_mm)
    if len(spacing_mm) != 3 or not all(0 < mm < np.inf for mm in spacing_mm):
        raise LungmillError(f"segment_lungs: spacing_mm must be three positive mm (z, y, x), not {spacing_mm}")
    if not -900 <= threshold_hu <= -100:
        raise LungmillError(
            f"segment_lungs: threshold_hu = {threshold_hu} does not part lung from tissue (-900 to -100)"
        )
    if not 0 <= closing_mm <= 30:
        raise LungmillError(f"segment_lungs: closing_mm = {closing_mm} is not a radius in mm (0 to 30)")
    return volume, spacing_mm


def lung_components(blocks, air, min_lung_ml):
    """Choose the components of enclosed air that are lung: large, and not pure gas; then the pieces beside them.

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

    chosen = [label for label in np.flatnonzero(size_ml >= min_lung_ml) if np.median(hu_of(label)) > GAS_HU]
    if not chosen:
        return None, float(size_ml.max())
    lungs = np.isin(labels, chosen)
    # Bowel just below the diaphragm holds gas darker than the lung's darkest blocks; a piece of lung does not.
    darkest = np.percentile(blocks.hu[lungs], 1)
    for label in np.unique(labels[dilate(lungs, blocks.spacing_mm, PIECE_GAP_MM) & ~lungs]):
        if label and PIECE_ML <= size_ml[label] < min_lung_ml and np.percentile(hu_of(label), 5) > darkest:
            chosen.append(label)
    labels[~np.isin(labels, chosen)] = 0
    return labels, float(size_ml.max())


def split_sides(blocks, labels, midline):
    """Turn components into right (1) and left (2); one that holds both lungs is cut where it is narrowest.

    Returns (uint8 sides, whether a component had to be cut).
    """
    from scipy import ndimage

    sides = np.zeros(labels.shape, np.uint8)
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
            side = LEFT if (columns * x).sum() / columns.sum() > midline else RIGHT
            sides[box][part] = side
        else:
            joined = True
            sides[box][part] = cut[part]
    return sides, joined


def cut_in_two(part, blocks, hu, midline):
    """Find two seeds, one on each side, and let them grow until they meet; None where there are no two.

    part, hu   a component and the HU of the same box of blocks
    A junction line of two pleurae shows as blocks brighter than lung, so seeds of dark blocks are tried first, and meet
    at the brightest ones. Where nothing shows, the component is eroded until it falls apart, and the seeds meet where
    it is narrowest.
    """
    from skimage.segmentation import watershed

    step = min(blocks.spacing_mm[1:])
    for radius in (0.0, step):
        seeds = two_seeds(erode(part & (hu < JUNCTION_HU), blocks.spacing_mm, radius), part, midline)
        if seeds is not None:
            return watershed(hu, seeds, mask=part)
    for radius in np.arange(step, CUT_REACH_MM, step):
        seeds = two_seeds(erode(part, blocks.spacing_mm, radius), part, midline)
        if seeds is not None:
            return watershed(-squared_distance(~part, blocks.spacing_mm, CUT_REACH_MM), seeds, mask=part)
    return None


def two_seeds(core, part, midline):
    """Mark the two largest components of `core` as right and left; None unless both are large and on their side."""
    from scipy import ndimage

    labels, counts = components(core)
    if len(counts) < 3:
        return None
    largest = 1 + np.argsort(counts[1:], kind="stable")[::-1][:2]
    if counts[largest[1]] < SEED_SHARE * np.count_nonzero(part):
        return None
    x = [ndimage.center_of_mass(labels == label)[2] for label in largest]
    right, left = largest[np.argsort(x)]
    if not min(x) < midline < max(x):
        return None
    return np.where(labels == right, np.int32(RIGHT), np.where(labels == left, np.int32(LEFT), np.int32(0)))


def nearest_side(sides, spacing_mm):
    """Widen both lungs by a block: where voxels below the threshold still belong to them."""
    reach = 1.01 * max(spacing_mm[1], spacing_mm[2])
    right = squared_distance(sides == RIGHT, spacing_mm, reach)
    left = squared_distance(sides == LEFT, spacing_mm, reach)
    limit = np.float32(reach**2)
    return np.where(
        (right <= left) & (right <= limit), np.uint8(RIGHT), np.where(left <= limit, np.uint8(LEFT), np.uint8(0))
    )


def _no_lungs(mask, spacing_mm, settings, largest_ml, min_lung_ml):
    reason = (
        f"largest enclosed air region that could be lung: {largest_ml:.0f} ml, less than {min_lung_ml:g} ml or pure gas"
    )
    return {"method": METHOD, "status": "no_lungs", "reason": reason, **describe_mask(mask, spacing_mm), **settings}


def field_cut_cm2(blocks, sides, padding):
    """Area over which the lungs meet the end of the field of view."""
    faces = sum(np.count_nonzero((here > 0) & beside) for here, beside in in_plane_neighbours(sides, padding))
    return faces * blocks.spacing_mm[0] * min(blocks.spacing_mm[1:]) / 100
