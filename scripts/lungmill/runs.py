"""Face-connected components of a boolean array, kept as runs along x: no volume of labels is made."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lungmill.bits import pack

# Multiplied with a power of two, the upper six bits of this number tell which (a de Bruijn sequence).
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_OF = np.zeros(64, np.int64)
_BIT_OF[[((1 << bit) * int(_DE_BRUIJN) & (2**64 - 1)) >> 58 for bit in range(64)]] = range(64)


@dataclass(frozen=True)
class Components:
    """The face-connected components of a bool array of `shape`; labels count from 1 in the order of first voxels.

    rows     int32 (nz * ny + 1): rows[n] is the first run of row n, z and y counted together
    start, stop, label   int32, one value per run: half-open voxels along x, and the component
    counts   int64: voxels by label; counts[0] is 0
    boxes    int32 [label, axis, 2]: half-open boxes
    """

    shape: tuple[int, int, int]
    rows: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    label: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray

    def __len__(self):
        """The number of components."""
        return len(self.counts) - 1

    def box(self, label):
        """The slices of a component's box."""
        return tuple(slice(int(low), int(high)) for low, high in self.boxes[label])

    def paint(self, values, box=None):
        """The value of each voxel's component, uint8 or bool, on a box of slices; `values` is indexed by label.

        What lies in no component is 0.
        """
        values = np.asarray(values)
        low, high = np.transpose([(part.start, part.stop) for part in box]) if box else ((0, 0, 0), self.shape)
        out = np.zeros([int(size) for size in np.subtract(high, low)], np.uint8)
        _paint(
            self.rows, self.start, self.stop, self.label, self.shape[1], values.astype(np.uint8), *map(int, low), out
        )
        return out.view(bool) if values.dtype == bool else out

    def part(self, label, box=None):
        """Which voxels of a box, the component's own unless another is given, belong to a component: bool."""
        return self.paint(np.arange(len(self.counts)) == label, box or self.box(label))

    def at(self, voxel):
        """The label of a voxel (z, y, x), 0 where it lies in no component."""
        row = voxel[0] * self.shape[1] + voxel[1]
        runs = slice(self.rows[row], self.rows[row + 1])
        hit = np.flatnonzero((self.start[runs] <= voxel[2]) & (voxel[2] < self.stop[runs]))
        return int(self.label[runs][hit[0]]) if len(hit) else 0

    def columns(self, label):
        """How many voxels a component has at every x: int64."""
        runs = self.label == label
        ends = [np.bincount(place[runs], minlength=self.shape[2] + 1) for place in (self.start, self.stop)]
        return np.cumsum(ends[0] - ends[1])[:-1]


def components(mask, *, in_plane=False):
    """Label face-connected components of a bool array [z, y, x]: Components. in_plane: every z by itself."""
    shape = tuple(int(size) for size in mask.shape)
    return Components(shape, *_label_runs(pack(mask), shape[2], in_plane))


def largest_component(mask):
    """Keep the largest face-connected component of a boolean array; an empty array stays empty."""
    found = components(mask)
    return found.part(np.argmax(found.counts), tuple(slice(0, size) for size in mask.shape)) if len(found) else mask


@njit(cache=True, nogil=True)
def _label_runs(words, width, in_plane):
    nz, ny, nw = words.shape
    one, last = np.uint64(1), np.uint64(63)
    rows = np.zeros(nz * ny + 1, np.int32)
    for z in range(nz):
        for y in range(ny):
            found, carry = 0, np.uint64(0)
            for w in range(nw):
                word = words[z, y, w]
                starts = word & ~((word << one) | carry)
                while starts:
                    starts &= starts - one
                    found += 1
                carry = word >> last
            rows[z * ny + y + 1] = rows[z * ny + y] + found
    start, stop = np.empty(rows[-1], np.int32), np.empty(rows[-1], np.int32)
    parent = np.arange(rows[-1]).astype(np.int32)
    for z in range(nz):
        for y in range(ny):
            row = z * ny + y
            run, carry, inside = rows[row], np.uint64(0), False
            for w in range(nw):
                word = words[z, y, w]
                turns = word ^ ((word << one) | carry)
                carry = word >> last
                while turns:
                    bit = turns & (~turns + one)
                    turns ^= bit
                    x = w * 64 + _BIT_OF[(bit * _DE_BRUIJN) >> np.uint64(58)]
                    if inside:
                        stop[run] = x
                        run += 1
                    else:
                        start[run] = x
                    inside = not inside
            if inside:
                stop[run] = width
            if y:
                _join_rows(rows[row - 1], rows[row], rows[row + 1], rows[row], start, stop, parent)
            if z and not in_plane:
                _join_rows(rows[row - ny], rows[row - ny + 1], rows[row + 1], rows[row], start, stop, parent)
    label = np.empty(rows[-1], np.int32)
    found = 0
    for run in range(len(parent)):
        root = _root(parent, run)
        if root == run:
            found += 1
            label[run] = found
        else:
            label[run] = label[root]
    counts = np.zeros(found + 1, np.int64)
    boxes = np.zeros((found + 1, 3, 2), np.int32)
    boxes[1:, :, 0] = 2**31 - 1
    for z in range(nz):
        for y in range(ny):
            for run in range(rows[z * ny + y], rows[z * ny + y + 1]):
                counts[label[run]] += stop[run] - start[run]
                box = boxes[label[run]]
                box[0, 0], box[0, 1] = min(box[0, 0], z), max(box[0, 1], z + 1)
                box[1, 0], box[1, 1] = min(box[1, 0], y), max(box[1, 1], y + 1)
                box[2, 0], box[2, 1] = min(box[2, 0], start[run]), max(box[2, 1], stop[run])
    return rows, start, stop, label, counts, boxes


@njit(cache=True, nogil=True)
def _join_rows(one, one_stop, two_stop, two, start, stop, parent):
    """Unite runs of two neighbouring rows that share an x; the smaller number is the root."""
    while one < one_stop and two < two_stop:
        if start[one] < stop[two] and start[two] < stop[one]:
            a, b = _root(parent, one), _root(parent, two)
            if a < b:
                parent[b] = a
            elif b < a:
                parent[a] = b
        if stop[one] < stop[two]:
            one += 1
        else:
            two += 1


@njit(cache=True, nogil=True)
def _root(parent, run):
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@njit(cache=True, nogil=True)
def _paint(rows, start, stop, label, ny, values, z_low, y_low, x_low, out):
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            row = (z + z_low) * ny + y + y_low
            for run in range(rows[row], rows[row + 1]):
                value = values[label[run]]
                if value:
                    low, high = max(0, start[run] - x_low), max(0, min(out.shape[2], stop[run] - x_low))
                    out[z, y, low:high] = value
