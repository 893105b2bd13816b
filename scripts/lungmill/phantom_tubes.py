"""Vessels, airways, clavicles and nodules of the synthetic chest: sets of capsules, and how a patient's are drawn.

A set is float64 (n, 8), a row per capsule: z0 y0 x0 z1 y1 x1 r0 r1, mm in the patient's frame. A nodule is one of
length zero. `cover` renders a set; it calls no other kernel.
"""

from math import floor, sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

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
# Boxes around the right and the left lung, [z, y, x], in which the ends of branches are drawn.
LUNG_BOXES = (((-185, -110, -145), (105, 115, 5)), ((-185, -110, -5), (105, 115, 145)))


class Nodule(NamedTuple):
    """A sphere of soft tissue; `center_mm` is [z, y, x] in LPS mm."""

    center_mm: tuple[float, float, float]
    diameter_mm: float
    hu: float
    pleural: bool


@njit(cache=True, nogil=True)
def cover(share, tubes, origin, row, column, step_row, step_column, edge):
    """Set `share` to the part of each sample that lies in a set of capsules, the largest over the set.

    `row` and `column` are unit vectors. Only the samples in a capsule's bounding box on the lattice are visited.
    """
    share[:] = 0.0
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


def sphere(nodule):
    """A nodule as a set of one capsule."""
    radius = nodule.diameter_mm / 2
    return np.array([[*nodule.center_mm, *nodule.center_mm, radius, radius]])


def mediastinal_tubes(build):
    """The sets that every patient has by the same table: great vessels, bones, trachea and main bronchi."""
    lumens = _chain(build, AIRWAYS)
    walls = _walled(lumens)
    return {
        "great": _chain(build, GREAT_VESSELS),
        "bones": _chain(build, CLAVICLES),
        "walls": walls,
        "lumens": lumens,
        "main_walls": walls,
        "main_lumens": lumens,
    }


def add_branches(rng, anatomy):
    """Grow vessels and bronchi into both lungs: a new set "vessels", and more capsules in "walls" and "lumens"."""
    tubes, vessels, bronchi = anatomy.tubes, [], []
    for side, (low, high) in enumerate(LUNG_BOXES):
        points = rng.uniform(low, high, (8000, 3))
        inside = points[anatomy.lung_distances(points)[:, side] < -3.0]
        for root, share, tip, trees in (
            (HILUM["artery"][side], 0.34, 0.64, vessels),
            (HILUM["vein"][side], 0.24, 0.64, vessels),
            (AIRWAYS[1 + side][-1][:3], 0.012, 1.0, bronchi),
        ):
            chosen = inside[rng.random(len(inside)) < share]
            branches = np.array(_grow(rng, _placed(anatomy.build, [root])[0], chosen, tip))
            if trees is bronchi:  # the larger ones, and none that cuts a corner through the heart
                ends = anatomy.lung_distances(branches[:, 3:6])[:, side]
                branches = branches[(branches[:, 7] > 1.2) & (ends < -2.0)]
            trees.append(branches)
    bronchi = np.concatenate(bronchi)
    tubes["vessels"] = np.concatenate(vessels)
    tubes["walls"] = np.concatenate([tubes["walls"], _walled(bronchi)])
    tubes["lumens"] = np.concatenate([tubes["lumens"], bronchi])


def draw_nodules(rng, anatomy):
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


def _placed(build, points):
    """Points [z, y, x] of the standard trunk in the patient's frame: the inverse of `phantom_shapes._straight`."""
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


def _clearance(point, tubes):
    """Distance from a point to the nearest capsule's surface."""
    along = tubes[:, 3:6] - tubes[:, :3]
    t = ((point - tubes[:, :3]) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    t = t.clip(0, 1)
    away = np.linalg.norm(tubes[:, :3] + t[:, None] * along - point, axis=1)
    return float((away - tubes[:, 6] - t * (tubes[:, 7] - tubes[:, 6])).min())
