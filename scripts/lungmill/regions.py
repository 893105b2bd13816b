"""Shapes on a coarse grid: block means, components, short distances, enclosed structures, and the way back.

Decisions about which air is lung need no millimetre detail. They are made on a grid of about 2 mm, which is 8 times
smaller than a 1 mm volume; `project_labels` then draws the border on the volume's own voxels.
"""

import numpy as np
from numba import njit

# Where the closing recovers something, the border goes this far beyond it, and this far around it.
PLEURA_MM, RECOVERED_MM = 1.5, 6.0


def block_factors(spacing_mm, coarse_mm):
    """Return how many voxels per axis make a block nearest to `coarse_mm` (at least 1)."""
    return tuple(max(1, round(coarse_mm / mm)) for mm in spacing_mm)


@njit(cache=True, nogil=True)
def block_mean(volume, fz, fy, fx):
    """Mean of blocks of fz * fy * fx voxels, rounded down, as int16; blocks at the far ends may be smaller."""
    nz, ny, nx = volume.shape
    cz, cy, cx = (nz + fz - 1) // fz, (ny + fy - 1) // fy, (nx + fx - 1) // fx
    out = np.empty((cz, cy, cx), np.int16)
    sums = np.empty(cx, np.int64)
    for k in range(cz):
        z0, z1 = k * fz, min(nz, (k + 1) * fz)
        for j in range(cy):
            y0, y1 = j * fy, min(ny, (j + 1) * fy)
            sums[:] = 0
            for z in range(z0, z1):
                for y in range(y0, y1):
                    for i in range(cx):
                        total = 0
                        for x in range(i * fx, min(nx, (i + 1) * fx)):
                            total += volume[z, y, x]
                        sums[i] += total
            for i in range(cx):
                out[k, j, i] = sums[i] // ((z1 - z0) * (y1 - y0) * (min(nx, (i + 1) * fx) - i * fx))
    return out


def components(mask):
    """Label face-connected components: (uint32 labels, voxel counts indexed by label; 0 is the background)."""
    import cc3d

    labels = cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32)
    return labels, np.bincount(labels.ravel())


def largest_component(mask):
    """Keep the largest face-connected component of a boolean array; an empty array stays empty."""
    labels, counts = components(mask)
    if len(counts) == 1:
        return np.zeros_like(mask)
    return labels == 1 + np.argmax(counts[1:])


def squared_distance(mask, spacing_mm, reach_mm):
    """Squared distance (mm^2, float32) from every voxel to the nearest True one, exact up to `reach_mm`.

    Farther voxels get a value above reach_mm^2. Outside the array there is nothing. Three one-dimensional passes with
    few taps: for reaches of a few voxels much cheaper, in time and memory, than a full distance transform.
    """
    far = np.float32((2 * reach_mm) ** 2 + 1)
    distance = np.where(mask, np.float32(0), far)
    for axis, mm in enumerate(spacing_mm):
        before = distance
        distance = before.copy()
        for step in range(1, min(int(reach_mm / mm + 1e-6), mask.shape[axis] - 1) + 1):
            cost = np.float32((step * mm) ** 2)
            low = (slice(None),) * axis + (slice(None, -step),)
            high = (slice(None),) * axis + (slice(step, None),)
            np.minimum(distance[high], before[low] + cost, out=distance[high])
            np.minimum(distance[low], before[high] + cost, out=distance[low])
    return distance


def dilate(mask, spacing_mm, radius_mm):
    """Voxels within `radius_mm` of a True one (ball, centre to centre)."""
    return squared_distance(mask, spacing_mm, radius_mm) <= np.float32(radius_mm**2 + 1e-3)


def erode(mask, spacing_mm, radius_mm):
    """Voxels farther than `radius_mm` from any False one; the ends of the array do not erode."""
    return ~dilate(~mask, spacing_mm, radius_mm)


def opened(mask, spacing_mm, radius_mm):
    """The parts of a boolean array that a ball of `radius_mm` fits into."""
    return dilate(erode(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) & mask


def enclosing_sides(wall):
    """Count from how many of the four in-plane directions (left, right, front, back) each voxel looks onto `wall`."""
    sides = np.zeros(wall.shape, np.uint8)
    for axis in (1, 2):
        sides += np.logical_or.accumulate(wall, axis=axis)
        sides += np.flip(np.logical_or.accumulate(np.flip(wall, axis), axis=axis), axis)
    return sides


def fill_enclosed(mask):
    """Fill what `mask` encloses in 3-D, and what it encloses in at least two of the three families of planes.

    A vessel or a nodule on a stalk is no hole in 3-D, as it hangs on to the hilum, yet planes across it are rings.
    The dome of the liver is enclosed in axial planes only, so one family of planes is not enough.
    """
    from scipy import ndimage

    votes = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        in_plane = ndimage.generate_binary_structure(3, 1)
        np.moveaxis(in_plane, axis, 0)[[0, 2]] = False
        labels, count = ndimage.label(~mask, structure=in_plane, output=np.int32)
        open_label = np.zeros(count + 1, bool)
        open_label[0] = True
        for other in {0, 1, 2} - {axis}:
            for end in (0, -1):
                open_label[np.take(labels, end, axis=other).ravel()] = True
        votes += ~open_label[labels]
    filled = mask | (votes >= 2)
    labels, count = ndimage.label(~filled, output=np.int32)
    open_label = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            open_label[np.take(labels, end, axis=axis).ravel()] = True
    return ~open_label[labels] | filled


def close_lungs(sides, spacing_mm, closing_mm):
    """Fill and close each lung by itself, so that nothing bridges from one to the other.

    sides is uint8 [z, y, x], 0, 1 or 2. Returns (uint8 side, float32 depth): voxels with depth above 0, interpolated,
    belong to the lung. Depth is the distance in mm into the closed lung.
    """
    side = np.zeros(sides.shape, np.uint8)
    depth = np.full(sides.shape, np.float32(-100))
    step = min(spacing_mm[1:])
    # A whole number of blocks and a half: walls that are flat stay where they are.
    radius = (max(0, round(closing_mm / step - 0.5)) + 0.5) * step
    reach = radius + 3 * step
    pad = tuple(int(np.ceil(2 * reach / mm)) for mm in spacing_mm)
    for label in (1, 2):
        box = bounding_box(sides == label, pad)
        if box is None:
            continue
        other = (sides[box] != 0) & (sides[box] != label)
        lung = fill_enclosed(sides[box] == label)
        inner = _depth_in_closing(lung, box, sides.shape, pad, radius, reach, spacing_mm)
        # Along walls that the closing leaves alone, stay a block inside: the voxels' own HU draw the border there.
        shallow = dilate((inner > 0) & ~lung, spacing_mm, 1.5 * step)
        recovered = dilate((inner > step) & ~lung, spacing_mm, RECOVERED_MM)
        # Where it recovers something, go on into the pleura, as far as readers do.
        inner[~shallow] -= np.float32(step)
        inner[recovered & shallow] += np.float32(PLEURA_MM)
        inner[other] = -100
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
    outside = ~dilate(extended, spacing_mm, radius)
    inside = tuple(slice(low, low + size) for (low, _), size in zip(beyond, lung.shape, strict=True))
    return np.sqrt(squared_distance(outside, spacing_mm, reach)[inside]) - np.float32(radius)


def bounding_box(mask, pad=(0, 0, 0)):
    """Slices of the box around the True voxels, widened by `pad` voxels and cut at the array; None when empty."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(hit):
            return None
        box.append(slice(max(0, int(hit[0]) - pad[axis]), min(mask.shape[axis], int(hit[-1]) + 1 + pad[axis])))
    return tuple(box)


def refine_box(box, factors, shape):
    """The slices of a box of blocks on the grid of the volume."""
    return tuple(
        slice(cut.start * factor, min(size, cut.stop * factor))
        for cut, factor, size in zip(box, factors, shape, strict=True)
    )


def expand_blocks(coarse, factors, shape):
    """Repeat every block value over its voxels, cut to `shape`."""
    for axis, factor in enumerate(factors):
        coarse = np.repeat(coarse, factor, axis=axis)
    return coarse[tuple(slice(size) for size in shape)]


@njit(cache=True, nogil=True)
def project_labels(volume, threshold_hu, air_side, solid_side, depth, factors, out):
    """Draw coarse labels on the voxels of the volume.

    volume, out  int16 and uint8 [z, y, x], the same shape; `out` is written
    air_side     uint8 on the coarse grid: the label that a voxel below `threshold_hu` takes in this block
    solid_side   uint8 on the coarse grid: the label that any voxel takes in this block where `depth` is above 0
    depth        float32 on the coarse grid, interpolated linearly between the centres of the blocks
    """
    nz, ny, nx = volume.shape
    cz, cy, cx = depth.shape
    fz, fy, fx = factors
    x_low = np.empty(nx, np.int64)
    x_weight = np.empty(nx, np.float32)
    for x in range(nx):
        x_low[x], x_weight[x] = _coarse_position(x, fx, cx)
    row = np.empty(cx, np.float32)
    for z in range(nz):
        bz = z // fz
        z0, wz = _coarse_position(z, fz, cz)
        z1 = min(z0 + 1, cz - 1)
        for y in range(ny):
            by = y // fy
            y0, wy = _coarse_position(y, fy, cy)
            y1 = min(y0 + 1, cy - 1)
            for i in range(cx):
                low = depth[z0, y0, i] + wy * (depth[z0, y1, i] - depth[z0, y0, i])
                high = depth[z1, y0, i] + wy * (depth[z1, y1, i] - depth[z1, y0, i])
                row[i] = low + wz * (high - low)
            for x in range(nx):
                bx = x // fx
                label = np.uint8(0)
                if volume[z, y, x] < threshold_hu:
                    label = air_side[bz, by, bx]
                if label == 0 and solid_side[bz, by, bx] != 0:
                    x0 = x_low[x]
                    here = row[x0]
                    if here + x_weight[x] * (row[min(x0 + 1, cx - 1)] - here) > 0:
                        label = solid_side[bz, by, bx]
                out[z, y, x] = label


@njit(cache=True, nogil=True)
def _coarse_position(index, factor, size):
    position = (index - 0.5 * (factor - 1)) / factor
    low = min(max(int(np.floor(position)), 0), size - 1)
    return low, np.float32(min(max(position - low, 0.0), 1.0))
