"""Patches that cover a volume with overlap, and the volume put together again out of what became of them.

The windows form a product of starts along z, y and x, and so do their weights. So the weights that meet in a voxel add
up to a product too, and are divided out of each window's weights beforehand: no volume of weights is ever needed.
"""

import itertools
import math

import numpy as np

from lungmill.patches import AIR_HU
from lungmill.training.errors import ArrayError
from lungmill.training.fitting import whole_number
from lungmill.training.lazy import LazyArray, as_source
from lungmill.training.patch_arguments import patch_shape
from lungmill.training.patch_stores import ArrayReader
from lungmill.training.selection import select
from lungmill.training.views import DelayedView

# Gaussian weights: standard deviation as a part of the window's edge, as nnU-Net has it (Isensee et al., Nature Methods
# 18 (2021), 203-211), and the least weight, which keeps the corners of a window from vanishing in float32.
SIGMA = 1 / 8
LEAST_WEIGHT = 1e-3

# Iteration cuts about this much at a time.
BATCH_BYTES = 8 * 2**20


class SlidingWindows(LazyArray):
    """The windows of a volume as a lazy array of patches (n, *shape), ordered by z, y, x; `assemble` is the way back.

    volume: [z, y, x] or one slice [y, x]: an ndarray, memory map, zarr, HDF5 or bcolz array, of which only what a
    window needs is read. shape: of a window in voxels; two numbers for a volume are windows in its axial slices.
    overlap: of neighbouring windows, as a part of their edge, from 0 to below 1, a number or one per axis. It is the
    least: windows are spread evenly, to the voxel. step: largest distance of windows in voxels instead.
    edges: "shift" keeps all windows inside, and pads only along an axis on which the volume is smaller than the window;
    "pad" keeps the same distance everywhere and lets the outer ones reach beyond, on both sides alike.
    fill: what lies beyond the volume.

    `starts` is the first voxel of each window, int64 (n, axes), which may be negative. Raises ArrayError on arguments
    that do not fit the volume.

    >>> windows = SlidingWindows(np.arange(10).reshape(2, 5), (2, 3), overlap=0.25, fill=0)
    >>> windows.shape, windows.starts.tolist(), windows.assemble(windows[:])[0].tolist()
    ((2, 2, 3), [[0, 0], [0, 2]], [0, 1, 2, 3, 4])
    """

    def __init__(self, volume, shape, overlap=0.5, *, step=None, edges="shift", fill=AIR_HU):
        self._volume = as_source(volume)
        self.volume_shape = tuple(int(n) for n in self._volume.shape)
        self.window = patch_shape(shape)
        axes = len(self.volume_shape)
        if not len(self.window) <= axes <= 3 or not all(self.volume_shape):
            raise ArrayError(f"windows of {self.window} do not fit a volume of shape {self.volume_shape}")
        if edges not in ("shift", "pad"):
            raise ArrayError(f'edges={edges!r} is neither "shift" nor "pad"')
        if axes == 2 and not isinstance(self._volume, np.ndarray):
            self._volume = np.asarray(self._volume[...])  # one slice
        dtype = np.dtype(self._volume.dtype)
        if dtype.kind in "iu" and not (np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max and fill == int(fill)):
            raise ArrayError(f"fill={fill} does not fit into {dtype}: give another (0 for a mask)")
        super().__init__(dtype, self.window)
        self._fill = fill
        self._edges = (1, 1, *self.window)[-axes:] if axes == 3 else self.window
        steps = _steps(self._edges, len(self.window), overlap, step)
        self._axes = [
            _starts(n, edge, distance, edges)
            for n, edge, distance in zip(self.volume_shape, self._edges, steps, strict=True)
        ]
        self.starts = np.stack(np.meshgrid(*self._axes, indexing="ij"), axis=-1).reshape(-1, axes)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        selection = select(index, self.shape)
        return selection.finish(selection.pick(self._cut(selection.rows, selection.box)))

    def __iter__(self):
        for batch in self.batches(max(1, BATCH_BYTES // (self.nbytes // len(self)))):
            yield from batch

    def batches(self, batch_size):
        """Yield the windows in order, `batch_size` at a time: arrays (batch_size, *shape), the last maybe shorter.

        The planes that windows of one height need are read as a whole and kept until the next height, so that a chunk
        of a compressed volume is not decoded anew for each window. `windows[i]` reads what that window needs.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        whole = tuple(slice(0, n, 1) for n in self.window)
        planes = None if self._in_memory else _Planes(self._volume)
        for first in range(0, len(self), batch_size):
            yield self._cut(np.arange(first, min(first + batch_size, len(self))), whole, planes)

    def _cut(self, rows, box, planes=None):
        """The boxes (a slice for each axis) of some windows: a new array. `planes` are kept for the windows to come."""
        extents = [part.stop - part.start for part in box]
        found = np.empty((len(rows), *extents), self.dtype)
        boxes = found.reshape(len(rows), *(1, *extents)[-3:])
        starts = np.zeros((len(rows), 3), np.int64)
        starts[:, 3 - len(self.volume_shape) :] = self.starts[rows]
        starts[:, 3 - len(box) :] += [part.start for part in box]
        direct = ArrayReader(self._volume if len(self.volume_shape) == 3 else self._volume[None], self._fill)
        for height in np.unique(starts[:, 0]).tolist():
            here, reader, first = np.flatnonzero(starts[:, 0] == height), direct, 0
            # Windows that have as many voxels as the planes they lie in: then the planes are the lesser read.
            many = not self._in_memory and len(here) * math.prod(boxes.shape[2:]) >= math.prod(self.volume_shape[1:])
            if planes is not None or many:
                planes = planes or _Planes(self._volume)
                held, first = planes.get(height, height + boxes.shape[1])
                reader = ArrayReader(held, self._fill)
            for row in here.tolist():
                z, y, x = starts[row].tolist()
                reader.read(boxes[row], [z - first, y, x])
        if any(part.step > 1 for part in box):
            found = found[(slice(None), *(slice(None, None, part.step) for part in box))].copy()
        return found

    @property
    def _in_memory(self):
        return isinstance(self._volume, np.ndarray)

    def _locate(self, positions):
        yield self, positions, slice(None)

    def __repr__(self):
        return f"<SlidingWindows {self.shape} {self.dtype} over {self.volume_shape}>"

    def assemble(self, patches, weight="gaussian", out=None, dtype=None):
        """Put one patch for each window together to a volume: the mean of those that cover a voxel, by their weights.

        patches: an array (n, *channels, *window) or an iterable of its n patches in the order of the windows; a network
        may have put channels before the axes of the window. weight: "uniform"; "gaussian", highest in the middle of a
        window; "ramp", falling linearly to its faces. out: where to write the volume (*channels, *volume), anything
        that can be assigned slabs along z: a memory map, a zarr or HDF5 array; None makes an array, of `dtype` or of
        that of the patches. Returns `out`.

        Patches that are unchanged give the volume they came from: exactly for integers of up to 32 bits, to the
        precision of the type for float32 and float64. What is in use beside `out` is a slab as thick as a window, in
        float32, or in float64 for integers of more than 16 bits and float64. Means of integers are rounded.

        Raises ArrayError where number or shape of the patches or of `out` are not those of the windows.
        """
        weights = [
            _shares(starts, edge, n, weight)
            for starts, edge, n in zip(self._axes, self._edges, self.volume_shape, strict=True)
        ]
        layers = itertools.product(*(range(len(starts)) for starts in self._axes))
        slab = None
        given = 0
        for patch in patches:
            place = next(layers, None)
            if place is None:
                raise ArrayError(f"there are more patches than the {len(self)} windows")
            patch = self._checked(np.asarray(patch), given)
            if slab is None:
                channels = patch.shape[: patch.ndim - len(self._edges)]
                out = self._result(out, channels, patch.dtype if dtype is None else np.dtype(dtype))
                slab = _Slab(out, channels, self.volume_shape, self._edges[0], _accumulator(patch.dtype))
            given += 1
            starts = [starts[i] for starts, i in zip(self._axes, place, strict=True)]
            slab.add(patch, starts, [shares[i] for shares, i in zip(weights, place, strict=True)])
        if given < len(self):
            raise ArrayError(f"{given} patches for {len(self)} windows: give one for each, in their order")
        slab.finish()
        return out

    def _checked(self, patch, number):
        """The patch with all axes of the volume, after its channels."""
        inner = patch.ndim - len(self.window)
        if inner < 0 or patch.shape[inner:] != self.window:
            raise ArrayError(f"patch {number} has shape {patch.shape}: windows are {self.window}, after any channels")
        return patch.reshape(*patch.shape[:inner], *self._edges)

    def _result(self, out, channels, dtype):
        shape = (*channels, *self.volume_shape)
        if out is None:
            return np.empty(shape, dtype)
        if tuple(out.shape) != shape:
            raise ArrayError(f"out has shape {tuple(out.shape)}, the volume {shape}")
        return out


class _Planes:
    """Planes of a stored volume, read to the end of their chunks and kept until others are wanted."""

    def __init__(self, volume):
        self._view, self._held, self._first = DelayedView(volume), None, 0
        chunks = getattr(volume, "chunks", None)
        self._depth = chunks[0] if isinstance(chunks, tuple) else getattr(volume, "chunklen", 1)

    def get(self, start, stop):
        """An array of planes with all from `start` to `stop` that the volume has, and which plane is its first."""
        first, last = max(0, start), min(len(self._view), stop)
        if self._held is None or first < self._first or last > self._first + len(self._held):
            self._held = None  # before its successor needs memory
            self._held, self._first = self._view[first : -(-last // self._depth) * self._depth], first
        return self._held, self._first


class _Slab:
    """The planes that windows still to come may reach, summed up; planes that none will reach go to `out`."""

    def __init__(self, out, channels, shape, thickness, dtype):
        self._out, self._shape = out, shape
        self._sum = np.zeros((*channels, min(thickness, shape[0]), *shape[1:]), dtype)
        self._axis = len(channels)
        self._first = 0  # the plane that the slab begins with

    def add(self, patch, starts, shares):
        first = max(0, int(starts[0]))
        if first > self._first:
            self._flush(first)
        kept, places = [], []
        for start, share, n in zip(starts, shares, self._shape, strict=True):
            low, high = max(0, -start), min(len(share), n - start)
            kept.append(slice(low, high))
            places.append(slice(start + low, start + high))
        places[0] = slice(places[0].start - self._first, places[0].stop - self._first)
        part = patch[(..., *kept)].astype(self._sum.dtype)
        for axis, (share, keep) in enumerate(zip(shares, kept, strict=True)):
            part *= share[keep].astype(part.dtype).reshape(-1, *(1,) * (len(shares) - 1 - axis))
        self._sum[(..., *places)] += part

    def finish(self):
        self._flush(self._shape[0])

    def _flush(self, until):
        """Write the planes before `until` and move the others to the front."""
        count = until - self._first
        front, length = (slice(None),) * self._axis, self._sum.shape[self._axis]
        done = self._sum[(*front, slice(0, count))]
        self._out[(*front, slice(self._first, until))] = _as_type(done, np.dtype(self._out.dtype))
        left = length - count
        self._sum[(*front, slice(0, left))] = self._sum[(*front, slice(count, length))].copy()
        self._sum[(*front, slice(left, length))] = 0
        self._first = until


def _accumulator(dtype):
    small = dtype.itemsize <= 2 if dtype.kind in "iu" else dtype.itemsize <= 4
    return np.float32 if small else np.float64


def _as_type(values, dtype):
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _steps(edges, axes, overlap, step):
    """Largest distance of windows along each axis."""
    if step is None:
        overlap = np.broadcast_to(np.asarray(overlap, np.float64), axes)
        if not ((overlap >= 0) & (overlap < 1)).all():
            raise ArrayError(f"overlap={overlap.tolist()} is not a part from 0 to below 1 of the window's edge")
        step = [max(1, math.floor(edge * (1 - part) + 1e-9)) for edge, part in zip(edges[-axes:], overlap, strict=True)]
    else:
        step = [whole_number("step", distance, 1) for distance in np.broadcast_to(step, axes).tolist()]
        if any(distance > edge for distance, edge in zip(step, edges[-axes:], strict=True)):
            raise ArrayError(f"step={step} leaves gaps between windows of {edges[-axes:]}")
    return [1] * (len(edges) - axes) + list(step)


def _starts(n, edge, step, edges):
    """First voxels of the windows along an axis, int64: the fewest that leave no gap, no further apart than `step`."""
    count = max(0, math.ceil((n - edge) / step)) + 1
    if edges == "pad" or n < edge:
        excess = edge + (count - 1) * step - n
        return np.arange(count) * step - excess // 2
    return np.rint(np.linspace(0, n - edge, count)).astype(np.int64)


def _shares(starts, edge, n, weight):
    """The share of each window in each voxel that it covers along an axis, float64 (windows, edge), 1 in sum."""
    if weight == "uniform":
        profile = np.ones(edge)
    elif weight == "gaussian":
        distance = (np.arange(edge) - (edge - 1) / 2) / (edge * SIGMA)
        profile = np.maximum(np.exp(-(distance**2) / 2), LEAST_WEIGHT)
    elif weight == "ramp":
        profile = np.minimum(np.arange(edge), np.arange(edge)[::-1]) + 1.0
    else:
        raise ArrayError(f"weight={weight!r} is not one of uniform, gaussian, ramp")
    covered = starts[:, None] + np.arange(edge)
    inside = (covered >= 0) & (covered < n)
    total = np.bincount(covered[inside], np.broadcast_to(profile, covered.shape)[inside], minlength=n)
    return profile / np.where(inside, total[np.clip(covered, 0, n - 1)], 1)
