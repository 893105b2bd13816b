"""Hard situations for lung masks: chests with a known truth, and functions that alter them.

`phantom_chest` renders an `lungmill.phantom.Anatomy`: its truth comes from formulas. `real_chest` takes a DICOM folder:
its truth is lungmill's own mask of the unaltered scan, so an altered real scan measures stability, not correctness.
Every other function takes a `Chest`, changes a copy the way illness or what lies around a patient may, and changes
truth likewise; `hard_scans` does so for what scanners and archives do. Sizes are mm and ml; seeds are fixed.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lungmill.grid import Grid
from lungmill.phantom import Anatomy

TISSUE, GAS, PADDING = 35, -990, -1024


class Chest(NamedTuple):
    """A volume and what is true about it; arrays are [z, y, x] and equally large, None where nothing is known."""

    volume: np.ndarray  # int16 HU
    spacing_mm: tuple
    truth: np.ndarray | None  # uint8: 1 right lung, 2 left
    trachea: np.ndarray | None = None  # bool: lumen of trachea and main bronchi
    nodules: np.ndarray | None = None  # bool: what must not be lost
    gas: np.ndarray | None = None  # bool: gas that is no lung
    words: str = ""


def phantom_chest(seed=1, spacing_mm=1.0, *, prone=False, noise_hu=20.0):
    """A random anatomy, from the neck to the kidneys."""
    shape = tuple(int(mm / spacing_mm) for mm in (318, 312, 388))
    grid = Grid(shape, (spacing_mm,) * 3, (-200.0, -160.0 if prone else -142.0, -194.0))
    anatomy = Anatomy.random(seed, prone=prone)
    return Chest(
        anatomy.render(grid, noise_hu=noise_hu, seed=seed),
        grid.spacing_mm,
        anatomy.labels(grid),
        anatomy.labels(grid, of="trachea") > 0,
        anatomy.labels(grid, of="nodules") > 0,
        words="prone" if prone else "unaltered",
    )


def real_chest(folder, spacing_mm=1.0):
    """A scan, and the voxels that a reader outlined as nodule where a `*bitmask.npz` says so."""
    from lungmill import read_series, resample, segment_lungs

    series = read_series(folder)
    volume, grid = resample(series, spacing_mm=spacing_mm)
    truth, _ = segment_lungs(volume, grid.spacing_mm)
    nodules = None
    for file in Path(folder).glob("*bitmask.npz"):
        with np.load(file) as drawn:
            k, row, column = np.nonzero(drawn["labels"])
            pixel, z_mm = float(drawn["pixel_spacing"]), drawn["z_mm"]
        x0, y0, _ = series.geometry.origins[0]
        index = np.rint(grid.to_index(np.stack([z_mm[k], y0 + row * pixel, x0 + column * pixel], axis=1))).astype(int)
        nodules = np.zeros(grid.shape, bool)
        nodules[tuple(index.T)] = True
    return Chest(volume, grid.spacing_mm, truth, None, nodules, words="unaltered")


# Helpers


def mapped(chest, volume, labels, words, spacing_mm=None):
    """Apply one function to the volume and another to every array of labels."""
    others = {
        name: None if getattr(chest, name) is None else np.ascontiguousarray(labels(getattr(chest, name)))
        for name in ("truth", "trachea", "nodules", "gas")
    }
    return chest._replace(
        volume=np.ascontiguousarray(volume(chest.volume)),
        spacing_mm=spacing_mm or chest.spacing_mm,
        words=words,
        **others,
    )


def axes_mm(chest):
    """Open grids of positions in mm, from the first voxel."""
    grids = np.ogrid[tuple(slice(n) for n in chest.volume.shape)]
    return [axis * mm for axis, mm in zip(grids, chest.spacing_mm, strict=True)]


def extent_mm(chest, label=None):
    """The lung's box in mm: ((z0, z1), (y0, y1), (x0, x1))."""
    lung = chest.truth > 0 if label is None else chest.truth == label
    ends = []
    for axis, mm in enumerate(chest.spacing_mm):
        hit = np.flatnonzero(lung.any(axis=tuple({0, 1, 2} - {axis})))
        ends.append((hit[0] * mm, hit[-1] * mm))
    return ends


def depth_mm(chest, label):
    """Distance of the voxels of one lung to its border; 0 elsewhere."""
    lung = chest.truth == label
    box = tuple(slice(max(0, cut.start - 1), cut.stop + 1) for cut in ndimage.find_objects(lung.astype(np.uint8))[0])
    depth = np.zeros(lung.shape, np.float32)
    depth[box] = ndimage.distance_transform_edt(lung[box], sampling=chest.spacing_mm)
    return depth


def midline_mm(chest):
    (_, _, right), (_, _, left) = (extent_mm(chest, label) for label in (1, 2))
    return 0.5 * (right[1] + left[0])


def ball(chest, centre_mm, radii_mm):
    """Voxels of an ellipsoid."""
    radii = np.broadcast_to(radii_mm, 3)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(axes_mm(chest), centre_mm, radii, strict=True)) <= 1


def filled(chest, where, hu, words, *, blur_mm=0.6, noise_hu=15.0, **labels):
    """Set the voxels of `where` to `hu` and blur their surface as a scanner does."""
    box = ndimage.find_objects(ndimage.binary_dilation(where, iterations=3).astype(np.uint8))[0]
    part, inside = chest.volume[box].astype(np.float32), where[box]
    sigma = [blur_mm / mm for mm in chest.spacing_mm]
    share = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    # What lies beneath must not shine through the blurred surface from inside: continue the values from outside.
    weight = ndimage.gaussian_filter((~inside).astype(np.float32), [2 * s + 1 for s in sigma])
    around = ndimage.gaussian_filter(np.where(inside, 0, part), [2 * s + 1 for s in sigma]) / np.maximum(weight, 1e-3)
    base = np.where(inside, around, part)
    noise = np.random.default_rng(5).normal(0, noise_hu, part.shape) * share
    volume = chest.volume.copy()
    volume[box] = np.rint(base + share * (hu - base) + noise).clip(-1024, 3071)
    return chest._replace(volume=volume, words=words, **labels)


def solid_body(chest):
    """The patient with the air inside and without the table, on blocks of 4 mm: (bool array, block edges in voxels)."""
    step = [max(1, round(4 / mm)) for mm in chest.spacing_mm]
    every = tuple(slice(None, None, n) for n in step)
    coarse = ndimage.binary_opening(chest.volume[every] > -400, iterations=1)
    labels, _ = ndimage.label(coarse)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    coarse = (labels == np.argmax(sizes)) | (chest.truth[every] > 0)
    coarse = ndimage.binary_closing(np.pad(coarse, 3, mode="edge"), iterations=2)[3:-3, 3:-3, 3:-3]
    return np.stack([ndimage.binary_fill_holes(plane) for plane in coarse]), step


def away_from_body(chest, coarse, step):
    """Distance in mm to the True blocks of `coarse`, on the voxels of the chest."""
    sampling = [n * mm for n, mm in zip(step, chest.spacing_mm, strict=True)]
    return expanded(ndimage.distance_transform_edt(~coarse, sampling=sampling).astype(np.float32), chest.volume.shape)


def smooth_noise(shape, spacing_mm, length_mm, seed):
    """Noise of the given length, made on blocks of 4 mm and interpolated."""
    coarse = [int(np.ceil(n * mm / 4)) + 1 for n, mm in zip(shape, spacing_mm, strict=True)]
    field = ndimage.gaussian_filter(
        np.random.default_rng(seed).standard_normal(coarse).astype(np.float32), length_mm / 4
    )
    return expanded(field, shape)


def expanded(field, shape):
    """Interpolate a coarse array to `shape`, linearly."""
    field = ndimage.zoom(field, [n / c for n, c in zip(shape, field.shape, strict=True)], order=1)
    return field[tuple(slice(n) for n in shape)]


# The lungs themselves


def expiration(chest):
    """Lung of about -650 HU, and the chest 15 % shorter."""
    steps = [max(1, round(2 / mm)) for mm in chest.spacing_mm]
    near = chest.truth > 0
    for _ in range(max(steps)):
        near = ndimage.binary_dilation(near)
    zone = (chest.truth > 0) | (near & (chest.volume > -700))
    volume = chest.volume.copy()
    volume[zone] = np.interp(volume[zone], [-1024, -860, 40, 3071], [-814, -650, 40, 3071]).astype(np.int16)
    z, y, x = chest.spacing_mm
    return chest._replace(volume=volume, spacing_mm=(0.85 * z, y, x), words="lung of -650 HU, 15 % shorter")


def emphysema(chest, share=0.45):
    """A share of the lung, in large areas, is destroyed: -970 to -990 HU."""
    field = smooth_noise(chest.volume.shape, chest.spacing_mm, 14, seed=1)
    lung = chest.truth > 0
    field += np.float32(1e-3) * smooth_noise(chest.volume.shape, chest.spacing_mm, 5, seed=2)
    level = np.quantile(field[lung], share)
    where = lung & (field < level) & (chest.volume < -700)
    volume = chest.volume.copy()
    noise = np.random.default_rng(3).normal(-980, 10, np.count_nonzero(where))
    volume[where] = np.rint(noise).clip(-1024)
    return chest._replace(volume=volume, words=f"{share:.0%} of the lung at -970 to -990 HU")


def one_lung_missing(chest, lost=2):
    """After removal of a lung: its place is filled with 30 HU, and the mediastinum has moved 35 mm into it."""
    name = ("right", "left")[lost - 1]
    chest = airless(chest, chest.truth == lost, "", hu=30)
    middle = midline_of_body(chest)
    x = np.arange(chest.volume.shape[2]) * chest.spacing_mm[2]
    bump = np.cos(np.clip((x - middle) / 140, -1, 1) * np.pi / 2) ** 2
    source = (x - (35 if lost == 2 else -35) * bump) / chest.spacing_mm[2]
    return along_x(chest, source, f"no {name} lung: filled with 30 HU, mediastinum moved 35 mm")


def midline_of_body(chest):
    coarse, step = solid_body(chest)
    hit = np.flatnonzero(coarse[len(coarse) // 2].any(axis=0))
    return 0.5 * (hit[0] + hit[-1]) * step[2] * chest.spacing_mm[2]


def along_x(chest, source, words):
    """Resample the columns at `source` (indices): linearly the volume, nearest the labels."""
    low = np.clip(np.floor(source).astype(int), 0, chest.volume.shape[2] - 2)
    weight = np.clip(source - low, 0, 1).astype(np.float32)

    def blend(volume):
        one, two = volume[:, :, low], volume[:, :, low + 1]
        return np.rint(one + weight * (two.astype(np.float32) - one)).astype(np.int16)

    nearest = np.clip(np.rint(source).astype(int), 0, chest.volume.shape[2] - 1)
    return mapped(chest, blend, lambda array: array[:, :, nearest], words)


def lung_collapsed(chest, label=2):
    """The lower part of a lung is airless (35 HU); what is left above is lung."""
    (z0, z1), _, _ = extent_mm(chest, label)
    z, y, _ = axes_mm(chest)
    gone = (chest.truth == label) & (z + 0.5 * (y - y.mean()) < z0 + 0.6 * (z1 - z0))
    return airless(chest, gone, "lower part of the left lung collapsed: 35 HU")


def airless(chest, gone, words, hu=35):
    """Fill a part of the lung with tissue or fluid; it is no longer lung."""
    others = {name: getattr(chest, name) for name in ("nodules", "trachea")}
    others = {name: None if array is None else array & ~gone for name, array in others.items()}
    # Voxels on the old border are half lung: without them a dark line would be left around what is filled.
    rim = ndimage.binary_dilation(gone, iterations=max(1, round(2 / min(chest.spacing_mm)))) & (chest.truth == 0)
    rim &= (chest.volume < hu) & (chest.volume > -750)
    return filled(chest, gone | rim, hu, words, truth=np.where(gone, np.uint8(0), chest.truth), **others)


def pneumothorax(chest, label=1):
    """Gas around a lung that has shrunk and become denser."""
    deep = depth_mm(chest, label) > 24
    gas = (chest.truth == label) & ~deep
    volume = chest.volume.copy()
    volume[deep] = np.interp(volume[deep], [-1024, -860, 40, 3071], [-850, -600, 40, 3071]).astype(np.int16)
    chest = chest._replace(volume=volume)
    return filled(chest, gas, -998, "right lung shrunk by gas around it (pneumothorax)", noise_hu=8)._replace(
        truth=np.where(gas, np.uint8(0), chest.truth), nodules=None, gas=gas
    )


def consolidation(chest, label=1, largest_mm=24.0):
    """A dense ball enclosed by lung; it is lung."""
    inside = depth_mm(chest, label)
    centre = np.array(np.unravel_index(np.argmax(inside), inside.shape)) * chest.spacing_mm
    radius = min(largest_mm, inside.max() - 6)
    where = ball(chest, centre, radius)
    return filled(chest, where, 40, f"consolidation of {2 * radius:.0f} mm enclosed by lung")._replace(nodules=where)


def effusion(chest, label=1, share=0.35):
    """Fluid of 10 HU behind and below a lung, with a level that rises towards the chest wall."""
    z, y, x = axes_mm(chest)
    (z0, z1), _, (x0, x1) = extent_mm(chest, label)
    height = y - 0.6 * (z - z0) * (60 / (z1 - z0)) + 0.004 * (x - 0.5 * (x0 + x1)) ** 2
    lung = chest.truth == label
    height = np.broadcast_to(height, lung.shape)
    gone = lung & (height > np.quantile(height[lung], 1 - share))
    return airless(chest, gone, f"effusion over {share:.0%} of the right lung", hu=10)


# Other things that hold air


def bowel_gas(chest, radii_mm=(14, 24, 22), label=2):
    """Gas just below the diaphragm, 2 mm of tissue away from the lung."""
    lung = chest.truth == label
    (z0, z1), _, ends = extent_mm(chest, label)
    z, y, x = axes_mm(chest)
    # The dome: where the lung ends highest, away from its edges and from the heart, on which it also ends.
    reached = lung.any(axis=0)
    lowest = np.where(reached, lung.argmax(axis=0), -1)
    inner = ndimage.distance_transform_edt(reached, sampling=chest.spacing_mm[1:]) > 25
    outer = x[0] > 0.5 * sum(ends) if label == 2 else x[0] < 0.5 * sum(ends)
    dome = inner & outer & (lowest * chest.spacing_mm[0] < z0 + (0.38 if label == 1 else 0.3) * (z1 - z0))
    row, column = np.unravel_index(np.argmax(np.where(dome, lowest, -1)), lowest.shape)
    top = lowest[row, column] * chest.spacing_mm[0]
    bubble = ball(chest, (top - 0.6 * radii_mm[0], y[0, row, 0], x[0, 0, column]), radii_mm)
    bubble &= (lowest * chest.spacing_mm[0] > z) & (chest.volume > -700)
    coarse, step = solid_body(chest)
    bubble &= away_from_body(chest, ~coarse, step) > 16  # not into the abdominal wall
    box = ndimage.find_objects(ndimage.binary_dilation(bubble, iterations=4).astype(np.uint8))[0]
    bubble[box] &= ndimage.distance_transform_edt(chest.truth[box] == 0, sampling=chest.spacing_mm) > 2.0
    wall = ndimage.binary_dilation(bubble, iterations=max(1, round(2 / min(chest.spacing_mm))))
    wall &= ~bubble & (chest.truth == 0)
    ml = np.count_nonzero(bubble) * np.prod(chest.spacing_mm) / 1000
    chest = filled(chest, wall, TISSUE, "")
    side = ("right", "left")[label - 1]
    return filled(chest, bubble, GAS, f"{ml:.0f} ml of bowel gas 2 mm below the {side} lung")._replace(gas=bubble)


def hiatal_hernia(chest):
    """The stomach behind the heart, with gas above fluid, between the lungs."""
    (z0, z1), (y0, y1), _ = extent_mm(chest)
    centre = (z0 + 0.36 * (z1 - z0), y0 + 0.66 * (y1 - y0), midline_mm(chest) + 8)
    outer, inner = ball(chest, centre, (34, 24, 38)), ball(chest, centre, (31, 21, 35))
    chest = airless(chest, outer, "", hu=40)
    gas = inner & (axes_mm(chest)[1] < centre[1] + 4)
    chest = filled(chest, gas, GAS, "hiatal hernia with gas behind the heart")
    return chest._replace(gas=gas)


def blanket(chest):
    """Two folded sheets over the patient, with pockets of air between them and the skin."""
    away = away_from_body(chest, *solid_body(chest))
    z, y, x = axes_mm(chest)
    angle = np.arctan2(y - y.mean(), x - x.mean())
    volume = chest.volume.copy()
    for number, (depth, folds) in enumerate(((7, 7), (20, 11))):
        fold = (depth + depth * 0.9 * np.sin(folds * angle + z / 25 + number)).astype(np.float32)
        sheet = (np.abs(away - fold) < 1.6) & (away > 0) & (chest.volume < -600) & (y < y.mean() + 50)
        volume[sheet] = -150
    return chest._replace(volume=volume, words="folded blankets with pockets of air")


def arms_down(chest, touching=True):
    """An arm beside each side of the body, from end to end: they enclose air with body and table where they touch."""
    chest = in_air(chest)
    margin = int(115 / chest.spacing_mm[2])
    pad = ((0, 0), (0, 0), (margin, margin))
    chest = mapped(
        chest, lambda v: np.pad(v, pad, constant_values=-1000), lambda a: np.pad(a, pad), "", chest.spacing_mm
    )
    coarse, step = solid_body(chest)
    z, y, x = axes_mm(chest)
    (_, (y0, y1), _) = extent_mm(chest)
    radius, gap, height = 42.0, (-7.0 if touching else 8.0), 0.5 * (y0 + y1) + 48
    row = int(height / (step[1] * chest.spacing_mm[1]))
    beside = coarse[:, row - 8 : row + 9].any(axis=1)
    columns = np.arange(beside.shape[1]) * step[2] * chest.spacing_mm[2]
    volume = chest.volume.copy()
    rng = np.random.default_rng(4)
    for side in (-1, 1):
        skin = np.where(beside, side * columns, -np.inf).max(axis=1)  # how far the body reaches in each slice
        skin = ndimage.gaussian_filter1d(side * skin, 3, mode="nearest")
        skin = np.interp(z.ravel(), np.arange(len(skin)) * step[0] * chest.spacing_mm[0], skin).reshape(z.shape)
        away = np.hypot(y - height, x - (skin + side * (radius + gap)))
        for size, hu in ((radius, -90), (radius - 7, 50), (11, 900), (6, 100)):
            where = (away < size) & (chest.volume < -600) & (chest.truth == 0) & (side * (x - skin) > -25)
            volume[where] = rng.normal(hu, 15, np.count_nonzero(where))
    how = "touching the body" if touching else "beside the body"
    return chest._replace(volume=volume, words=f"arms down, {how}")


def in_air(chest):
    """Padding replaced by air, as if the field of view were larger."""
    volume = chest.volume.copy()
    volume[volume <= PADDING] = -1000
    return chest._replace(volume=volume)
