"""A synthetic chest described by formulas in the patient's frame: for the demo cohort, tests and benchmarks.

Everything is in mm, points are [z, y, x] in DICOM's LPS axes (z to the head, y to the back, x to the patient's left)
with the carina at z = 0. Organs are signed distances (negative inside) of ellipsoids, squircles, half-spaces; vessels
and airways are chains of tapered capsules; nodules are spheres. A sample's HU is a blend over the surfaces' distances,
so the same anatomy can be rendered exactly on any lattice, tilted ones included, and its labels are known on any grid.
The shapes and sizes are drawn by eye from adult chest CT; they model no measured population.
"""

from math import floor, sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from lungmill.errors import LungmillError

AIR, FAT, MUSCLE, BLOOD = -1000.0, -102.0, 52.0, 44.0
TEXTURE_CELLS = 32
TUBES_HU = (("great", BLOOD), ("bones", 450.0), ("vessels", 42.0), ("walls", 10.0), ("lumens", AIR))  # in this order

# Paths in the standard trunk: z, y, x, radius of the lumen. Trachea, right and left main bronchus.
AIRWAYS = (
    ((140.0, 0.0, 1.0, 8.6), (60.0, 12.0, 1.0, 8.6), (4.0, 24.0, 2.0, 8.8)),
    ((4.0, 24.0, 0.0, 7.2), (-12.0, 27.0, -18.0, 6.8), (-24.0, 28.0, -33.0, 5.8)),
    ((4.0, 24.0, 4.0, 6.4), (-14.0, 31.0, 24.0, 5.9), (-25.0, 34.0, 42.0, 5.2)),
)
HILUM = {"artery": ((-10.0, 18.0, -32.0), (-4.0, 26.0, 40.0)), "vein": ((-38.0, 14.0, -33.0), (-36.0, 22.0, 38.0))}
# The aorta in three parts, then the others in the mediastinum.
GREAT_VESSELS = (
    ((-40.0, -18.0, 0.0, 15.0), (-5.0, -26.0, -12.0, 16.0), (22.0, -22.0, -12.0, 15.0), (38.0, -6.0, -2.0, 14.0)),
    ((38.0, -6.0, -2.0, 14.0), (42.0, 14.0, 10.0, 13.5), (36.0, 34.0, 18.0, 13.0), (15.0, 48.0, 21.0, 12.5)),
    ((15.0, 48.0, 21.0, 12.5), (-60.0, 50.0, 20.0, 12.0), (-120.0, 44.0, 12.0, 11.5), (-210.0, 40.0, 6.0, 11.0)),
    ((60.0, -22.0, -20.0, 8.5), (20.0, -12.0, -23.0, 9.5), (-40.0, -6.0, -22.0, 10.0)),  # superior vena cava
    ((52.0, -28.0, 34.0, 6.5), (56.0, -32.0, 8.0, 7.0), (52.0, -26.0, -18.0, 7.5)),  # left brachiocephalic vein
    ((-40.0, -36.0, 16.0, 15.0), (-12.0, -24.0, 18.0, 14.0), (-6.0, 4.0, 24.0, 12.0), (-4.0, 26.0, 40.0, 8.5)),
    ((-10.0, -14.0, 18.0, 12.0), (-14.0, 4.0, -10.0, 11.0), (-10.0, 18.0, -32.0, 8.0)),  # right pulmonary artery
    ((-38.0, 14.0, -33.0, 6.5), (-44.0, 16.0, -12.0, 12.0), (-44.0, 18.0, 14.0, 13.0), (-36.0, 22.0, 38.0, 6.5)),
    ((140.0, 24.0, 4.0, 6.0), (20.0, 38.0, 4.0, 6.5), (-90.0, 30.0, 6.0, 7.0), (-130.0, 10.0, 30.0, 8.0)),  # oesophagus
    ((-75.0, 0.0, -20.0, 12.0), (-130.0, 14.0, -22.0, 12.0), (-210.0, 20.0, -22.0, 11.0)),  # inferior vena cava
    ((46.0, -2.0, 4.0, 6.0), (90.0, -2.0, 16.0, 4.5), (140.0, -8.0, 24.0, 4.0)),  # left common carotid
    ((44.0, -8.0, -8.0, 7.0), (80.0, -8.0, -18.0, 5.5), (140.0, -10.0, -26.0, 4.5)),  # brachiocephalic artery
    ((44.0, 14.0, 12.0, 6.0), (98.0, 8.0, 20.0, 5.0), (122.0, -6.0, 60.0, 4.5)),  # left subclavian artery
)
CLAVICLES = tuple(
    ((68.0, -76.0, 24.0 * side, 7.0), (92.0, -70.0, 80.0 * side, 5.0), (112.0, -34.0, 150.0 * side, 6.0))
    for side in (-1, 1)
)


class Nodule(NamedTuple):
    """A sphere of soft tissue; `center_mm` is [z, y, x] in LPS mm."""

    center_mm: tuple[float, float, float]
    diameter_mm: float
    hu: float
    pleural: bool


class Build(NamedTuple):
    """What differs between patients in the formulas; scales have no unit, the rest is mm."""

    scale_z: float
    scale_y: float
    scale_x: float
    bend: float  # how far the trunk is bent forward 150 mm above or below its middle
    fat: float  # thickness of the subcutaneous fat
    heart: float  # scale of the heart
    dome_right: float  # height of the diaphragm above the usual one
    dome_left: float
    middle: float  # x of the mediastinum's middle
    junction: float  # half the thickness of the anterior junction line
    table: float  # y of the table's surface at x = 0; below zero for a prone patient
    phase: float  # where in the texture this patient begins


@njit(cache=True, nogil=True)
def _step(low, high, value):
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True)
def _mix(hu, value, distance, edge):
    """Blend `value` over `hu` by the share of a sample of width `edge` that lies inside the surface."""
    share = 0.5 - distance / edge
    return hu if share <= 0.0 else value if share >= 1.0 else hu + share * (value - hu)


@njit(cache=True, nogil=True)
def _round_max(a, b, radius):
    """The intersection of two shapes with the edge between them rounded."""
    h = max(0.0, radius - abs(a - b))
    return max(a, b) + h * h / (4.0 * radius)


@njit(cache=True, nogil=True)
def _texture(table, z, y, x):
    """Smooth periodic noise of about -1 to 1, one cell per unit."""
    fz, fy, fx = floor(z), floor(y), floor(x)
    tz, ty, tx = z - fz, y - fy, x - fx
    tz, ty, tx = tz * tz * (3.0 - 2.0 * tz), ty * ty * (3.0 - 2.0 * ty), tx * tx * (3.0 - 2.0 * tx)
    mask = TEXTURE_CELLS - 1
    z0, y0, x0 = int(fz) & mask, int(fy) & mask, int(fx) & mask
    z1, y1, x1 = (z0 + 1) & mask, (y0 + 1) & mask, (x0 + 1) & mask
    a = table[z0, y0, x0] * (1.0 - tx) + table[z0, y0, x1] * tx
    b = table[z0, y1, x0] * (1.0 - tx) + table[z0, y1, x1] * tx
    c = table[z1, y0, x0] * (1.0 - tx) + table[z1, y0, x1] * tx
    d = table[z1, y1, x0] * (1.0 - tx) + table[z1, y1, x1] * tx
    return (a * (1.0 - ty) + b * ty) * (1.0 - tz) + (c * (1.0 - ty) + d * ty) * tz


@njit(cache=True, nogil=True)
def _ellipsoid(z, y, x, cz, cy, cx, rz, ry, rx):
    """Distance to an ellipsoid, first order (exact on the surface), as r (r - 1) / |gradient of r^2 / 2|."""
    t, v, u = (z - cz) / rz, (y - cy) / ry, (x - cx) / rx
    r2 = max(t * t + v * v + u * u, 1e-4)
    return (r2 - sqrt(r2)) / sqrt((t / rz) ** 2 + (v / ry) ** 2 + (u / rx) ** 2 + 1e-12)


@njit(cache=True, nogil=True)
def _squircle(t, v, u, rz, ry, rx, k):
    """The same for a cross-section between an ellipse (k = 0) and a rectangle (k = 1); scaled arguments."""
    vv, uu = v * v, u * u
    if vv > 1.7 or uu > 1.7:
        return 100.0
    r2 = max(t * t + vv + uu - k * vv * uu, 1e-4)
    gz, gy, gx = t / rz, v * (1.0 - k * uu) / ry, u * (1.0 - k * vv) / rx
    return (r2 - sqrt(r2)) / sqrt(gz * gz + gy * gy + gx * gx + 1e-12)


@njit(cache=True, nogil=True)
def _straight(b, z, y, x):
    """From the patient's frame to the standard trunk that the formulas below describe."""
    z /= b.scale_z
    return z, y / b.scale_y + b.bend * ((z + 40.0) / 150.0) ** 2, x / b.scale_x


@njit(cache=True, nogil=True)
def _body(z, y, x):
    wide = 167.0 + 20.0 * _step(45.0, 120.0, z) - 6.0 * _step(-60.0, -160.0, z)
    deep = 114.0 - 16.0 * _step(30.0, 120.0, z)
    return _squircle(0.0, (y - 7.0) / deep, x / wide, 1.0, deep, wide, 0.4)


@njit(cache=True, nogil=True)
def _cage(z, y, x):
    """The inner face of the chest wall: one tube below, a dome for each apex above, gutters beside the spine."""
    ax = abs(x)
    t = max(0.0, (z - 2.0) / 94.0)
    c = 46.0 * min(t, 1.0)
    if y > 0.0:
        y -= 0.16 * y * max(0.0, 1.0 - ((ax - 64.0) / 60.0) ** 2)
    return _squircle(t, y / 91.0, (ax - c) / (137.0 - c), 94.0, 91.0, 137.0 - c, 0.25)


@njit(cache=True, nogil=True)
def _dome(b, z, y, x, left):
    """One half of the diaphragm and its flat middle: negative below. Lower at the back than in front."""
    lowest = z
    floor_mm = z + 116.0 + 0.25 * y + 1.2 * max(0.0, y - 10.0) + 1.2 * max(0.0, abs(x) - 30.0)
    if left:
        z, y, x = z - b.dome_left + 188.0, y + 2.0, x - 74.0
        half = _ellipsoid(max(0.0, z + 0.22 * y), y, x, 0.0, 0.0, 0.0, 82.0, 112.0, 84.0)
    else:
        z, y, x = z - b.dome_right + 184.0, y + 6.0, x + 69.0
        half = _ellipsoid(max(0.0, z + 0.22 * y), y, x, 0.0, 0.0, 0.0, 92.0, 118.0, 84.0)
    # The recess beside the spine ends at the last rib, where neither dome reaches.
    return -_round_max(_round_max(-half, -floor_mm, 8.0), -(lowest + 160.0), 16.0)


@njit(cache=True, nogil=True)
def _heart(b, z, y, x):
    """Ventricles: an ellipsoid whose apex points to the left, front and feet; atria: one behind, to the right."""
    z, y, x = z + 64.0, y + 27.0, x - 20.0
    along = (-0.46 * z - 0.40 * y + 0.79 * x) / (64.0 * b.heart)
    across2 = max(0.0, z * z + y * y + x * x - (along * 64.0 * b.heart) ** 2) / (47.0 * b.heart) ** 2
    r2 = max(along * along + across2, 1e-4)
    ventricles = (r2 - sqrt(r2)) / sqrt((along / (64.0 * b.heart)) ** 2 + across2 / (47.0 * b.heart) ** 2 + 1e-12)
    atria = _ellipsoid(z, y, x, 16.0, 22.0, -26.0, 36.0, 27.0, 33.0)
    return -_round_max(-ventricles, -atria, 14.0)


@njit(cache=True, nogil=True)
def _mediastinum(b, z, y, left):
    """Half the thickness of the wall between the lungs: a thin line in front, great vessels, then the spine."""
    if left:  # the arch and the descending aorta
        wide = 30.0 + 5.0 * _step(0.0, 30.0, y) - 14.0 * _step(58.0, 86.0, y) - 6.0 * _step(50.0, 80.0, z)
    else:  # behind the heart the right lung comes close to the oesophagus
        wide = 27.0 - 4.0 * _step(62.0, 92.0, y)
        wide -= 15.0 * _step(-15.0, -50.0, z) * _step(18.0, 36.0, y) * _step(72.0, 50.0, y)
    wide -= 9.0 * _step(-40.0, -100.0, z) * _step(30.0, 0.0, y)
    front = b.junction + 13.0 * _step(30.0, 70.0, z) + 16.0 * _step(-72.0, -92.0, y)
    return front + (wide - front) * _step(-50.0, -16.0, y)


@njit(cache=True, nogil=True)
def _middle(b, wave):
    return b.middle + 2.5 * wave


@njit(cache=True, nogil=True)
def _lung(b, z, y, x, left, cage, heart, dome, wave):
    side = x - _middle(b, wave) if left else _middle(b, wave) - x
    half = _mediastinum(b, z, y, left)
    half += 3.0 * wave * min(1.0, (half - b.junction) / 10.0)  # the junction line itself stays as thin as it is
    lung = _round_max(cage, half - side, 7.0)
    lung = _round_max(lung, 1.0 - heart, 6.0)
    return _round_max(lung, -1.5 - dome, 3.0)


@njit(cache=True, nogil=True)
def _bones(hu, z, y, x, cage, grain, edge):
    """Ribs, sternum and shoulder blades as shells at fixed distances from the inner chest wall."""
    ax = abs(x)
    # Ribs go down towards the front; 12 of them, one every 24 mm; the front ends are cartilage.
    slope = 0.45 + 0.1 * _step(60.0, -60.0, z)
    turn = (z + slope * (92.0 - y) + 0.3 * min(ax, 80.0) - 116.0) / 24.0
    number = min(0.0, max(-11.0, floor(turn + 0.5)))
    end = -62.0 - 3.0 * number if number > -7.0 else -40.0 - 12.0 * (number + 7.0)
    up, out = (turn - number) * 24.0 / 1.12, cage - 6.5
    rib = sqrt((up / 1.7) ** 2 + out * out) - 3.6
    rib = max(rib, 20.0 - ax, end - 25.0 - y if number > -7.0 else end - y)
    if rib < edge:
        if y < end:
            hu = _mix(hu, 95.0, rib, edge)
        else:
            hu = _mix(_mix(hu, 560.0, rib, edge), 240.0 + 60.0 * grain, rib + 1.8, edge)
    if y < 0.0:
        half = 13.0 + 11.0 * _step(22.0, 42.0, z)
        sternum = max(_round_max(abs(cage - 9.0) - 5.0, ax - half, 8.0), z - 64.0, -78.0 - z)
        hu = _mix(_mix(hu, 430.0, sternum, edge), 170.0 + 40.0 * grain, sternum + 2.0, edge)
    elif cage > 12.0:
        blade = max(abs(cage - 17.5 - 3.0 * _step(30.0, 80.0, z)) - 2.2, 22.0 - y, 64.0 - ax, -48.0 - z)
        hu = _mix(_mix(hu, 480.0, blade, edge), 300.0, blade + 1.5, edge)
    return hu


@njit(cache=True, nogil=True)
def _spine(hu, z, y, x, grain, edge):
    ax, y = abs(x), y - 69.0
    turn = z / 25.0
    high = (turn - floor(turn)) * 25.0  # height within one vertebra and its disc
    waist = 1.5 * (1.0 - ((high - 12.5) / 12.5) ** 2)
    column = sqrt((ax / 1.2) ** 2 + y * y) - 15.0 + waist
    hu = _mix(hu, 45.0, column - 1.5, edge)
    if column < edge:
        body = max(column, abs(high - 12.5) - 10.0)
        hu = _mix(hu, 85.0, column, edge)
        hu = _mix(_mix(hu, 450.0, body, edge), 190.0 + 45.0 * grain, body + 1.8, edge)
    canal = sqrt((ax / 1.25) ** 2 + (y - 23.5) ** 2) - 8.0
    arch = max(canal - 5.0, abs(high - 13.0) - 9.0)
    wing = max(abs(y - 24.0 - 0.35 * ax) - 4.5, ax - 34.0, 9.0 - ax, abs(high - 16.0) - 5.0)
    thorn = max(ax - 3.5, 28.0 - y, y - 50.0, abs(high + 0.5 * (y - 30.0) - 13.0) - 6.0)
    bone = min(arch, wing, thorn)
    if bone < edge:
        hu = _mix(_mix(hu, 520.0, bone, edge), 280.0 + 40.0 * grain, bone + 2.0, edge)
    return _mix(hu, 22.0, canal, edge)


@njit(cache=True, nogil=True)
def _abdomen(hu, b, table, z, y, x, depth, wave, grain, edge):
    """What lies below the diaphragm; `depth` is the distance to it."""
    level = y + 26.0 if b.table > 0.0 else 2.0 - y  # gas rises away from the table
    hu = _mix(_mix(hu, 48.0, depth, edge), FAT, depth + 2.5, edge)
    loops = _texture(table, z / 17.0 + 0.03 * y, (y + 0.7 * x) / 20.0 + b.phase, (x - 0.7 * y) / 20.0)
    hu = _mix(hu, 36.0 + 8.0 * grain, max((0.14 - loops) * 16.0, depth + 5.0), edge)
    liver = _round_max(depth + 2.5, 0.84 * x + 0.4 * (y + 20.0) - 0.35 * (z + 120.0) - 8.0 + 14.0 * wave, 12.0)
    hu = _mix(hu, 57.0 + 4.0 * grain, liver, edge)
    spleen = _round_max(depth + 3.0, _ellipsoid(z, y, x, -152.0, 50.0, 98.0, 38.0, 40.0, 27.0) + 3.0 * wave, 6.0)
    hu = _mix(hu, 50.0 + 3.0 * grain, spleen, edge)
    stomach = _round_max(depth + 3.5, _ellipsoid(z, y, x, -140.0, -12.0, 58.0, 26.0, 44.0, 34.0) + 3.0 * wave, 6.0)
    hu = _mix(_mix(hu, 42.0, stomach, edge), 18.0 + 20.0 * grain, stomach + 4.0, edge)
    hu = _mix(hu, -960.0, max(stomach + 5.0, level), edge)
    colon = _ellipsoid(z, y, x, -166.0, -30.0, 96.0, 22.0, 24.0, 19.0) + 4.0 * wave
    hu = _mix(_mix(hu, 40.0, colon, edge), -920.0 + 60.0 * max(0.0, grain), colon + 3.0, edge)
    if z < -140.0:
        kidney = _ellipsoid(z, y, abs(x), -196.0, 56.0, 58.0, 46.0, 24.0, 27.0) + 2.0 * wave
        hu = _mix(hu, 34.0, kidney, edge)
    return hu


@njit(cache=True, nogil=True)
def _parenchyma(b, z, y, left, wave, grain):
    """Lung tissue is denser where it lies lowest; fissures are faint lines."""
    down = 1.0 if b.table > 0.0 else -1.0
    hu = -862.0 + 0.28 * down * y + 14.0 * grain + 12.0 * wave
    oblique = (z - 40.0 - 1.05 * (y - 70.0)) / 1.45 + 9.0 * wave
    fissure = abs(oblique)
    if not left and oblique > 0.0:
        fissure = min(fissure, abs(z + 22.0 + 0.1 * y + 10.0 * wave))
    return hu + 100.0 * max(0.0, 1.0 - fissure / 1.3)


@njit(cache=True, nogil=True)
def _outside(b, z, y, x, edge):
    """Air and the scanner's table: two thin curved shells with foam between them."""
    under = y - b.table if b.table > 0.0 else b.table - y
    under += x * x / 1100.0
    if under < -edge or under > 26.0 or abs(x) > 210.0:
        return AIR
    hu = _mix(AIR, -935.0, max(-under, under - 22.0), edge)
    hu = _mix(hu, -30.0, abs(under - 1.2) - 1.2, edge)
    return _mix(hu, -250.0, abs(under - 21.0) - 0.8, edge)


@njit(cache=True, nogil=True)
def _sample(b, table, z, y, x, edge):
    """HU at one point, without tubes, nodules and noise."""
    hu = _outside(b, z, y, x, edge)
    z, y, x = _straight(b, z, y, x)
    body = _body(z, y, x)
    if body > edge:
        return hu
    p = b.phase
    wave = _texture(table, z / 31.0 + p, y / 31.0 + p, x / 31.0 + p)
    cage = _cage(z, y, x) + 1.6 * wave
    if cage > -edge:
        hu = _mix(_mix(hu, 12.0, body, edge), FAT + 6.0 * wave, body + 2.0, edge)
        layer = b.fat * (1.0 + 0.35 * wave - 0.4 * _step(40.0, 100.0, y) + 0.3 * _step(-40.0, -90.0, z))
        muscle = min(body + layer, cage - 11.0)
        if muscle < edge:
            grain = _texture(table, z / 9.0 + p, y / 6.0, x / 6.0 - p)
            hu = _mix(hu, MUSCLE - 14.0 * max(0.0, grain), muscle, edge)
            # Fat in the armpits, and in planes between the muscles: where a smooth noise is near zero.
            plane = abs(_texture(table, z / 45.0 - p, (y - 0.6 * x) / 27.0, (x + 0.6 * y) / 31.0 + p)) * 22.0
            plane -= 1.0 + 1.6 * max(0.0, wave)
            plane = max(min(plane, abs(cage - 12.5) - 0.5), 12.0 - cage, 4.0 + body + layer)
            pit = _ellipsoid(z, y, abs(x), 62.0, -12.0, 120.0, 50.0, 30.0, 24.0) + 9.0 * wave + 5.0 * grain
            hu = _mix(_mix(hu, -80.0, plane, edge), -98.0, max(pit, 10.0 - cage, 6.0 + body), edge)
            hu = _bones(hu, z, y, x, cage, grain, edge)
            if y > 70.0 and abs(x) < 40.0:
                hu = _spine(hu, z, y, x, grain, edge)
    if cage >= edge:
        return hu
    left = x > _middle(b, wave)
    heart = _heart(b, z, y, x) + 2.0 * wave
    dome = _dome(b, z, y, x, left) + 2.5 * wave
    lung = _lung(b, z, y, x, left, cage, heart, dome, wave)
    grain = _texture(table, z / 5.0 + p, y / 5.0, x / 5.0 - p)
    if lung > -edge:
        inner = -95.0 + 12.0 * grain
        inner = _mix(inner, BLOOD + 3.0 * grain, heart + 3.0, edge)
        depth = min(dome, _dome(b, z, y, x, not left) + 2.5 * wave)
        if depth < edge:
            inner = _abdomen(inner, b, table, z, y, x, depth, wave, grain, edge)
        if y > 45.0 and abs(x) < 40.0:
            inner = _spine(inner, z, y, x, grain, edge)
        hu = _mix(hu, inner, cage, edge)
    if lung < edge:
        hu = _mix(hu, _parenchyma(b, z, y, left, wave, grain), lung, edge)
    if abs(x - _middle(b, wave)) < 2.0 * edge:  # both lungs may reach into a sample of the junction line
        other = _lung(b, z, y, x, not left, cage, heart, dome, wave)
        hu = _mix(hu, _parenchyma(b, z, y, not left, wave, grain), other, edge)
    return hu


@njit(cache=True, nogil=True)
def _render(b, table, origin, row, column, edge, out):
    """Sample a lattice: point = origin + i * column + j * row, [z, y, x]."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            z = origin[0] + i * column[0] + j * row[0]
            y = origin[1] + i * column[1] + j * row[1]
            x = origin[2] + i * column[2] + j * row[2]
            out[i, j] = _sample(b, table, z, y, x, edge)


@njit(cache=True, nogil=True)
def _lung_distances(b, table, points, out):
    """Distances to the right lung, the left lung and the inner chest wall, (n, 3) -> (n, 3); negative inside."""
    for n in range(len(points)):
        z, y, x = _straight(b, points[n, 0], points[n, 1], points[n, 2])
        wave = _texture(table, z / 31.0 + b.phase, y / 31.0 + b.phase, x / 31.0 + b.phase)
        cage, heart = _cage(z, y, x) + 1.6 * wave, _heart(b, z, y, x) + 2.0 * wave
        for left in range(2):
            dome = _dome(b, z, y, x, left == 1) + 2.5 * wave
            out[n, left] = _lung(b, z, y, x, left == 1, cage, heart, dome, wave)
        out[n, 2] = cage


@njit(cache=True, nogil=True)
def _lung_slice(b, table, z_mm, ys, xs, out):
    """Lung labels of one axial plane: 1 right, 2 left."""
    for i in range(len(ys)):
        for j in range(len(xs)):
            z, y, x = _straight(b, z_mm, ys[i], xs[j])
            cage = _cage(z, y, x)
            if cage > 4.0:
                continue
            wave = _texture(table, z / 31.0 + b.phase, y / 31.0 + b.phase, x / 31.0 + b.phase)
            cage += 1.6 * wave
            left = x > _middle(b, wave)
            heart, dome = _heart(b, z, y, x) + 2.0 * wave, _dome(b, z, y, x, left) + 2.5 * wave
            if cage < 0.0 and _lung(b, z, y, x, left, cage, heart, dome, wave) < 0.0:
                out[i, j] = 2 if left else 1


@njit(cache=True, nogil=True)
def _cover(share, tubes, origin, row, column, step_row, step_column, edge):
    """Share of each sample that lies in a set of capsules (rows of z0 y0 x0 z1 y1 x1 r0 r1), the largest over the set.

    `row` and `column` are unit vectors. Only the samples in a capsule's bounding box on the lattice are visited.
    """
    nz, ny = row[1] * column[2] - row[2] * column[1], row[2] * column[0] - row[0] * column[2]
    nx = row[0] * column[1] - row[1] * column[0]
    for n in range(len(tubes)):
        az, ay, ax = tubes[n, 0] - origin[0], tubes[n, 1] - origin[1], tubes[n, 2] - origin[2]
        dz, dy, dx = tubes[n, 3] - tubes[n, 0], tubes[n, 4] - tubes[n, 1], tubes[n, 5] - tubes[n, 2]
        r0, r1 = tubes[n, 6], tubes[n, 7]
        reach = max(r0, r1) + 0.5 * edge
        above, climb = nz * az + ny * ay + nx * ax, nz * dz + ny * dy + nx * dx
        if min(above, above + climb) > reach or max(above, above + climb) < -reach:
            continue
        t0, t1 = 0.0, 1.0  # the part of the axis within reach of the plane
        if abs(climb) > 1e-9:
            ta, tb = (-reach - above) / climb, (reach - above) / climb
            t0, t1 = max(0.0, min(ta, tb)), min(1.0, max(ta, tb))
        u0, v0 = row[0] * az + row[1] * ay + row[2] * ax, column[0] * az + column[1] * ay + column[2] * ax
        du, dv = row[0] * dz + row[1] * dy + row[2] * dx, column[0] * dz + column[1] * dy + column[2] * dx
        ua, ub, va, vb = u0 + t0 * du, u0 + t1 * du, v0 + t0 * dv, v0 + t1 * dv
        i0 = max(0, floor((min(va, vb) - reach) / step_column))
        i1 = min(share.shape[0] - 1, floor((max(va, vb) + reach) / step_column) + 1)
        j0 = max(0, floor((min(ua, ub) - reach) / step_row))
        j1 = min(share.shape[1] - 1, floor((max(ua, ub) + reach) / step_row) + 1)
        length2 = dz * dz + dy * dy + dx * dx + 1e-12
        for i in range(i0, i1 + 1):
            for j in range(j0, j1 + 1):
                u, v = j * step_row - u0, i * step_column - v0  # the sample relative to the axis' first point
                t = min(1.0, max(0.0, (u * du + v * dv - above * climb) / length2))
                radius = r0 + t * (r1 - r0)
                away2 = (u - t * du) ** 2 + (v - t * dv) ** 2 + (above + t * climb) ** 2
                part = min(1.0, 0.5 - (sqrt(away2) - radius) / edge)
                if 2.0 * radius < edge:  # a thread thinner than a sample never fills it
                    part *= (2.0 * radius / edge) ** 1.5
                if part > share[i, j]:
                    share[i, j] = part


class Anatomy:
    """One patient: `build` (numbers of the formulas), `nodules`, and `tubes` (sets of capsules, float64 (n, 8))."""

    def __init__(self, build, nodules, tubes, texture):
        self.build = build
        self.nodules = nodules
        self.tubes = tubes
        self._table = texture

    @classmethod
    def random(cls, seed, prone=False):
        """Draw a patient; the same seed (an int or a sequence of ints) gives the same patient.

        `prone` puts the table in front of the patient and lets fluid and gas settle accordingly.
        """
        rng = np.random.default_rng(seed)
        table = (rng.standard_normal((TEXTURE_CELLS,) * 3) * 0.5).clip(-1, 1).astype(np.float32)
        build = Build(
            *(rng.uniform(low, high) for low, high in ((0.94, 1.04), (0.95, 1.05), (0.93, 1.02))),
            bend=rng.uniform(5.0, 10.0),
            fat=rng.uniform(9.0, 17.0),
            heart=rng.uniform(0.94, 1.08),
            dome_right=rng.uniform(-8.0, 8.0),
            dome_left=rng.uniform(-8.0, 6.0),
            middle=rng.uniform(0.0, 4.0),
            junction=rng.uniform(0.7, 1.2),
            table=-130.0 if prone else 131.0,
            phase=rng.uniform(0.0, TEXTURE_CELLS),
        )
        tubes = _mediastinal_tubes(build)
        anatomy = cls(build, [], tubes, table)
        vessels, bronchi = [], []
        for side, (low, high) in enumerate((((-185, -110, -145), (105, 115, 5)), ((-185, -110, -5), (105, 115, 145)))):
            points = rng.uniform(low, high, (8000, 3))
            inside = points[anatomy.lung_distances(points)[:, side] < -3.0]
            for root, share, tip, chains in (
                (HILUM["artery"][side], 0.34, 0.64, vessels),
                (HILUM["vein"][side], 0.24, 0.64, vessels),
                (AIRWAYS[1 + side][-1][:3], 0.012, 1.0, bronchi),
            ):
                chosen = inside[rng.random(len(inside)) < share]
                branches = np.array(_grow(rng, _placed(build, [root])[0], chosen, tip))
                if chains is bronchi:  # the larger ones, and none that cuts a corner through the heart
                    ends = anatomy.lung_distances(branches[:, 3:6])[:, side]
                    branches = branches[(branches[:, 7] > 1.2) & (ends < -2.0)]
                chains.append(branches)
        tubes["vessels"], bronchi = np.concatenate(vessels), np.concatenate(bronchi)
        tubes["walls"] = np.concatenate([tubes["walls"], _walled(bronchi)])
        tubes["lumens"] = np.concatenate([tubes["lumens"], bronchi])
        anatomy.nodules += _draw_nodules(rng, anatomy)
        return anatomy

    def lung_distances(self, points_mm):
        """Distances (n, 3) float64 in mm from points (n, 3) to the right lung, the left lung and the inner chest wall.

        Negative inside, exact on the surface and first order away from it.
        """
        points = np.ascontiguousarray(points_mm, dtype=np.float64)
        out = np.empty((len(points), 3))
        _lung_distances(self.build, self._table, points, out)
        return out

    def render_slice(self, origin_mm, row_direction, column_direction, spacing_mm, shape, edge_mm=None):
        """Render HU without noise on a lattice of points, float32 of `shape` (rows, columns).

        Sample [i, j] is `origin_mm + i * spacing_mm[0] * column_direction + j * spacing_mm[1] * row_direction`; points
        and unit vectors are [z, y, x]. The names are DICOM's: along a row the column index grows, and `spacing_mm` is
        PixelSpacing. `edge_mm` is the width over which surfaces blend (default: the mean of the spacing).
        Raises LungmillError where the directions are not perpendicular unit vectors.
        """
        origin, row, column = (np.asarray(v, dtype=np.float64) for v in (origin_mm, row_direction, column_direction))
        if abs(row @ column) > 1e-4 or abs(row @ row - 1) > 1e-4 or abs(column @ column - 1) > 1e-4:
            raise LungmillError("render_slice: row and column directions must be perpendicular unit vectors")
        step_column, step_row = (float(mm) for mm in spacing_mm)
        edge = float(edge_mm) if edge_mm else (step_column + step_row) / 2
        out = np.empty(shape, dtype=np.float32)
        _render(self.build, self._table, origin, row * step_row, column * step_column, edge, out)
        lattice = (origin, row, column, step_row, step_column, edge)
        share = np.empty_like(out)
        for name, hu in TUBES_HU:
            share.fill(0)
            _cover(share, self.tubes[name], *lattice)
            share *= hu - out
            out += share
        for nodule in self.nodules:
            share.fill(0)
            _cover(share, _sphere(nodule), *lattice)
            np.maximum(out, out + share * (nodule.hu - out), out=out)
        return out

    def render(self, grid, edge_mm=None, noise_hu=0.0, seed=0):
        """Render a whole `Grid` as int16 HU, with noise of `noise_hu` seeded per slice. Values stop at -1024."""
        edge = edge_mm or float(np.prod(grid.spacing_mm)) ** (1 / 3)
        out = np.empty(grid.shape, dtype=np.int16)
        for k, z in enumerate(grid.axis_mm(0)):
            origin = (z, grid.origin_mm[1], grid.origin_mm[2])
            image = self.render_slice(origin, (0, 0, 1), (0, 1, 0), grid.spacing_mm[1:], grid.shape[1:], edge)
            if noise_hu:
                image += scanner_noise(image.shape, noise_hu, (seed, k))
            out[k] = np.rint(image).clip(-1024, 3071)
        return out

    def labels(self, grid, of="lungs"):
        """The truth at the voxel centres of a `Grid`, uint8.

        `of` is "lungs" (1 right, 2 left: vessels, bronchi and nodules in the lung are lung, trachea and main bronchi
        with their walls are not), "trachea" (1: the lumen of the trachea and the main bronchi) or "nodules" (1, 2, ...
        in the order of `nodules`, also where they reach into the chest wall). Raises LungmillError for another `of`.
        """
        if of not in ("lungs", "trachea", "nodules"):
            raise LungmillError(f'labels: of={of!r} is none of "lungs", "trachea", "nodules"')
        out = np.zeros(grid.shape, dtype=np.uint8)
        ys, xs = grid.axis_mm(1), grid.axis_mm(2)
        sets = {"lungs": [self.tubes["main_walls"]], "trachea": [self.tubes["main_lumens"]]}
        sets["nodules"] = [_sphere(nodule) for nodule in self.nodules]
        share = np.empty(grid.shape[1:], dtype=np.float32)
        row, column = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
        for k, z in enumerate(grid.axis_mm(0)):
            if of == "lungs":
                _lung_slice(self.build, self._table, z, ys, xs, out[k])
            for number, tubes in enumerate(sets[of], start=1):
                share.fill(0)
                origin = np.array([z, ys[0], xs[0]])
                _cover(share, tubes, origin, row, column, float(grid.spacing_mm[2]), float(grid.spacing_mm[1]), 1e-6)
                out[k][share >= 0.5] = 0 if of == "lungs" else number
        return out


def scanner_noise(shape, sigma_hu, seed):
    """Gaussian noise of `sigma_hu`, correlated as by a soft reconstruction kernel (binomial 3 x 3), float32 of `shape`.

    `seed` is an int or a sequence of ints; give every slice its own.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((shape[0] + 2, shape[1] + 2), dtype=np.float32)
    noise = noise[:-2] + 2 * noise[1:-1] + noise[2:]
    noise = noise[:, :-2] + 2 * noise[:, 1:-1] + noise[:, 2:]
    return noise * np.float32(sigma_hu / 6)  # sqrt(1 + 4 + 1) for each of the two directions


def pad_outside_circle(image, value):
    """Set what lies outside the reconstruction circle (diameter: the shorter side) to `value`, in place."""
    rows, columns = image.shape
    i, j = np.arange(rows)[:, None] - (rows - 1) / 2, np.arange(columns) - (columns - 1) / 2
    image[i * i + j * j > (min(rows, columns) / 2) ** 2] = value


def _placed(build, points):
    """Points [z, y, x] of the standard trunk in the patient's frame: the inverse of `_straight`."""
    z, y, x = np.array(points, dtype=np.float64).T
    y = y - build.bend * ((z + 40) / 150) ** 2
    return np.stack([z * build.scale_z, y * build.scale_y, (x + build.middle) * build.scale_x], axis=1)


def _chain(build, paths):
    """Capsules (n, 8) along paths of (z, y, x, radius)."""
    rows = []
    for path in paths:
        points, radii = _placed(build, [p[:3] for p in path]), [p[3] for p in path]
        rows += [(*points[n], *points[n + 1], radii[n], radii[n + 1]) for n in range(len(path) - 1)]
    return np.array(rows)


def _walled(tubes):
    """The same tubes with the airway's wall around them."""
    return np.concatenate([tubes[:, :6], tubes[:, 6:] * 1.1 + 0.6], axis=1)


def _mediastinal_tubes(build):
    lumens = _chain(build, AIRWAYS)
    walls = _walled(lumens)
    tubes = {"great": _chain(build, GREAT_VESSELS), "bones": _chain(build, CLAVICLES), "walls": walls, "lumens": lumens}
    return tubes | {"main_walls": walls, "main_lumens": lumens}


def _sphere(nodule):
    radius = nodule.diameter_mm / 2
    return np.array([[*nodule.center_mm, *nodule.center_mm, radius, radius]])


def _grow(rng, root, targets, tip_mm, power=0.35):
    """A tree of capsules from `root` that ends at every target: go part of the way to their mean, halve them, repeat.

    Kitaoka et al. (1999), J Appl Physiol 87:2207, divide the lung likewise. The radius is tip_mm * n ** power for n
    targets downstream; Murray's law would be a power of 1/3. Returns rows of capsules.
    """
    rows, stack = [], [(root, targets, np.inf, np.zeros(3))]
    while stack:
        start, group, before, heading = stack.pop()
        radius = tip_mm * len(group) ** power
        if len(group) == 1:
            rows.append((*start, *group[0], min(before, 1.3 * tip_mm), 0.7 * tip_mm))
            continue
        away = group - group.mean(axis=0)
        step = (group.mean(axis=0) - start) * rng.uniform(0.3, 0.55)
        step += 0.35 * np.linalg.norm(step) * heading  # no sharp turns
        end = start + step
        heading = step / np.linalg.norm(step)
        rows.append((*start, *end, min(before, 1.25 * radius), radius))
        axis = np.linalg.eigh(away.T @ away)[1][:, 2]
        order = np.argsort(away @ axis, kind="stable")
        cut = min(len(group) - 1, max(1, round(len(group) * rng.uniform(0.3, 0.7))))
        stack += [(end, group[part], radius, heading) for part in (order[:cut], order[cut:])]
    return rows


def _draw_nodules(rng, anatomy):
    """3 to 5 nodules: the first touches the pleura, the others lie free, away from one another and large vessels."""
    nodules, wanted = [], int(rng.integers(3, 6))
    thick = np.concatenate([anatomy.tubes[name] for name in ("vessels", "walls", "great")])
    thick = thick[thick[:, 6] > 1.5]
    while len(nodules) < wanted:
        pleural = not nodules
        diameter = float(rng.uniform(9, 18)) if pleural else float(np.exp(rng.uniform(np.log(4.5), np.log(19))))
        radius = diameter / 2
        points = rng.uniform((-140, -90, -130), (75, 95, 130), (500, 3))
        lungs = anatomy.lung_distances(points)
        depth, wall = lungs[:, :2].min(axis=1), lungs[:, 2]
        if pleural:  # most of it in the lung, its far side 0.3 to 0.5 radii into the chest wall
            fits = (-0.7 * radius < depth) & (depth < -0.5 * radius) & (np.abs(depth - wall) < 0.5)
        else:
            fits = depth < -(radius + 4)
        for point in points[fits]:
            if all(np.linalg.norm(point - n.center_mm) > radius + n.diameter_mm / 2 + 12 for n in nodules) and (
                pleural or _clearance(point, thick) > radius + 1
            ):
                hu = float(rng.uniform(25, 55))
                nodules.append(Nodule(tuple(float(mm) for mm in point), diameter, hu, pleural))
                break
    return nodules


def _clearance(point, tubes):
    """Distance from a point to the nearest capsule's surface."""
    along = tubes[:, 3:6] - tubes[:, :3]
    t = ((point - tubes[:, :3]) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    t = t.clip(0, 1)
    away = np.linalg.norm(tubes[:, :3] + t[:, None] * along - point, axis=1)
    return float((away - tubes[:, 6] - t * (tubes[:, 7] - tubes[:, 6])).min())
