"""The patient in the scan, on blocks of about 2 mm: field of view, body, and the air that the body encloses."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lungmill.bits import dilate, opened
from lungmill.morphology import bounding_box
from lungmill.runs import components, largest_component

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


def block_mean(volume, fz, fy, fx):
    """Mean of blocks of fz * fy * fx voxels, rounded down, as int16; blocks at the far ends may be smaller."""
    # Always read-only, so that mapped files and arrays in memory share one compiled kernel.
    volume = volume.view()
    volume.flags.writeable = False
    return _block_mean(volume, fz, fy, fx)


@njit(cache=True, nogil=True)
def _block_mean(volume, fz, fy, fx):
    nz, ny, nx = volume.shape
    cz, cy, cx = (nz + fz - 1) // fz, (ny + fy - 1) // fy, (nx + fx - 1) // fx
    whole = nx // fx
    out = np.empty((cz, cy, cx), np.int16)
    sums, totals = np.empty(nx, np.int32), np.empty(whole, np.int32)
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
            totals[:] = 0
            for f in range(fx):
                for i in range(whole):
                    totals[i] += sums[i * fx + f]
            # Half a unit more keeps the floor of an exact quotient safe from rounding.
            share = 1.0 / ((z1 - z0) * (y1 - y0) * fx)
            to = out[k, j]
            for i in range(whole):
                to[i] = np.int16(np.floor((totals[i] + 0.5) * share))
            if whole < cx:
                total = 0
                for x in range(whole * fx, nx):
                    total += sums[x]
                to[whole] = np.floor((total + 0.5) / ((z1 - z0) * (y1 - y0) * (nx - whole * fx)))
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
    found = components(padding)
    return dilate(found.paint(touching_border(found)), blocks.spacing_mm, 1.01 * max(blocks.spacing_mm[1:]))


def touching_border(found):
    """Which components reach an in-plane border: bool, indexed by label."""
    _, ny, nx = found.shape
    low, high = found.boxes[..., 0], found.boxes[..., 1]
    touching = (low[:, 1] == 0) | (low[:, 2] == 0) | (high[:, 1] == ny) | (high[:, 2] == nx)
    touching[0] = False
    return touching


def enclosed_air(blocks, threshold_hu, padding, body):
    """Air inside the body: components that the body surrounds, less those that are the room.

    Padding counts as a wall. A lung cut by the field of view then stays apart from the room, touches the border as the
    room does, and differs from it by its HU. A component with a good share of blocks that see the body on three sides
    is surrounded, even where the field of view cuts it; foam in a table sees the body on one side.

    Returns (bool air, HU of gas in this scan).
    """
    found = components((blocks.hu < threshold_hu) & ~padding)
    sums, seen, beside = _describe_components(
        found.rows, found.start, found.stop, found.label, len(found.counts), blocks.hu, enclosing_sides(body), padding
    )
    touching = touching_border(found) | beside
    total = np.maximum(found.counts, 1)
    mean = sums / total
    room = np.flatnonzero(touching & (mean < BRIGHTEST_GAS_HU))
    gas = GAS_HU
    if len(room):
        gas = float(np.clip(mean[room[np.argmax(found.counts[room])]], GAS_HU, BRIGHTEST_GAS_HU))
    keep = ~(touching & (mean < gas + ROOM_ABOVE_GAS_HU)) & (seen / total >= SURROUNDED_SHARE)
    return found.paint(keep), gas


@njit(cache=True, nogil=True)
def _describe_components(rows, start, stop, label, size, hu, sides, padding):
    """Per label: the sum of HU, how many blocks see a wall on three sides, and whether padding lies beside it in-plane.

    rows, start, stop, label describe runs of blocks as `Components` does; `sides` is coarser than `hu`.
    """
    sums, seen, beside = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.bool_)
    nz, ny, nx = hu.shape
    fz = (nz + sides.shape[0] - 1) // sides.shape[0]
    fy = (ny + sides.shape[1] - 1) // sides.shape[1]
    fx = (nx + sides.shape[2] - 1) // sides.shape[2]
    column = np.arange(nx) // fx
    for z in range(nz):
        for y in range(ny):
            walls = sides[z // fz, y // fy]
            for run in range(rows[z * ny + y], rows[z * ny + y + 1]):
                total, enclosed = 0, 0
                row, places = hu[z, y, start[run] : stop[run]], column[start[run] : stop[run]]
                for x in range(len(row)):
                    total += row[x]
                    enclosed += walls[places[x]] >= 3
                near = (start[run] > 0 and padding[z, y, start[run] - 1]) or (
                    stop[run] < nx and padding[z, y, stop[run]]
                )
                for other in (y - 1, y + 1):
                    if 0 <= other < ny:
                        for here in padding[z, other, start[run] : stop[run]]:
                            near |= here
                sums[label[run]] += total
                seen[label[run]] += enclosed
                beside[label[run]] |= near
    return sums, seen, beside


def enclosing_sides(wall):
    """Count from how many of the four in-plane directions (left, right, front, back) each voxel looks onto `wall`."""
    sides = np.zeros(wall.shape, np.uint8)
    for axis in (1, 2):
        size = wall.shape[axis]
        place = np.arange(size)[:, None] if axis == 1 else np.arange(size)
        reached = wall.any(axis=axis, keepdims=True)
        first = np.where(reached, wall.argmax(axis=axis, keepdims=True), size)
        last = np.where(reached, size - 1 - np.flip(wall, axis).argmax(axis=axis, keepdims=True), -1)
        sides += place >= first
        sides += place <= last
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
    lines = air.any(axis=2)
    slices, rows = (np.flatnonzero(lines.any(axis=axis)) for axis in (1, 0))
    if not len(slices):
        return 0.5 * (air.shape[2] - 1)
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
