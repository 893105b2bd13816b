"""From blocks labelled right and left to the mask: filling, closing, and the border on the volume's own voxels.

Decisions about which air is lung need no millimetre detail. They are made on a grid of about 2 mm, which is 8 times
smaller than a 1 mm volume; `project_labels` then draws the border on the volume's own voxels.
"""

import numpy as np
from numba import njit

from lungmill.bits import dilate, fill_enclosed
from lungmill.dents import PLEURA_MM, RECOVERED_MM, close_dents, outer_wall
from lungmill.morphology import bounding_box, squared_distance


def closing_ball(spacing_mm, closing_mm):
    """(radius in mm of the closing's ball, blocks per axis within which the wall around a lung begins)."""
    step = min(spacing_mm[1:])
    # A whole number of blocks and a half: walls that are flat stay where they are.
    radius = (max(0, round(closing_mm / step - 0.5)) + 0.5) * step
    # What is farther than the radius from the lung, and so the end of its closing, begins within this.
    return radius, tuple(int(np.ceil((radius + step) / mm)) + 1 for mm in spacing_mm)


def surroundings(sides, spacing_mm, closing_mm):
    """A box of slices around both lungs, wide enough that cutting everything to it changes nothing in the steps here.

    It begins at even blocks, so that every second block stays the same one.
    """
    margin = tuple(blocks + 2 for blocks in closing_ball(spacing_mm, closing_mm)[1])
    return tuple(slice(part.start - part.start % 2, part.stop) for part in bounding_box(sides, margin))


def close_lungs(sides, hu, spacing_mm, closing_mm, rejected=None):
    """Fill and close each lung by itself, so that nothing bridges from one to the other.

    sides is uint8 [z, y, x], 0, 1 or 2; hu is the int16 HU of the same blocks; rejected, bool, is air that is no lung
    and must not come back, unless a lung encloses it. Returns (uint8 side, float32 depth): voxels with depth above 0,
    interpolated, belong to the lung. Depth is the distance in mm into the closed lung.
    """
    side = np.zeros(sides.shape, np.uint8)
    depth = np.full(sides.shape, np.float32(-100))
    step = min(spacing_mm[1:])
    radius, pad = closing_ball(spacing_mm, closing_mm)
    reach = radius + 3 * step
    outer = outer_wall(sides)
    if rejected is None:
        rejected = np.zeros(sides.shape, bool)
    for label in (1, 2):
        box = bounding_box(sides == label, pad)
        if box is None:
            continue
        lung = fill_enclosed(sides[box] == label)
        inner = _depth_in_closing(lung, box, sides.shape, pad, radius, reach, spacing_mm)
        if closing_mm > 0:
            close_dents(inner, lung, outer[box], hu[box], spacing_mm, closing_mm)
        # Along walls that the closing leaves alone, stay a block inside: the voxels' own HU draw the border there.
        shallow = dilate((inner > 0) & ~lung, spacing_mm, 1.5 * step)
        recovered = dilate((inner > step) & ~lung, spacing_mm, RECOVERED_MM)
        low = tuple(cut.start for cut in box)
        _take_over(
            inner, shallow, recovered, lung, np.uint8(label), low, (step, PLEURA_MM), sides, rejected, side, depth
        )
    return side, depth


@njit(cache=True, nogil=True)
def _take_over(inner, shallow, recovered, lung, label, low, change, sides, rejected, side, depth):
    """Write a lung's depth, given on a box that begins at `low`, and its label where no other lung is deeper."""
    for z in range(inner.shape[0]):
        for y in range(inner.shape[1]):
            k, j = z + low[0], y + low[1]
            for x in range(inner.shape[2]):
                i = x + low[2]
                here = inner[z, y, x]
                if not shallow[z, y, x]:
                    here -= np.float32(change[0])
                elif recovered[z, y, x]:
                    # Where the closing recovers something, go on into the pleura, as far as readers do.
                    here += np.float32(change[1])
                if (sides[k, j, i] and sides[k, j, i] != label) or (rejected[k, j, i] and not lung[z, y, x]):
                    here = np.float32(-100)
                if here > depth[k, j, i]:
                    depth[k, j, i] = here
                    if here > -50:
                        side[k, j, i] = label


def _depth_in_closing(lung, box, shape, pad, radius, reach, spacing_mm):
    """Distance in mm into the closed lung; at the ends of the volume both lung and wall go on as they are there."""
    beyond = [
        (max(0, margin - cut.start) if cut.start == 0 else 0, margin if cut.stop == size else 0)
        for cut, size, margin in zip(box, shape, pad, strict=True)
    ]
    extended = np.pad(lung, beyond, mode="edge")
    closed = dilate(extended, spacing_mm, radius)
    inside = tuple(slice(low, low + size) for (low, _), size in zip(beyond, lung.shape, strict=True))
    return np.sqrt(squared_distance(closed, spacing_mm, reach, to=False)[inside]) - np.float32(radius)


def project_labels(volume, threshold_hu, air_side, solid_side, depth, sure_mm, factors, low, out):
    """Draw the mask on the voxels of the volume.

    volume, out  int16 and uint8 [z, y, x], the same shape; labels are written to `out`, which is zero before
    air_side     uint8 on the coarse grid: the label that a voxel below `threshold_hu` takes in this block
    solid_side   uint8 on the coarse grid: the label that any voxel takes in this block where `depth` is above 0
    depth        float32 on the coarse grid, in mm, interpolated linearly between the centres of the blocks
    sure_mm      blocks deeper than this are lung as a whole
    low          index of the first block of the coarse grid
    """
    volume = volume.view()
    volume.flags.writeable = False  # mapped files and arrays in memory share one compiled kernel
    origin = tuple(first * factor for first, factor in zip(low, factors, strict=True))
    places = [
        _coarse_positions(min(size * factor, end - start), factor, size)
        for size, factor, start, end in zip(depth.shape, factors, origin, volume.shape, strict=True)
    ]
    # As int16, so that a vector of voxels is compared without widening them.
    threshold = np.int16(np.ceil(threshold_hu))
    _project(volume, threshold, air_side, solid_side, depth, sure_mm, factors, origin, *places, out)


def _coarse_positions(voxels, factor, size):
    """For every voxel of an axis the blocks before and after it, and how far it is between their centres (0 to 1)."""
    place = (np.arange(voxels) - 0.5 * (factor - 1)) / factor
    before = np.clip(np.floor(place).astype(np.int64), 0, size - 1)
    return before, np.minimum(before + 1, size - 1), np.clip(place - before, 0.0, 1.0).astype(np.float32)


@njit(cache=True, nogil=True)
def _project(volume, threshold_hu, air_side, solid_side, depth, sure_mm, factors, origin, at_z, at_y, at_x, out):
    cz, cy, cx = depth.shape
    fz, fy, fx = factors
    nz, ny, nx = len(at_z[0]), len(at_y[0]), len(at_x[0])
    low, high = np.empty(cx, np.float32), np.empty(cx, np.float32)
    dark, bright = np.empty(nx, np.uint8), np.empty(nx, np.uint8)
    mixed, row = np.empty(cx, np.int64), np.empty(cx, np.float32)
    # For every row of blocks, where the depth is above 0 and where air is lung: from the first block to the last.
    ends = np.empty((cz, cy, 4), np.int64)
    for k in range(cz):
        for j in range(cy):
            ends[k, j, 0], ends[k, j, 1] = _ends(depth[k, j])
            ends[k, j, 2], ends[k, j, 3] = _ends(air_side[k, j])
    for k in range(cz):
        for j in range(cy):
            # No voxel of this row of blocks can be lung outside `first` to `last`: all depths around are 0 or less.
            first, last = ends[k, j, 2], ends[k, j, 3]
            for z in range(max(0, k - 1), min(cz, k + 2)):
                for y in range(max(0, j - 1), min(cy, j + 2)):
                    if ends[z, y, 0] < ends[z, y, 1]:
                        first, last = min(first, max(0, ends[z, y, 0] - 1)), max(last, min(cx, ends[z, y, 1] + 1))
            if first >= last:
                continue
            start, stop = max(0, first - 1), min(cx, last + 1)
            least_, most_ = low[start:stop], high[start:stop]
            least_[:], most_[:] = np.float32(1e9), np.float32(-1e9)
            for z in range(max(0, k - 1), min(cz, k + 2)):
                for y in range(max(0, j - 1), min(cy, j + 2)):
                    beside = depth[z, y, start:stop]
                    for i in range(len(beside)):
                        here = beside[i]
                        least_[i] = here if here < least_[i] else least_[i]
                        most_[i] = here if here > most_[i] else most_[i]
            # What a voxel of each block becomes below the threshold and above it. Only where the sign of the depth
            # changes among a block's neighbours does it have to be interpolated.
            found = 0
            for i in range(first, last):
                air, solid = air_side[k, j, i], solid_side[k, j, i]
                before, after = max(0, i - 1), min(cx - 1, i + 1)
                least = min(low[before], low[i], low[after])
                most = max(high[before], high[i], high[after])
                if depth[k, j, i] > sure_mm and solid and (air == solid or not air):
                    below = above = solid
                elif not solid or most <= 0:
                    below, above = air, np.uint8(0)
                elif least > 1e-3:
                    below, above = air if air else solid, solid
                else:
                    below, above = air, np.uint8(0)
                    mixed[found] = i
                    found += 1
                for x in range(i * fx, min(nx, (i + 1) * fx)):
                    dark[x], bright[x] = below, above
            start, stop = first * fx, min(nx, last * fx)
            for z in range(k * fz, min(nz, (k + 1) * fz)):
                for y in range(j * fy, min(ny, (j + 1) * fy)):
                    to = out[z + origin[0], y + origin[1], origin[2] : origin[2] + nx]
                    # Slices that begin at 0, and so a loop without negative indices, are vectorised.
                    hu = volume[z + origin[0], y + origin[1], origin[2] + start : origin[2] + stop]
                    part, below_, above_ = to[start:stop], dark[start:stop], bright[start:stop]
                    for x in range(len(part)):
                        part[x] = below_[x] if hu[x] < threshold_hu else above_[x]
                    if not found:
                        continue
                    z0, z1, wz = at_z[0][z], at_z[1][z], at_z[2][z]
                    y0, y1, wy = at_y[0][y], at_y[1][y], at_y[2][y]
                    for i in range(max(0, mixed[0] - 1), min(cx, mixed[found - 1] + 2)):
                        here = depth[z0, y0, i] + wy * (depth[z0, y1, i] - depth[z0, y0, i])
                        beyond = depth[z1, y0, i] + wy * (depth[z1, y1, i] - depth[z1, y0, i])
                        row[i] = here + wz * (beyond - here)
                    for n in range(found):
                        solid = solid_side[k, j, mixed[n]]
                        for x in range(mixed[n] * fx, min(nx, (mixed[n] + 1) * fx)):
                            before, after = row[at_x[0][x]], row[at_x[1][x]]
                            deep = before + at_x[2][x] * (after - before) > 0
                            to[x] = solid if (to[x] == 0) & deep else to[x]


@njit(cache=True, nogil=True)
def _ends(row):
    """(the first value above 0, the last one + 1) of a row; (its length, 0) where there is none."""
    first, last = 0, len(row)
    while first < last and not row[first] > 0:
        first += 1
    while last > first and not row[last - 1] > 0:
        last -= 1
    return (first, last) if first < last else (len(row), 0)
