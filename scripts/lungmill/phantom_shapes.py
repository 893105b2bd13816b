"""The formulas of the synthetic chest, as numba kernels: the HU of a point and its distances to the lungs.

Organs are signed distances (negative inside) of ellipsoids, squircles, half-spaces; a sample's HU is a blend over them.
`b` is a `phantom.Build`, `noise` periodic noise, float32 (TEXTURE_CELLS,) * 3 from -1 to 1.
All kernels that call one another are in this file: numba's cache does not see a change in another file.
"""

from math import floor, sqrt

from numba import njit

AIR, FAT, MUSCLE, BLOOD = -1000.0, -102.0, 52.0, 44.0
TEXTURE_CELLS = 32


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
def _texture(noise, z, y, x):
    """Smooth periodic noise of about -1 to 1, one cell per unit."""
    fz, fy, fx = floor(z), floor(y), floor(x)
    tz, ty, tx = z - fz, y - fy, x - fx
    tz, ty, tx = tz * tz * (3.0 - 2.0 * tz), ty * ty * (3.0 - 2.0 * ty), tx * tx * (3.0 - 2.0 * tx)
    mask = TEXTURE_CELLS - 1
    z0, y0, x0 = int(fz) & mask, int(fy) & mask, int(fx) & mask
    z1, y1, x1 = (z0 + 1) & mask, (y0 + 1) & mask, (x0 + 1) & mask
    a = noise[z0, y0, x0] * (1.0 - tx) + noise[z0, y0, x1] * tx
    b = noise[z0, y1, x0] * (1.0 - tx) + noise[z0, y1, x1] * tx
    c = noise[z1, y0, x0] * (1.0 - tx) + noise[z1, y0, x1] * tx
    d = noise[z1, y1, x0] * (1.0 - tx) + noise[z1, y1, x1] * tx
    return (a * (1.0 - ty) + b * ty) * (1.0 - tz) + (c * (1.0 - ty) + d * ty) * tz


@njit(cache=True, nogil=True)
def _wave(b, noise, z, y, x):
    """The slow noise by which organs differ from their formulas."""
    return _texture(noise, z / 31.0 + b.phase, y / 31.0 + b.phase, x / 31.0 + b.phase)


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
def _abdomen(hu, b, noise, z, y, x, depth, wave, grain, edge):
    """What lies below the diaphragm; `depth` is the distance to it."""
    level = y + 26.0 if b.table > 0.0 else 2.0 - y  # gas rises away from the table
    hu = _mix(_mix(hu, 48.0, depth, edge), FAT, depth + 2.5, edge)
    loops = _texture(noise, z / 17.0 + 0.03 * y, (y + 0.7 * x) / 20.0 + b.phase, (x - 0.7 * y) / 20.0)
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
def _sample(b, noise, z, y, x, edge):
    """HU at one point, without tubes, nodules and noise."""
    hu = _outside(b, z, y, x, edge)
    z, y, x = _straight(b, z, y, x)
    body = _body(z, y, x)
    if body > edge:
        return hu
    p = b.phase
    wave = _wave(b, noise, z, y, x)
    cage = _cage(z, y, x) + 1.6 * wave
    if cage > -edge:
        hu = _mix(_mix(hu, 12.0, body, edge), FAT + 6.0 * wave, body + 2.0, edge)
        layer = b.fat * (1.0 + 0.35 * wave - 0.4 * _step(40.0, 100.0, y) + 0.3 * _step(-40.0, -90.0, z))
        muscle = min(body + layer, cage - 11.0)
        if muscle < edge:
            grain = _texture(noise, z / 9.0 + p, y / 6.0, x / 6.0 - p)
            hu = _mix(hu, MUSCLE - 14.0 * max(0.0, grain), muscle, edge)
            # Fat in the armpits, and in planes between the muscles: where a smooth noise is near zero.
            plane = abs(_texture(noise, z / 45.0 - p, (y - 0.6 * x) / 27.0, (x + 0.6 * y) / 31.0 + p)) * 22.0
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
    grain = _texture(noise, z / 5.0 + p, y / 5.0, x / 5.0 - p)
    if lung > -edge:
        inner = -95.0 + 12.0 * grain
        inner = _mix(inner, BLOOD + 3.0 * grain, heart + 3.0, edge)
        depth = min(dome, _dome(b, z, y, x, not left) + 2.5 * wave)
        if depth < edge:
            inner = _abdomen(inner, b, noise, z, y, x, depth, wave, grain, edge)
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
def render_lattice(b, noise, origin, row, column, edge, out):
    """HU at the points of a lattice: point = origin + i * column + j * row, [z, y, x]."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            z = origin[0] + i * column[0] + j * row[0]
            y = origin[1] + i * column[1] + j * row[1]
            x = origin[2] + i * column[2] + j * row[2]
            out[i, j] = _sample(b, noise, z, y, x, edge)


@njit(cache=True, nogil=True)
def lung_distances(b, noise, points, out):
    """Distances to the right lung, the left lung and the inner chest wall, (n, 3) -> (n, 3); negative inside."""
    for n in range(len(points)):
        z, y, x = _straight(b, points[n, 0], points[n, 1], points[n, 2])
        wave = _wave(b, noise, z, y, x)
        cage, heart = _cage(z, y, x) + 1.6 * wave, _heart(b, z, y, x) + 2.0 * wave
        for left in range(2):
            dome = _dome(b, z, y, x, left == 1) + 2.5 * wave
            out[n, left] = _lung(b, z, y, x, left == 1, cage, heart, dome, wave)
        out[n, 2] = cage


@njit(cache=True, nogil=True)
def label_lungs(b, noise, z_mm, ys, xs, out):
    """Lung labels of one axial plane: 1 right, 2 left."""
    for i in range(len(ys)):
        for j in range(len(xs)):
            z, y, x = _straight(b, z_mm, ys[i], xs[j])
            cage = _cage(z, y, x)
            if cage > 4.0:
                continue
            wave = _wave(b, noise, z, y, x)
            cage += 1.6 * wave
            left = x > _middle(b, wave)
            heart, dome = _heart(b, z, y, x) + 2.0 * wave, _dome(b, z, y, x, left) + 2.5 * wave
            if cage < 0.0 and _lung(b, z, y, x, left, cage, heart, dome, wave) < 0.0:
                out[i, j] = 2 if left else 1
