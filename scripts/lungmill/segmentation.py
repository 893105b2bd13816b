"""Lung masks from Hounsfield units alone, in 3-D: `segment_lungs`.

What is lung, trachea, bowel or room is decided on blocks of about 2 mm; the border is drawn on the volume's own voxels.
The steps, each a function here or in `body`, `airway` and `regions`, in the order in which `segment_lungs` takes them:
field of view, body, enclosed air, trachea and main bronchi, lung components, right and left, filling and closing.
"""

import mmap

import numpy as np

from lungmill.airway import blocks_of, find_trachea, segment_airway
from lungmill.body import Blocks, enclosed_air, find_body, find_midline, find_padding, in_plane_neighbours, middle_z
from lungmill.components import choose_lungs, nearest_side, pure_gas_ml, rejected_air, split_sides
from lungmill.dents import dense_hollows_ml
from lungmill.errors import LungmillError
from lungmill.mask_statistics import Plausible, describe_mask
from lungmill.morphology import expand_blocks
from lungmill.regions import close_lungs, project_labels, surroundings

METHOD = "threshold3d"

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
    plausible = plausible or Plausible()
    settings = {"threshold_hu": threshold_hu, "closing_mm": closing_mm, "min_lung_ml": min_lung_ml}
    mask = _zeros(volume.shape)
    blocks, body = find_body(Blocks.of(volume, spacing_mm), threshold_hu)
    if blocks is None:
        return mask, _no_lungs(mask, spacing_mm, settings, 0.0, min_lung_ml)
    padding = find_padding(blocks)
    air, gas_hu = enclosed_air(blocks, threshold_hu, padding, body)
    midline = find_midline(blocks, body, air)

    lumen = None
    trachea = find_trachea(blocks.hu, air, blocks.spacing_mm, midline, middle_z(air))
    if trachea is not None:
        lumen, walled, coarse_box, airway = segment_airway(volume, trachea, blocks, spacing_mm, threshold_hu)
        air[coarse_box] &= ~blocks_of(walled, blocks.factors)

    found, chosen, lungs, largest_ml = choose_lungs(blocks, air, gas_hu, min_lung_ml)
    if lungs is None:
        return mask, _no_lungs(mask, spacing_mm, settings, largest_ml, min_lung_ml)
    sides, joined = split_sides(blocks, found, chosen, lungs, midline)
    air &= sides == 0
    box = surroundings(sides, blocks.spacing_mm, closing_mm)
    rejected = np.ascontiguousarray(rejected_air(blocks, air)[box])
    blocks, sides, padding = blocks.cut(box), sides[box].copy(), padding[box].copy()
    del found, lungs, air, body, trachea

    air_side = nearest_side(sides, blocks.spacing_mm)
    air_side[(blocks.hu < threshold_hu) & (sides == 0) & ~padding] = 0
    solid_side, depth = close_lungs(sides, blocks.hu, blocks.spacing_mm, closing_mm, rejected)
    solid_side[padding] = 0
    del rejected
    # Depth changes by no more than the distance, and by a block where the closing sets walls apart.
    sure_mm = 3 * float(np.linalg.norm(blocks.spacing_mm))
    project_labels(volume, threshold_hu, air_side, solid_side, depth, sure_mm, blocks.factors, blocks.low, mask)
    if lumen is not None:
        deep = _moved(depth > DEEP_MM, box, coarse_box)
        walled &= ~expand_blocks(deep, blocks.factors, walled.shape)
        mask[airway][walled | lumen] = 0
    everything = tuple(slice(0, size) for size in sides.shape)
    statistics = {
        "method": METHOD,
        "status": "ok",
        **describe_mask(mask, spacing_mm, plausible, within=blocks.voxels(everything, volume.shape)),
        **settings,
        "joined": joined,
    }
    cut_cm2 = field_cut_cm2(blocks, sides, padding)
    if cut_cm2 >= plausible.border_cm2:
        detail = f"the field of view cuts the lung over {cut_cm2:.0f} cm2"
        statistics["flags"].append({"code": "cut_by_field_of_view", "detail": detail})
    if lumen is None:
        statistics["flags"].append({"code": "no_trachea", "detail": "no trachea found: it may be part of the mask"})
    dense_ml = dense_hollows_ml(np.where(depth > 0, solid_side, np.uint8(0)), blocks.hu, blocks.spacing_mm)
    if dense_ml >= plausible.dense_ml:
        detail = f"{dense_ml:.0f} ml of soft tissue in a hollow of a lung: dense lung may be left out"
        statistics["flags"].append({"code": "dense_lung", "detail": detail})
    gas_ml = pure_gas_ml(blocks, sides, gas_hu)
    if gas_ml >= plausible.gas_ml:
        detail = f"{gas_ml:.0f} ml of pure gas in the mask: a bulla, a pneumothorax or bowel"
        statistics["flags"].append({"code": "pure_gas", "detail": detail})
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


def _zeros(shape):
    """A uint8 array of zeros, in huge pages where there are any: 10,000 small ones take longer to get than to fill."""
    pages = mmap.mmap(-1, int(np.prod(shape)), access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8).reshape(shape)


def _moved(array, box, other):
    """A bool array that covers one box of slices, on another one; False where the first does not reach."""
    out = np.zeros([part.stop - part.start for part in other], bool)
    both = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True)]
    if all(low < high for low, high in both):
        here, there = (
            tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(both, cut, strict=True))
            for cut in (other, box)
        )
        out[here] = array[there]
    return out


def _no_lungs(mask, spacing_mm, settings, largest_ml, min_lung_ml):
    reason = (
        f"largest enclosed air region that could be lung: {largest_ml:.0f} ml, less than {min_lung_ml:g} ml or pure gas"
    )
    return {"method": METHOD, "status": "no_lungs", "reason": reason, **describe_mask(mask, spacing_mm), **settings}


def field_cut_cm2(blocks, sides, padding):
    """Area over which the lungs meet the end of the field of view."""
    if not padding.any():
        return 0.0
    faces = sum(np.count_nonzero((here > 0) & beside) for here, beside in in_plane_neighbours(sides, padding))
    return faces * blocks.spacing_mm[0] * min(blocks.spacing_mm[1:]) / 100
