"""A body with two lungs, a trachea and a table, made of ellipses: for the tests of positions and patches."""

import numpy as np

from lungmill.grid import Grid

SPACING = (2.0, 1.5, 1.5)
ORIGIN = (-100.0, 50.0, -75.0)


def phantom(shape=(60, 110, 130), spacing=SPACING, origin=ORIGIN):
    """An elliptic body in air, two ellipsoids of lung in it, a trachea between them, and a thin table that it lies on.

    Returns volume, mask, grid, the body, and what of the table is clear of the body.
    """
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    z, y, x = ((axis * mm - n * mm / 2) for axis, mm, n in zip((z, y, x), spacing, shape, strict=True))
    body = np.broadcast_to((x / 85) ** 2 + (y / 60) ** 2 < 1, shape)
    volume = np.where(body, 40.0, -1000.0)
    mask = np.zeros(shape, np.uint8)
    for label, middle in ((1, -38), (2, 38)):
        mask[(z / 45) ** 2 + (y / 40) ** 2 + ((x - middle) / 30) ** 2 < 1] = label
    volume[mask > 0] = -850
    trachea = np.broadcast_to((x / 6) ** 2 + (y / 6) ** 2 < 1, shape) & (mask == 0)
    volume[trachea] = -1000
    table = np.broadcast_to((y > 58) & (y < 62) & (abs(x) < 85), shape)
    volume[table] = 100
    table = table & (abs(x) > 45)
    volume += rng.normal(0, 25, shape)
    grid = Grid(shape, spacing, origin)
    return volume.round().astype(np.int16), mask, grid, body, table


VOLUME, MASK, GRID, BODY, TABLE = phantom()
