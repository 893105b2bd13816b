"""Reading some elements out of one stored array, each of its chunks decoded once.

`read_groups` knows how NumPy arrays and memory maps, HDF5 datasets, zarr arrays (shards included) and bcolz arrays lay
out what they hold. Anything else that has shape, dtype and slices works too: its `chunks`, where it has some, are kept
to in the same way. Reading from several threads at once is safe for all four: HDF5 and zarr see to it themselves, and
bcolz, whose decoder and cache are shared by all threads, is read under a lock.
"""

import itertools
import math
import os
import sys
import threading

import numpy as np

# More than this is read in several goes, each of whole chunks: what a read needs beside its result is at most this
# much, or one chunk along axis 0 and all that is asked for along the others where that is more.
GROUP_BYTES = 32 * 2**20

# Of arrays that are not in chunks, elements nearer to each other than this are read in one go with what is between.
GAP_BYTES = 64 * 2**10

_bcolz_lock = threading.Lock()


def _fresh_lock():
    """A process forked while another thread was reading must not wait for that thread."""
    global _bcolz_lock
    _bcolz_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def is_a(array, module, name):
    """True for an instance of `module.name`, without importing the module where nobody has yet."""
    return module in sys.modules and isinstance(array, getattr(sys.modules[module], name))


def read_groups(array, positions, box):
    """Yield what the elements at `positions` hold within `box`, in groups: (block, local, which).

    positions: int64, within the array, in any order and repeated or not. box: for each axis of an element a slice with
    start, stop and a step above 0. block: boxes of elements, stacked along axis 0. `which` of the positions are in it:
    an index into `positions`, and `local` is where in the block each of them lies; None where they are the block in its
    order. Blocks of NumPy arrays and memory maps are views of them, the others are new.
    """
    if len(positions) == 0 or any(part.start == part.stop for part in box):
        yield np.empty((len(positions), *map(_count, box)), array.dtype), None, slice(None)
    elif isinstance(array, np.ndarray):
        yield from _view_groups(np.asarray(array), positions, box)
    elif len(positions) == 1:
        yield _fetch(array, positions, box), None, slice(None)
    else:
        yield from _stored_groups(array, positions, box)


def _count(part):
    return len(range(part.start, part.stop, part.step))


def _view_groups(array, positions, box):
    view = array[(slice(None), *box)]
    limit = _rows_per_group(array, box)
    for first in range(0, len(positions), limit):
        part = positions[first : first + limit]
        which = slice(first, first + len(part))
        if part[-1] - part[0] == len(part) - 1 and (len(part) == 1 or (np.diff(part) == 1).all()):
            yield view[part[0] : part[-1] + 1], None, which
        else:
            yield view, part, which


def _rows_per_group(array, box):
    decoded_whole = is_a(array, "bcolz", "carray")
    extents = array.shape[1:] if decoded_whole else [part.stop - part.start for part in box]
    return max(1, GROUP_BYTES // max(1, math.prod(extents) * np.dtype(array.dtype).itemsize))


def _stored_groups(array, positions, box):
    rows, inverse = positions, None
    if not (np.diff(positions) > 0).all():
        rows, inverse = np.unique(positions, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        in_order = inverse[order]
    starts = np.flatnonzero(np.diff(rows // _chunk_length(array)) > 0) + 1  # where another chunk begins
    limit = _rows_per_group(array, box)
    first = 0
    while first < len(rows):
        last = first + limit
        if last < len(rows):  # whole chunks, one at least
            nearest = np.searchsorted(starts, last, side="right")
            if nearest and starts[nearest - 1] > first:
                last = starts[nearest - 1]
            else:
                last = starts[nearest] if nearest < len(starts) else len(rows)
        block = _fetch(array, rows[first:last], box)
        if inverse is None:
            yield block, None, slice(first, last)
        elif last - first == len(rows):
            yield block, inverse, slice(None)
        else:
            which = order[np.searchsorted(in_order, first) : np.searchsorted(in_order, last)]
            yield block, inverse[which] - first, which
        first = last


def _chunks(array):
    """Shape of what is decoded as a whole, or None. For a zarr array in shards that is a chunk inside a shard."""
    if is_a(array, "bcolz", "carray"):
        return (array.chunklen, *array.shape[1:])
    chunks = getattr(array, "chunks", None)
    return chunks if isinstance(chunks, tuple) and all(isinstance(n, (int, np.integer)) for n in chunks) else None


def _chunk_length(array):
    """How many elements along axis 0 belong together."""
    chunks = _chunks(array)
    if chunks is not None:
        return max(1, chunks[0])
    return max(1, GAP_BYTES // max(1, math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize))


def _fetch(array, rows, box):
    """The box of the elements at `rows`, which ascend without repeats, as a new array."""
    runs = _runs(rows, _chunk_length(array))
    if is_a(array, "bcolz", "carray"):
        read = _read_bcolz
    elif is_a(array, "h5py", "Dataset"):
        read = _read_hdf5
    else:
        read = _read_slices
        if len(runs) > 1 and is_a(array, "zarr", "Array") and _may_be_listed(array):
            return array.oindex[(rows, *box)]
    if len(runs) == 1 and rows[-1] - rows[0] == len(rows) - 1:
        return read(array, int(rows[0]), int(rows[-1]) + 1, box)
    block = np.empty((len(rows), *map(_count, box)), array.dtype)
    for first, last in runs:
        part = rows[first:last]
        block[first:last] = read(array, int(part[0]), int(part[-1]) + 1, box)[part - part[0]]
    return block


def _may_be_listed(array):
    """True where zarr had better be given a list of elements: it decodes ten chunks or so at a time, in threads.

    That has to fit into memory, and of an array in shards zarr would first list every single number to be read.
    """
    return array.shards is None and 10 * math.prod(array.chunks) * array.dtype.itemsize <= GROUP_BYTES


def _runs(rows, chunk):
    """Cut ascending rows where the next is neither the neighbour nor in the same chunk: pairs of first and last."""
    cuts = np.flatnonzero((np.diff(rows) > 1) & (np.diff(rows // chunk) > 0)) + 1
    ends = [0, *cuts.tolist(), len(rows)]
    return list(itertools.pairwise(ends))


def _read_slices(array, start, stop, box):
    return np.asarray(array[(slice(start, stop), *box)])


def _read_bcolz(array, start, stop, box):
    with _bcolz_lock:
        block = array[start:stop]
    block = block[(slice(None), *box)]
    return block if block.size * 2 > math.prod(array.shape[1:]) * (stop - start) else block.copy()


def _read_hdf5(array, start, stop, box):
    """HDF5 takes about a hundred times longer over a slice with a step than over all that lies between."""
    edges = (array.chunks or (16,) * array.ndim)[1:]
    dense = [part.step > 1 and part.step <= edge for part, edge in zip(box, edges, strict=True)]
    where = [slice(part.start, part.stop) if d else part for part, d in zip(box, dense, strict=True)]
    block = array[(slice(start, stop), *where)]
    if any(dense):
        thin = [slice(None, None, part.step) if d else slice(None) for part, d in zip(box, dense, strict=True)]
        block = block[(slice(None), *thin)].copy()
    return block
