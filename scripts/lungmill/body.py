"""The patient in the scan, on blocks of about 2 mm: field of view, body, and the air that the body encloses."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lungmill.morphology import bounding_box, components, dilate, largest_component, opened

# Half the lumen of a main bronchus, twice the wall: what has to be told apart is larger, and a 1 mm volume is 8 times
# smaller in such blocks. The body itself needs half of that.
BLOCK_MM, BODY_BLOCK_MM = 2.0, 4.0
PADDING_HU = -1024
GAS_HU = -1000
# Noise that the scale's end at -1024 cuts off makes gas brighter; lung is not that dark on average.
BRIGHTEST_GAS_HU = -940
# Air that touches the border is the room where its mean is less than this above gas, else a lung cut by the field of
# view: the mean of lung is 100 HU above gas even in emphysema.
ROOM_ABOVE_GAS_HU = 50
SURROUNDED_SHARE = 0.3
# A ball of this radius fits into chest wall and arms, not into a table, a blanket or a cable.
BODY_RADIUS_MM = 4.0
MARGIN_MM = 16.0
# Spongy bone, averaged over a block, is brighter. A vertebral body is about this wide.
BONE_HU, SPINE_MM = 130, 40.0
BONE_MM2 = 150.0


@dataclass(frozen=True)
class Blocks:
    """The volume in blocks: mean HU, edges in voxels and in mm, and the index of the first block on the whole grid."""

    hu: np.ndarray
    factors: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    low: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, volume, spacing_mm, block_mm=BLOCK_MM):
        """Average a volume, int16 HU [z, y, x], in blocks of about `block_mm`."""
        factors = tuple(max(1, round(block_mm / mm)) for mm in spacing_mm)
        edges = tuple(mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
        return cls(block_mean(volume, *factors), factors, edges)

    def cut(self, box):
        """The blocks of a box of slices."""
        low = tuple(first + part.start for first, part in zip(self.low, box, strict=True))
        return Blocks(np.ascontiguousarray(self.hu[box]), self.factors, self.spacing_mm, low)

    def voxels(self, box, shape):
        """The slices of the volume, of `shape`, that a box of blocks covers."""
        return tuple(
            slice((low + part.start) * factor, min(size, (low + part.stop) * factor))
            for low, part, factor, size in zip(self.low, box, self.factors, shape, strict=True)
        )

    @property
    def ml(self):
        """Volume of one block."""
        return float(np.prod(self.spacing_mm)) / 1000


@njit(cache=True, nogil=True)
def block_mean(volume, fz, fy, fx):
    """Mean of blocks of fz * fy * fx voxels, rounded down, as int16; blocks at the far ends may be smaller."""
    nz, ny, nx = volume.shape
    cz, cy, cx = (nz + fz - 1) // fz, (ny + fy - 1) // fy, (nx + fx - 1) // fx
    out = np.empty((cz, cy, cx), np.int16)
    sums = np.empty(nx, np.int32)
    for k in range(cz):
        z0, z1 = k * fz, min(nz, (k + 1) * fz)
        for j in range(cy):
            y0, y1 = j * fy, min(ny, (j + 1) * fy)
            sums[:] = 0
            for z in range(z0, z1):
                for y in range(y0, y1):
                    row = volume[z, y]
                    for x in range(nx):
                        sums[x] += np.int32(row[x])
            for i in range(cx):
                total, last = 0, min(nx, (i + 1) * fx)
                for x in range(i * fx, last):
                    total += sums[x]
                # Half a unit more keeps the floor of an exact quotient safe from rounding.
                out[k, j, i] = np.floor((total + 0.5) / ((z1 - z0) * (y1 - y0) * (last - i * fx)))
    return out


def find_body(blocks, threshold_hu):
    """The patient without table and blankets: the largest thing that stays when thin sheets are taken away.

    Returns (blocks cut to a box around the patient, bool body of twice as large blocks on the same box). None, None
    where there is none.
    """
    factors = tuple(max(1, round(BODY_BLOCK_MM / mm)) for mm in blocks.spacing_mm)
    edges = tuple(mm * factor for mm, factor in zip(blocks.spacing_mm, factors, strict=True))
    body = largest_component(opened(block_mean(blocks.hu, *factors) >= threshold_hu, edges, BODY_RADIUS_MM))
    box = bounding_box(body, tuple(int(np.ceil(MARGIN_MM / mm)) for mm in edges))
    if box is None:
        return None, None
    fine = tuple(
        slice(part.start * factor, min(size, part.stop * factor))
        for part, factor, size in zip(box, factors, blocks.hu.shape, strict=True)
    )
    return blocks.cut(fine), np.ascontiguousarray(body[box])


def find_padding(blocks):
    """Blocks outside the scanner's field of view: exactly padding and joined to an in-plane border, and their rim.

    The rim mixes padding with tissue. It looks like air, and would join a lung that the field of view cuts to the room.
    """
    padding = blocks.hu <= PADDING_HU
    if not padding.any():
        return padding
    labels, counts = components(padding)
    padding = _touching_border(labels, len(counts))[labels]
    return dilate(padding, blocks.spacing_mm, 1.01 * max(blocks.spacing_mm[1:]))


def _touching_border(labels, count):
    touching = np.zeros(count, bool)
    for plane in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        touching[plane.ravel()] = True
    touching[0] = False
    return touching


def enclosed_air(blocks, threshold_hu, padding, body):
    """Air inside the body: components that the body surrounds, less those that are the room.

    Padding counts as a wall. A lung cut by the field of view then stays apart from the room, touches the border as the
    room does, and differs from it by its HU. A component with a good share of blocks that see the body on three sides
    is surrounded, even where the field of view cuts it; foam in a table sees the body on one side.

    Returns (bool air, HU of gas in this scan).
    """
    labels, counts = components((blocks.hu < threshold_hu) & ~padding)
    touching = _touching_border(labels, len(counts))
    if padding.any():
        for here, beside in in_plane_neighbours(labels, padding):
            touching[here[beside]] = True
        touching[0] = False
    sums, seen = _describe_components(labels, blocks.hu, enclosing_sides(body), len(counts))
    total = np.maximum(counts, 1)
    mean = sums / total
    room = np.flatnonzero(touching & (mean < BRIGHTEST_GAS_HU))
    gas = GAS_HU
    if len(room):
        gas = float(np.clip(mean[room[np.argmax(counts[room])]], GAS_HU, BRIGHTEST_GAS_HU))
    keep = ~(touching & (mean < gas + ROOM_ABOVE_GAS_HU)) & (seen / total >= SURROUNDED_SHARE)
    keep[0] = False
    return keep[labels], gas


@njit(cache=True, nogil=True)
def _describe_components(labels, hu, sides, size):
    """Per label: the sum of HU, and the number of blocks that see a wall on three sides; `sides` is coarser."""
    sums, seen = np.zeros(size, np.int64), np.zeros(size, np.int64)
    nz, ny, nx = labels.shape
    fz = (nz + sides.shape[0] - 1) // sides.shape[0]
    fy = (ny + sides.shape[1] - 1) // sides.shape[1]
    fx = (nx + sides.shape[2] - 1) // sides.shape[2]
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                label = labels[z, y, x]
                if label:
                    sums[label] += hu[z, y, x]
                    seen[label] += sides[z // fz, y // fy, x // fx] >= 3
    return sums, seen


def enclosing_sides(wall):
    """Count from how many of the four in-plane directions (left, right, front, back) each voxel looks onto `wall`."""
    sides = np.zeros(wall.shape, np.uint8)
    for axis in (1, 2):
        sides += np.logical_or.accumulate(wall, axis=axis)
        sides += np.flip(np.logical_or.accumulate(np.flip(wall, axis), axis=axis), axis)
    return sides


def in_plane_neighbours(one, other):
    """Pairs of views in which every element of `one` meets its neighbours in `other`, in four directions."""
    for axis in (1, 2):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        yield one[low], other[high]
        yield one[high], other[low]


def find_midline(blocks, body, air):
    """The x index of the spine; where no bone shows, halfway between the body's sides.

    The spine stays where it is when a lung is lost and the mediastinum moves over, and when arms or the end of the
    field of view make the body's sides unequal.
    """
    slices = np.flatnonzero(air.any(axis=(1, 2)))
    if not len(slices):
        return 0.5 * (air.shape[2] - 1)
    rows = np.flatnonzero(air.any(axis=(0, 2)))
    back = slice(int(rows.mean()), None)
    bone = (blocks.hu[slices[0] : slices[-1] + 1, back] > BONE_HU).sum(axis=(0, 1), dtype=np.int64)
    window = max(1, round(SPINE_MM / blocks.spacing_mm[2]))
    near = np.convolve(bone, np.ones(window), mode="same")
    peak = int(near.argmax())
    if near[peak] * blocks.spacing_mm[1] * blocks.spacing_mm[2] >= BONE_MM2 * len(slices):
        around = slice(max(0, peak - window // 2), peak + window // 2 + 1)
        return float((np.arange(len(bone))[around] * bone[around]).sum() / bone[around].sum())
    factor = -(-air.shape[2] // body.shape[2])
    columns = body.any(axis=1)
    columns = columns[columns.any(axis=1)]
    right = columns.argmax(axis=1)
    left = columns.shape[1] - 1 - columns[:, ::-1].argmax(axis=1)
    return float(np.median(0.5 * (right + left) + 0.5) * factor - 0.5)


def middle_z(air):
    per_slice = air.sum(axis=(1, 2), dtype=np.int64)
    if not per_slice.any():
        return 0
    return int(np.searchsorted(np.cumsum(per_slice), per_slice.sum() / 2))
