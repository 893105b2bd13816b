"""Lung masks against a phantom of known shape and against two real scans with outlines by people."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lungmill.errors import LungmillError
from lungmill.segmentation import segment_lungs

TISSUE, LUNG, GAS, BONE = 40, -860, -1000, 400


def grid_mm(extent, spacing):
    """Open grids of the voxel centres in mm, and the shape."""
    shape = tuple(int(mm / step) for mm, step in zip(extent, spacing, strict=True))
    return np.ogrid[tuple(slice(n) for n in shape)], shape


def ellipsoid(z, y, x, centre, radii):
    return sum(((p - c) / r) ** 2 for p, c, r in zip((z, y, x), centre, radii, strict=True)) <= 1


def tube(z, y, x, start, end, radius):
    """Everything within `radius` of the line from start to end: no caps beyond the ends."""
    start, axis = np.array(start, float), np.subtract(end, start)
    along = sum((p - s) * a for p, s, a in zip((z, y, x), start, axis, strict=True)) / (axis @ axis)
    square = sum((p - s - along * a) ** 2 for p, s, a in zip((z, y, x), start, axis, strict=True))
    return (square <= radius**2) & (along >= 0) & (along <= 1)


def thorax(spacing, *, shift_x=0.0, anterior_contact=True, airway=True):
    """A chest of ellipsoids and tubes on a table, with what is true about it.

    In mm: two ellipsoid lungs that meet at the anterior junction, a trachea that forks into bronchi which open into the
    lungs, a vessel, a nodule on the right chest wall, bowel gas far below and just below the left lung, a table with
    foam. Edges are blurred as a scanner blurs them, with noise of 25 HU.
    """
    from scipy import ndimage

    (k, j, i), shape = grid_mm((300, 270, 340), spacing)
    z, y, x = k * spacing[0], j * spacing[1], i * spacing[2] + shift_x
    hu = np.full(shape, GAS, np.float32)
    body = ((y - 130) / 108) ** 2 + ((x - 170) / 155) ** 2 <= 1
    hu[np.broadcast_to(body, shape)] = TISSUE
    hu[np.broadcast_to((y > 246) & (y < 249) & (abs(x - 170) < 150), shape)] = 0
    hu[np.broadcast_to((y >= 249) & (y < 266) & (abs(x - 170) < 140), shape)] = -930
    hu[np.broadcast_to(((y - 215) / 12) ** 2 + ((x - 170) / 12) ** 2 <= 1, shape)] = BONE

    middle = ellipsoid(z, y, x, (165, 72, 170), (45, 13, 30)) if anterior_contact else np.zeros(shape, bool)
    right = ellipsoid(z, y, x, (150, 130, 100), (120, 78, 62)) | (middle & (x < 170))
    left = ellipsoid(z, y, x, (150, 130, 240), (120, 78, 62)) | (middle & (x >= 170))
    hu[right | left] = LUNG

    lumen = np.zeros(shape, bool)
    main = lumen.copy()
    if airway:
        main = tube(z, y, x, (200, 125, 170), (300, 125, 170), 8)
        wall = tube(z, y, x, (198, 125, 170), (300, 125, 170), 9.5)
        lumen |= main
        for side in (-1, 1):
            fork, hilum = (203, 125, 170), (170, 125, 170 + side * 38)
            lumen |= tube(z, y, x, fork, hilum, 5.5)
            wall |= tube(z, y, x, fork, hilum, 7)
        hu[wall] = TISSUE
        hu[lumen] = GAS
    vessel = tube(z, y, x, (150, 130, 45), (150, 120, 160), 2.5)
    hu[vessel] = TISSUE
    nodule = ellipsoid(z, y, x, (160, 130, 42), (6, 6, 6))
    hu[nodule] = 20
    bubbles = ellipsoid(z, y, x, (12, 80, 230), (11, 30, 40)) | ellipsoid(z, y, x, (40, 70, 250), (12, 12, 14))
    bubbles &= ~(left | right)
    hu[bubbles] = GAS

    hu = ndimage.gaussian_filter(hu, [0.6 / step for step in spacing], output=np.float32)
    hu += np.random.default_rng(3).normal(0, 25, shape).astype(np.float32)
    hu[np.broadcast_to((y - 135) ** 2 + (x - 170) ** 2 > 178**2, shape)] = -1024
    truth = np.where(right, np.uint8(1), np.where(left, np.uint8(2), np.uint8(0)))
    return SimpleNamespace(
        volume=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        spacing=spacing,
        truth=truth,
        trachea=main,
        lumen=lumen,
        bubbles=bubbles,
        nodule=nodule & right,
        vessel=vessel & (right | left),
    )


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def inner(mask, spacing, margin_mm):
    from scipy import ndimage

    return ndimage.distance_transform_edt(mask, sampling=spacing) > margin_mm


@pytest.fixture(scope="module")
def chest():
    return thorax((1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def chest_result(chest):
    chest.volume.flags.writeable = False
    return segment_lungs(chest.volume, chest.spacing)
