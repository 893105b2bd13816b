"""Reading boxes of voxels out of the stores of a patient: memory-mapped .npy, zarr, HDF5 and bcolz.

A reader has `shape`, `dtype` and `read(out, start)`, which fills `out` with the box that begins at the voxel `start`.
Only what the box needs is read; what lies beyond the volume is filled. Reading from several threads is safe.
"""

import itertools
import json
import math
import os
import threading
from collections import OrderedDict

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.errors import ArrayError
from lungmill.training.views import DelayedView

PRODUCTS = {"image": np.dtype(np.int16), "mask": np.dtype(np.uint8)}

# The columns of dataset.tsv that image and mask are in, in the order in which "auto" looks for them: compressed chunks
# near to a patch in size first, as `Patient.image` has it, whole slices last.
COLUMNS = {
    "zarr": {"image": "zarr", "mask": "zarr"},
    "npy": {"image": "volume", "mask": "mask"},
    "hdf5": {"image": "hdf5", "mask": "hdf5"},
    "bcolz": {"image": "bcolz", "mask": "bcolz"},
}

NOT_STORED = 2**64 - 1  # offset and length, in a shard's index, of a chunk that holds nothing but the fill value


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
    if store == "zarr":
        return open_shard(path / product, fill) or ArrayReader(_open_zarr(path)[product], fill)
    if store == "hdf5":
        import h5py

        return ArrayReader(h5py.File(path, "r")[product], fill)
    import bcolz

    return ArrayReader(bcolz.open(str(path), mode="r")[product], fill)


def _open_zarr(path):
    import zarr

    return zarr.open_group(path, mode="r")


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


def open_shard(folder, fill):
    """A ShardReader of an array that lungmill packed as zarr; None where zarr.json says that others wrote it."""
    metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    try:
        [sharding] = metadata["codecs"]
        inside = sharding["configuration"]
        chunk, shape = tuple(inside["chunk_shape"]), tuple(metadata["shape"])
        counts = tuple(math.ceil(n / edge) for n, edge in zip(shape, chunk, strict=True))
        ours = (
            sharding["name"] == "sharding_indexed"
            and metadata["chunk_grid"]["configuration"]["chunk_shape"]
            == [n * edge for n, edge in zip(counts, chunk, strict=True)]
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and metadata["data_type"] in ("int16", "uint8")
            and [codec["name"] for codec in inside["codecs"]] == ["bytes", "blosc"]
            and inside["codecs"][0].get("configuration", {}).get("endian", "little") == "little"
            and [codec["name"] for codec in inside["index_codecs"]] == ["bytes", "crc32c"]
            and inside["index_location"] == "end"
        )
    except (KeyError, TypeError, ValueError):
        return None
    path = folder / "c" / "0" / "0" / "0"
    return ShardReader(path, shape, chunk, metadata["data_type"], metadata["fill_value"], fill) if ours else None


class ShardReader:
    """A reader of a zarr array that is one shard, written by `lungmill.packing`.

    It does what zarr-python does, without an event loop and without reading the shard's index for every box: the index
    is kept, each chunk that the box crosses is read by one call and decoded once. fill_value: of chunks that are not
    stored; fill: of what lies beyond the volume. Raises LungmillError where the shard's index is damaged.
    """

    def __init__(self, path, shape, chunk, dtype, fill_value, fill):
        from numcodecs import CRC32C, Blosc

        self.shape, self.chunk, self.dtype = shape, chunk, np.dtype(dtype)
        self.fill, self._fill_value = fill, fill_value
        self._decode = Blosc().decode
        self._file = path.open("rb", buffering=0)
        counts = [math.ceil(n / edge) for n, edge in zip(shape, chunk, strict=True)]
        size = 16 * math.prod(counts) + 4
        end = self._file.seek(0, os.SEEK_END)
        try:
            index = CRC32C(location="end").decode(self._pread(size, end - size))
        except (RuntimeError, OSError) as error:
            raise self._damaged(error) from error
        self._index = np.frombuffer(index, "<u8").reshape(*counts, 2)

    def read(self, out, start):
        source, target = cut(start, out.shape, self.shape)
        if any(part.stop - part.start < n for part, n in zip(source, out.shape, strict=True)):
            out[...] = self.fill
        if any(part.start >= part.stop for part in source):
            return
        inside = out[target]
        decoded = np.empty(self.chunk, self.dtype)
        parts = [_chunks_along(part, edge) for part, edge in zip(source, self.chunk, strict=True)]
        for along_z, along_y, along_x in itertools.product(*parts):
            number, of_chunk, of_box = zip(along_z, along_y, along_x, strict=True)
            offset, length = self._index[number].tolist()
            if offset == NOT_STORED:
                inside[of_box] = self._fill_value
            else:
                self._decode_into(decoded, self._pread(length, offset))
                inside[of_box] = decoded[of_chunk]

    def _decode_into(self, decoded, data):
        try:
            self._decode(data, decoded)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from error

    def _pread(self, length, offset):
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) < length:
            raise self._damaged("it ends too early")
        return data

    def _damaged(self, why):
        return LungmillError(f"{self._file.name} is damaged ({why}): delete the patient's store and run again")

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()


def _chunks_along(part, edge):
    """For each chunk that a slice crosses: its number, the slice of the chunk and the slice of what is read."""
    for number in range(part.start // edge, (part.stop - 1) // edge + 1):
        low, high = max(part.start, number * edge), min(part.stop, (number + 1) * edge)
        yield number, slice(low - number * edge, high - number * edge), slice(low - part.start, high - part.start)
