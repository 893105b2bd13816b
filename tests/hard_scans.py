"""Hard situations for lung masks that come from the scanner or the archive, and volumes without lungs.

Like the functions of `hard_lungs`: a `Chest` in, an altered copy out.
"""

import numpy as np
from hard_lungs import GAS, TISSUE, Chest, axes_mm, ball, extent_mm, mapped
from scipy import ndimage

from lungmill.phantom import scanner_noise

PADDING = -1024


def cropped(chest, part, words):
    return mapped(chest, lambda array: array[part], lambda array: array[part], words)


def field_of_view(chest, radius_mm=115.0, off_mm=(0.0, 0.0)):
    """Padding outside a circle that cuts body and lungs."""
    _, y, x = axes_mm(chest)
    outside = np.hypot(y - y.mean() - off_mm[0], x - x.mean() - off_mm[1]) > radius_mm
    return mapped(
        chest,
        lambda volume: np.where(outside, np.int16(PADDING), volume),
        lambda array: np.where(outside, array.dtype.type(0), array),
        f"field of view of {2 * radius_mm:.0f} mm that cuts the lungs",
    )


def rotated(chest, degrees):
    """The patient turned about z."""
    turn = {"axes": (1, 2), "reshape": False, "prefilter": False}
    return mapped(
        chest,
        lambda volume: ndimage.rotate(volume, degrees, order=1, cval=PADDING, **turn),
        lambda array: ndimage.rotate(array.view(np.uint8), degrees, order=0, **turn).view(array.dtype),
        f"turned by {degrees:+d} degrees about z",
    )


def thick_slices(chest, mm=5.0):
    """Slices of `mm`: the mean of thin ones; labels by majority."""
    count = round(mm / chest.spacing_mm[0])
    length = len(chest.volume) // count * count

    def mean(array):
        return array[:length].reshape(-1, count, *array.shape[1:]).mean(axis=1, dtype=np.float32)

    def majority(array):
        out = np.zeros((length // count, *array.shape[1:]), array.dtype)
        for label in np.unique(array)[1:]:
            out[mean(array == label) > 0.5] = label
        return out

    spacing = (count * chest.spacing_mm[0], *chest.spacing_mm[1:])
    words = f"slices of {spacing[0]:g} mm"
    thick = mapped(chest, lambda volume: np.rint(mean(volume)).astype(np.int16), majority, words, spacing)
    # Readers outline on slices 2.5 mm apart: no voxel of a nodule has a majority here.
    return thick if chest.nodules is None else thick._replace(nodules=mean(chest.nodules) > 0)


def apices(chest, share=0.3):
    """Only the upper part of the lungs was scanned."""
    (z0, z1), _, _ = extent_mm(chest)
    first = int((z1 - share * (z1 - z0)) / chest.spacing_mm[0])
    return cropped(chest, slice(first, None), f"only the upper {share:.0%} of the lungs")


def bases(chest, share=0.3):
    """Only the lower part of the lungs was scanned."""
    (z0, z1), _, _ = extent_mm(chest)
    end = int((z0 + share * (z1 - z0)) / chest.spacing_mm[0])
    return cropped(chest, slice(None, end), f"only the lower {share:.0%} of the lungs")


def low_dose(chest, sigma_hu=100.0):
    """Noise of `sigma_hu`, correlated as by a soft kernel."""
    volume = chest.volume.copy()
    for k, plane in enumerate(volume):
        noisy = np.rint(plane + scanner_noise(plane.shape, sigma_hu, (77, k))).clip(-1024, 3071).astype(np.int16)
        plane[...] = np.where(plane > PADDING, noisy, plane)
    return chest._replace(volume=volume, words=f"noise of {sigma_hu:.0f} HU")


def sized(chest, in_plane, along_z=1.0):
    """The same patient larger or smaller."""
    z, y, x = chest.spacing_mm
    words = f"{in_plane:g} times as wide and deep, {along_z:g} times as long"
    return chest._replace(spacing_mm=(z * along_z, y * in_plane, x * in_plane), words=words)


def very_large(chest):
    """1.35 times as wide and deep, and the field of view ends before the skin on both sides."""
    chest = sized(chest, 1.35)
    (_, (y0, y1), (x0, x1)) = extent_mm(chest)
    _, y, x = axes_mm(chest)
    off = 0.5 * (y0 + y1) - y.mean(), 0.5 * (x0 + x1) - x.mean()
    wide = 0.5 * (x1 - x0) + 8
    return field_of_view(chest, wide, off)._replace(words="1.35 times as wide, field of view cuts both sides")


def metal(chest):
    """A pacemaker below the left clavicle, and streaks through its slices."""
    (z0, z1), (y0, _), (x0, x1) = extent_mm(chest, 2)
    centre = (z0 + 0.78 * (z1 - z0), y0 - 12, 0.5 * (x0 + x1))
    z, y, x = axes_mm(chest)
    angle, away = np.arctan2(y - centre[1], x - centre[2]), np.hypot(y - centre[1], x - centre[2])
    rays = np.sin(17 * angle) + np.sin(29 * angle + 1) + 0.7 * np.sin(61 * angle + 2)
    streaks = 260 * rays * np.exp(-away / 140) * np.minimum(1, away / 20)
    volume = chest.volume.copy()
    for k, height in enumerate(z.ravel()):
        if abs(height - centre[0]) < 16:
            volume[k] = np.rint(volume[k] + np.where(volume[k] > PADDING, streaks[0], 0)).clip(-1024, 3071)
    volume[ball(chest, centre, (14, 6, 20))] = 3071
    return chest._replace(volume=volume, words="pacemaker with streaks")


# No lungs at all


def head(spacing_mm=1.5):
    """A skull with sinuses, air cells behind the ears, and the throat."""
    shape = tuple(int(mm / spacing_mm) for mm in (240, 260, 240))
    empty = Chest(np.full(shape, -1000, np.int16), (spacing_mm,) * 3, np.zeros(shape, np.uint8))
    hu = empty.volume
    z, y, x = axes_mm(empty)
    hu[ball(empty, (110, 130, 120), (105, 98, 80))] = TISSUE
    hu[ball(empty, (130, 135, 120), (80, 86, 69)) & ~ball(empty, (130, 135, 120), (74, 80, 63))] = 1000
    gas = np.broadcast_to(np.hypot(y - 95, x - 120) < 9, shape) & np.broadcast_to(z < 90, shape)
    for side in (-1, 1):
        gas |= ball(empty, (80, 68, 120 + side * 24), (18, 17, 15))
        cells = np.random.default_rng(6).random(shape) < 0.5
        hu[ball(empty, (78, 150, 120 + side * 55), (16, 14, 9)) & cells] = -900
    gas |= ball(empty, (70, 60, 120), (26, 34, 12))
    hu[gas] = GAS
    hu += np.random.default_rng(7).normal(0, 12, shape).astype(np.int16)
    return empty._replace(volume=hu.clip(-1024), words="a head with sinuses")


def water_phantom(spacing_mm=1.5):
    """A cylinder of water with rods of air and of plastic, on a table."""
    shape = tuple(int(mm / spacing_mm) for mm in (160, 300, 300))
    empty = Chest(np.full(shape, -1000, np.int16), (spacing_mm,) * 3, np.zeros(shape, np.uint8))
    _, y, x = axes_mm(empty)
    plane = empty.volume[0]
    plane[(np.hypot(y - 140, x - 150) < 100)[0]] = 0
    plane[(np.hypot(y - 140, x - 150) < 60)[0] & (np.hypot(y - 140, x - 150) > 58)[0]] = 120
    for angle, hu in ((0, -1000), (1.5, -1000), (3, -100), (4.5, 340)):
        plane[(np.hypot(y - 140 - 58 * np.sin(angle), x - 150 - 58 * np.cos(angle)) < 12)[0]] = hu
    plane[np.broadcast_to((y > 243) & (y < 246), (1, *shape[1:]))[0]] = -100
    empty.volume[1:] = plane
    noisy = empty.volume + np.random.default_rng(8).normal(0, 12, shape).astype(np.int16)
    return empty._replace(volume=noisy.clip(-1024), words="a water phantom with rods of air")
