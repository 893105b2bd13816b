"""Trachea and main bronchi: a round tube of gas near the midline, grown until it would leak into the lung."""

import numpy as np

from lungmill.regions import (
    block_mean,
    bounding_box,
    components,
    dilate,
    erode,
    expand_blocks,
    opened,
    refine_box,
)

# Cross-sections of adult tracheas are 10 to 27 mm wide (Breatnach, Abbott, Fraser. AJR 1984;142:903); wider here
# because blocks of 2 mm and scans of 4 mm blur them, and because saber-sheath and dilated tracheas exist.
LUMEN_AREA_MM2 = (30.0, 900.0)
LUMEN_WIDTH_MM = (5.0, 45.0)
TUBE_LENGTH_MM = 20.0
LUMEN_HU = -750
OFF_MIDLINE_MM = 60.0
# From the lower end of the clear tube to the ends of the main bronchi.
BOX_BELOW_MM, BOX_IN_PLANE_MM = 120.0, 75.0
# An airway tree holds 30 to 100 ml. A leak into the lung adds hundreds at once.
AIRWAY_ML, LEAK_ML = 160.0, 40.0
NOISE_MM = 1.5
MAIN_BRONCHUS_RADIUS_MM = 3.0
WALL_MM = 3.0


def find_trachea(hu, air, spacing_mm, midline_x, lung_z):
    """Mark the clear part of the trachea on the coarse grid; None when there is none.

    hu, air       HU of the blocks, and which of them are enclosed air
    midline_x     index of the body's midline
    lung_z        index of the middle of the enclosed air: the tube must reach above it
    The tube is the tallest stack of small, compact, dark cross-sections, each an island in its axial plane.
    """
    from scipy import ndimage

    half = int(OFF_MIDLINE_MM / spacing_mm[2])
    left, right = max(0, int(midline_x) - half), min(air.shape[2], int(midline_x) + half + 1)
    window = np.ascontiguousarray(air[:, :, left:right])
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    labels, count = ndimage.label(window, structure=in_plane, output=np.int32)
    area = np.bincount(labels.ravel(), minlength=count + 1) * spacing_mm[1] * spacing_mm[2]
    keep = np.zeros(count + 1, bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if not LUMEN_AREA_MM2[0] <= area[label] <= LUMEN_AREA_MM2[1]:
            continue
        if (box[2].start == 0 and left > 0) or (box[2].stop == window.shape[2] and right < air.shape[2]):
            continue  # reaches beyond the window: a lung
        height, width = (box[1].stop - box[1].start) * spacing_mm[1], (box[2].stop - box[2].start) * spacing_mm[2]
        compact = area[label] >= 0.5 * height * width and max(height, width) <= 2.5 * min(height, width)
        keep[label] = compact and LUMEN_WIDTH_MM[0] <= max(height, width) <= LUMEN_WIDTH_MM[1]
    tubes, sizes = components(keep[labels])
    best, tallest = None, TUBE_LENGTH_MM
    for tube, box in enumerate(ndimage.find_objects(tubes.view(np.int32)), start=1):
        length = (box[0].stop - box[0].start) * spacing_mm[0]
        area = sizes[tube] * spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / length
        if length < tallest or box[0].stop <= lung_z or area < LUMEN_AREA_MM2[0]:
            continue
        lumen = hu[:, :, left:right][box][tubes[box] == tube]
        if np.percentile(lumen, 20) < LUMEN_HU:
            best, tallest = tube, length
    if best is None:
        return None
    trachea = np.zeros(air.shape, bool)
    trachea[:, :, left:right] = tubes == best
    return trachea


def airway_box(trachea, spacing_mm, factors, shape):
    """The box, in voxels of the volume, that holds the trachea and the main bronchi."""
    z, y, x = bounding_box(trachea)
    low = trachea[z.start : z.start + 3].any(axis=0)
    middle = [np.flatnonzero(low.any(axis=axis)).mean() for axis in (1, 0)]
    below = int(BOX_BELOW_MM / spacing_mm[0])
    box = [slice(max(0, z.start - below), z.stop)]
    for axis, centre, cut in ((1, middle[0], y), (2, middle[1], x)):
        half = int(BOX_IN_PLANE_MM / spacing_mm[axis])
        box.append(
            slice(
                min(cut.start, max(0, int(centre) - half)),
                max(cut.stop, min(trachea.shape[axis], int(centre) + half + 1)),
            )
        )
    return tuple(box), refine_box(box, factors, shape)


def grow_airway(hu, seeds, spacing_mm, threshold_hu):
    """Grow the seeds through gas, at the highest level that does not leak into the lung.

    hu, seeds   int16 and bool of the same box
    Raising the level adds bronchi a few ml at a time; when it breaks through a thin wall into lung, the
    volume jumps. The level stops before that.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lumen = int(np.percentile(hu[seeds], 20))
    seeds = seeds & (hu < lumen + 30)
    grown, volume = seeds, AIRWAY_ML
    for level in range(lumen + 30, threshold_hu - 100, 20):
        labels, counts = components(hu < level)
        hit = np.unique(labels[seeds])
        hit = hit[hit > 0]
        size = float(counts[hit].sum()) * voxel_ml
        if size > min(volume + LEAK_ML, AIRWAY_ML):
            break
        keep = np.zeros(len(counts), bool)
        keep[hit] = True
        grown, volume = keep[labels], size
    return grown


def main_airway(grown, spacing_mm):
    """The trachea and the main bronchi with their walls: the thick part of the airway tree, a little widened."""
    solid = erode(dilate(grown, spacing_mm, NOISE_MM), spacing_mm, NOISE_MM) | grown
    thick = opened(solid, spacing_mm, MAIN_BRONCHUS_RADIUS_MM)
    return dilate(thick, spacing_mm, WALL_MM)


def segment_airway(volume, trachea, factors, coarse_spacing_mm, spacing_mm, threshold_hu):
    """Grow the airway of the volume from the coarse trachea.

    Returns (bool mask of a box with trachea and main bronchi, the box in blocks, the box in voxels).
    """
    coarse_box, box = airway_box(trachea, coarse_spacing_mm, factors, volume.shape)
    hu = np.ascontiguousarray(volume[box])
    seeds = expand_blocks(trachea[coarse_box], factors, hu.shape)
    airway = main_airway(grow_airway(hu, seeds, spacing_mm, threshold_hu), spacing_mm)
    return airway, coarse_box, box


def blocks_of(mask, factors):
    """Blocks of which at least half is True."""
    return block_mean(mask.astype(np.int16) * 100, *factors) >= 50
