"""Reading boxes of voxels out of the stores of a patient: memory-mapped .npy, zarr, HDF5 and bcolz.

A reader has `shape`, `dtype` and `read(out, start)`, which fills `out` with the box that begins at the voxel `start`.
Only what the box needs is read; what lies beyond the volume is filled. Reading from several threads is safe.
"""

import os
import threading
from collections import OrderedDict

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.errors import ArrayError
from lungmill.training.views import DelayedView
from lungmill.zarr_reader import open_array, open_zarr

PRODUCTS = {"image": np.dtype(np.int16), "mask": np.dtype(np.uint8)}

# The columns of dataset.tsv that image and mask are in, in the order in which "auto" looks for them: compressed chunks
# near to a patch in size first, as `Patient.image` has it, whole slices last.
COLUMNS = {
    "zarr": {"image": "zarr", "mask": "zarr"},
    "zarr_zip": {"image": "zarr_zip", "mask": "zarr_zip"},
    "npy": {"image": "volume", "mask": "mask"},
    "hdf5": {"image": "hdf5", "mask": "hdf5"},
    "bcolz": {"image": "bcolz", "mask": "bcolz"},
}


def choose_store(patients, store):
    """The name of the store to read from; "auto" takes the first that all patients have."""
    if store != "auto":
        if store not in COLUMNS:
            raise ArrayError(f"store={store!r} is not one of auto, {', '.join(COLUMNS)}")
        return store
    for name, columns in COLUMNS.items():
        if all(columns["image"] in p.paths and p.paths[columns["image"]].exists() for p in patients):
            return name
    raise LungmillError(
        f"the patients of this cohort have no store in common to cut patches from ({', '.join(COLUMNS)}): "
        f"run snakemake again"
    )


def open_reader(patient, store, product, fill):
    """A reader of the product "image" or "mask" of a Patient; LungmillError where it is not there or damaged."""
    path = patient.paths.get(COLUMNS[store][product])
    if path is None or not path.exists():
        raise LungmillError(f"{patient.name}: no {store} store with the {product} ({path}): run snakemake again")
    if store == "npy":
        return ArrayReader(np.load(path, mmap_mode="r"), fill)
    if store in ("zarr", "zarr_zip"):
        shard = open_array(path, product)
        return ShardBoxes(shard, fill) if shard is not None else ArrayReader(open_zarr(path)[product], fill)
    if store == "hdf5":
        import h5py

        return ArrayReader(h5py.File(path, "r")[product], fill)
    import bcolz

    return ArrayReader(bcolz.open(str(path), mode="r")[product], fill)


class Readers:
    """The open readers of a cohort, the most recently used ones only: `get(name, product)`."""

    def __init__(self, cohort, store, fills, max_open):
        self._cohort, self._store, self._fills, self._max_open = cohort, store, fills, max_open
        self._forget()

    def get(self, name, product):
        """The reader of a patient's image or mask, opened now if need be."""
        if os.getpid() != self._process:  # files that a parent process opened are not ours to share
            self._forget()
        key = name, product
        with self._lock:
            reader = self._open.get(key)
            if reader is not None:
                self._open.move_to_end(key)
                return reader
        reader = open_reader(self._cohort[name], self._store, product, self._fills[product])
        with self._lock:
            self._open[key] = reader
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)  # closes with its last user
        return reader

    def __len__(self):
        return len(self._open)

    def _forget(self):
        self._open, self._lock, self._process = OrderedDict(), threading.Lock(), os.getpid()

    def __getstate__(self):
        return {name: self.__dict__[name] for name in ("_cohort", "_store", "_fills", "_max_open")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()


def cut(start, extent, shape):
    """The part of a box that lies in an array of `shape`: slices of the array, and slices of the box."""
    source, target = [], []
    for first, size, n in zip(start, extent, shape, strict=True):
        low, high = min(max(first, 0), n), max(min(first + size, n), 0)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - first, max(low, high) - first))
    return tuple(source), tuple(target)


class ArrayReader:
    """A reader of anything that is indexed like NumPy's arrays: memory maps, HDF5 datasets, zarr and bcolz arrays."""

    def __init__(self, array, fill):
        self.shape, self.dtype, self.fill = tuple(array.shape), np.dtype(array.dtype), fill
        # Slicing a memory map costs more than slicing the plain array over the same memory.
        self._array = np.asarray(array) if isinstance(array, np.ndarray) else DelayedView(array)

    def read(self, out, start):
        (z, y, x), (depth, height, width) = start, out.shape
        last = z + depth, y + height, x + width
        if z >= 0 and y >= 0 and x >= 0 and all(map(int.__le__, last, self.shape)):
            out[...] = self._array[z : last[0], y : last[1], x : last[2]]
            return
        source, target = cut(start, out.shape, self.shape)
        out[...] = self.fill
        if all(part.start < part.stop for part in source):
            out[target] = self._array[source]


class ShardBoxes:
    """A reader of an array that lungmill packed as zarr, through a `lungmill.zarr_reader.ShardReader`."""

    def __init__(self, shard, fill):
        self.shape, self.dtype, self.fill = shard.shape, shard.dtype, fill
        self._shard = shard

    def read(self, out, start):
        source, target = cut(start, out.shape, self.shape)
        if any(part.stop - part.start < n for part, n in zip(source, out.shape, strict=True)):
            out[...] = self.fill
        if all(part.start < part.stop for part in source):
            self._shard.read(out[target], [part.start for part in source])
