"""From blocks labelled right and left to the mask: filling, closing, and the border on the volume's own voxels.

Decisions about which air is lung need no millimetre detail. They are made on a grid of about 2 mm, which is 8 times
smaller than a 1 mm volume; `project_labels` then draws the border on the volume's own voxels.
"""

import numpy as np
from numba import njit

from lungmill.dents import PLEURA_MM, RECOVERED_MM, close_dents, outer_wall
from lungmill.morphology import bounding_box, dilate, fill_enclosed, squared_distance


def close_lungs(sides, hu, spacing_mm, closing_mm, rejected=None):
    """Fill and close each lung by itself, so that nothing bridges from one to the other.

    sides is uint8 [z, y, x], 0, 1 or 2; hu is the int16 HU of the same blocks; rejected, bool, is air that is no lung
    and must not come back, unless a lung encloses it. Returns (uint8 side, float32 depth): voxels with depth above 0,
    interpolated, belong to the lung. Depth is the distance in mm into the closed lung.
    """
    side = np.zeros(sides.shape, np.uint8)
    depth = np.full(sides.shape, np.float32(-100))
    step = min(spacing_mm[1:])
    # A whole number of blocks and a half: walls that are flat stay where they are.
    radius = (max(0, round(closing_mm / step - 0.5)) + 0.5) * step
    reach = radius + 3 * step
    # What is farther than the radius from the lung, and so the end of its closing, begins within this.
    pad = tuple(int(np.ceil((radius + step) / mm)) + 1 for mm in spacing_mm)
    for label in (1, 2):
        box = bounding_box(sides == label, pad)
        if box is None:
            continue
        other = (sides[box] != 0) & (sides[box] != label)
        lung = fill_enclosed(sides[box] == label)
        inner = _depth_in_closing(lung, box, sides.shape, pad, radius, reach, spacing_mm)
        if closing_mm > 0:
            close_dents(inner, lung, outer_wall(sides)[box], hu[box], spacing_mm, closing_mm)
        # Along walls that the closing leaves alone, stay a block inside: the voxels' own HU draw the border there.
        shallow = dilate((inner > 0) & ~lung, spacing_mm, 1.5 * step)
        recovered = dilate((inner > step) & ~lung, spacing_mm, RECOVERED_MM)
        # Where it recovers something, go on into the pleura, as far as readers do.
        inner[~shallow] -= np.float32(step)
        inner[recovered & shallow] += np.float32(PLEURA_MM)
        inner[other if rejected is None else other | (rejected[box] & ~lung)] = -100
        better = inner > depth[box]
        depth[box][better] = inner[better]
        side[box][better & (inner > -50)] = label
    return side, depth


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


@njit(cache=True, nogil=True)
def project_labels(volume, threshold_hu, air_side, solid_side, depth, sure_mm, factors, low, out):
    """Draw the mask on the voxels of the volume.

    volume, out  int16 and uint8 [z, y, x], the same shape; labels are written to `out`, which is zero before
    air_side     uint8 on the coarse grid: the label that a voxel below `threshold_hu` takes in this block
    solid_side   uint8 on the coarse grid: the label that any voxel takes in this block where `depth` is above 0
    depth        float32 on the coarse grid, in mm, interpolated linearly between the centres of the blocks
    sure_mm      blocks deeper than this are lung as a whole
    low          index of the first block of the coarse grid
    """
    cz, cy, cx = depth.shape
    fz, fy, fx = factors
    nz, ny, nx = volume.shape
    z_low, y_low, x_low = low[0] * fz, low[1] * fy, low[2] * fx
    row = np.empty(cx, np.float32)
    first, last = np.empty(cy, np.int64), np.empty(cy, np.int64)
    for k in range(cz):
        for j in range(cy):
            first[j], last[j] = cx, 0
            for i in range(cx):
                if air_side[k, j, i] | solid_side[k, j, i]:
                    first[j] = min(first[j], i)
                    last[j] = i + 1
        for z in range(z_low + k * fz, min(nz, z_low + (k + 1) * fz)):
            z0, wz = _coarse_position(z - z_low, fz, cz)
            z1 = min(z0 + 1, cz - 1)
            for j in range(cy):
                if first[j] >= last[j]:
                    continue
                start, stop = max(0, first[j] - 1), min(cx, last[j] + 1)
                for y in range(y_low + j * fy, min(ny, y_low + (j + 1) * fy)):
                    y0, wy = _coarse_position(y - y_low, fy, cy)
                    y1 = min(y0 + 1, cy - 1)
                    for i in range(start, stop):
                        here = depth[z0, y0, i] + wy * (depth[z0, y1, i] - depth[z0, y0, i])
                        above = depth[z1, y0, i] + wy * (depth[z1, y1, i] - depth[z1, y0, i])
                        row[i] = here + wz * (above - here)
                    for i in range(first[j], last[j]):
                        air, solid = air_side[k, j, i], solid_side[k, j, i]
                        if not air | solid:
                            continue
                        if depth[k, j, i] > sure_mm and solid and (air == solid or not air):
                            for x in range(x_low + i * fx, min(nx, x_low + (i + 1) * fx)):
                                out[z, y, x] = solid
                            continue
                        for x in range(x_low + i * fx, min(nx, x_low + (i + 1) * fx)):
                            label = air if volume[z, y, x] < threshold_hu else np.uint8(0)
                            if label == 0 and solid:
                                x0, wx = _coarse_position(x - x_low, fx, cx)
                                if row[x0] + wx * (row[min(x0 + 1, cx - 1)] - row[x0]) > 0:
                                    label = solid
                            out[z, y, x] = label


@njit(cache=True, nogil=True, inline="always")
def _coarse_position(index, factor, size):
    position = (index - 0.5 * (factor - 1)) / factor
    low = min(max(int(np.floor(position)), 0), size - 1)
    return low, np.float32(min(max(position - low, 0.0), 1.0))
