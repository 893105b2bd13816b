"""What is known about a lung mask once it is drawn: volumes, areas, bounding box, and what a person should look at."""

from dataclasses import dataclass

import numpy as np
from numba import njit

RIGHT, LEFT = 1, 2


@dataclass(frozen=True)
class Plausible:
    """What a mask may measure before a person should look at it.

    total_ml     volume of both lungs; the total lung capacity of adults in CT, rounded outwards, with scans in
                 expiration near the lower end
    ratio        volume of the smaller lung divided by the larger one's
    border_cm2   area of lung at an end of the volume or of the field of view; less is a lung that just touches it
    dense_ml     soft tissue in hollows of a lung, and
    gas_ml       gas without any tissue in the mask: more of either is nothing that healthy lungs have; the scans and
                 phantoms that this was tried on have less than 3 ml
    """

    total_ml: tuple[float, float] = (1000.0, 10000.0)
    ratio: float = 0.5
    border_cm2: float = 2.0
    dense_ml: float = 5.0
    gas_ml: float = 20.0


def describe_mask(mask, spacing_mm, plausible=None, *, within=None):
    """Measure a mask of lung labels, uint8 [z, y, x]; spacing_mm is (z, y, x); plausible: Plausible, its defaults.

    within: a box of slices outside which the mask is known to be zero, and is not looked at.
    Returns a dict of plain values, ready for JSON: `flags` (lung_volume, asymmetry, touches_border: each a dict of
    `code` and `detail`, the words with the number that made it so), `volume_ml` {right, left}, `area_mm2` {right, left}
    (a number for every axial slice), `bounding_box` [[start, stop], ...] in voxels, half-open, None for an empty mask.
    """
    pixel_mm2 = float(spacing_mm[1]) * float(spacing_mm[2])
    within = within or tuple(slice(0, size) for size in mask.shape)
    low, high = zip(*((int(part.start), int(part.stop)) for part in within), strict=True)
    seen = mask.view()
    seen.flags.writeable = False  # mapped files and arrays in memory share one compiled kernel
    voxels, *hits = _count_labels(seen, low, high)
    area, volume = {}, {}
    for name, label in (("right", RIGHT), ("left", LEFT)):
        area[name] = np.round(voxels[label] * pixel_mm2, 1).tolist()
        volume[name] = float(np.round(voxels[label].sum() * pixel_mm2 * float(spacing_mm[0]) / 1000, 1))
    box = [[int(hit[0]), int(hit[-1]) + 1] for hit in map(np.flatnonzero, hits)] if hits[0].any() else None
    return {
        "flags": plausibility_flags(mask, spacing_mm, volume, plausible or Plausible(), box) if box else [],
        "volume_ml": volume,
        "bounding_box": box,
        "area_mm2": area,
    }


@njit(cache=True, nogil=True)
def _count_labels(mask, low, high):
    """(voxels by label and slice, which slices, rows and columns hold any) of a box of a mask of labels 0 to 2."""
    nz, ny, nx = mask.shape
    voxels = np.zeros((3, nz), np.int64)
    slices, rows, columns = np.zeros(nz, np.uint8), np.zeros(ny, np.uint8), np.zeros(nx, np.uint8)
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            right, left = np.int32(0), np.int32(0)
            row, hit = mask[z, y, low[2] : high[2]], columns[low[2] : high[2]]
            for x in range(len(row)):
                right += np.int32(row[x] == RIGHT)
                left += np.int32(row[x] == LEFT)
            for x in range(len(row)):
                hit[x] |= row[x]
            if right or left:
                voxels[RIGHT, z] += right
                voxels[LEFT, z] += left
                slices[z] = rows[y] = 1
    return voxels, slices, rows, columns


def plausibility_flags(mask, spacing_mm, volume_ml, plausible, box):
    """What a person should look at, each with the number: lung_volume, asymmetry, touches_border.

    box: [[start, stop], ...] of the mask, as `describe_mask` returns it.
    """
    flags = []
    right_ml, left_ml = volume_ml["right"], volume_ml["left"]
    total, (least, most) = right_ml + left_ml, plausible.total_ml
    if not least <= total <= most:
        detail = f"lungs hold {total:.0f} ml; {least:.0f} to {most:.0f} ml expected"
        flags.append({"code": "lung_volume", "detail": detail})
    ratio = min(right_ml, left_ml) / max(right_ml, left_ml, 1e-3)
    if ratio < plausible.ratio:
        detail = f"right {right_ml:.0f} ml, left {left_ml:.0f} ml: ratio {ratio:.2f}, below {plausible.ratio:g}"
        flags.append({"code": "asymmetry", "detail": detail})
    cut = []
    ends = (("lower", "upper"), ("front", "back"), ("right", "left"))
    for axis, names in enumerate(ends):
        pixel_cm2 = float(np.prod(spacing_mm)) / spacing_mm[axis] / 100
        for name, end in zip(names, (0, mask.shape[axis] - 1), strict=True):
            if not box[axis][0] <= end < box[axis][1]:
                continue
            area = np.count_nonzero(mask[(slice(None),) * axis + (end,)]) * pixel_cm2
            if area >= plausible.border_cm2:
                cut.append(f"{area:.0f} cm2 at the {name} end")
    if cut:
        flags.append({"code": "touches_border", "detail": "lung reaches the border of the volume: " + ", ".join(cut)})
    return flags
