"""The same values in each of the stores that views read, in chunks that fit neither the axes nor each other."""

import bcolz
import h5py
import numpy as np
import zarr

KINDS = ["memmap", "hdf5", "zarr", "shards", "bcolz"]
SHAPES = [(13,), (13, 4, 6), (7, 5, 3, 4)]


def values(shape, start=0):
    return (np.arange(np.prod(shape, dtype=int)) + start).astype(np.int32).reshape(shape)


def store(kind, folder, array, chunks=None):
    """The array written to a new file in `folder`, opened for reading."""
    chunks = chunks or (3, 3, 2, 3)[: array.ndim]
    path = folder / f"{kind}-{len(list(folder.iterdir()))}"
    if kind == "memmap":
        np.save(path.with_suffix(".npy"), array)
        return np.load(path.with_suffix(".npy"), mmap_mode="r")
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=array, chunks=chunks, compression="gzip")
        return h5py.File(path, "r", rdcc_nbytes=0)["a"]
    if kind in ("zarr", "shards"):
        shards = tuple(2 * n for n in chunks) if kind == "shards" else None
        written = zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=chunks, shards=shards)
        written[...] = array
        return zarr.open_array(path, mode="r")
    bcolz.carray(array, rootdir=str(path), chunklen=chunks[0]).flush()
    return bcolz.open(str(path), mode="r")


class Counting:
    """Slices only, in chunks; raises where a chunk is decoded twice before `forget`."""

    def __init__(self, array, chunks):
        self.array, self.chunks = array, chunks
        self.shape, self.dtype = array.shape, array.dtype
        self.decoded = set()
        self.largest = 0

    def forget(self):
        self.decoded = set()
        self.largest = 0

    def __getitem__(self, index):
        crossed = [
            range(part.indices(n)[0] // edge, -(-part.indices(n)[1] // edge))
            for part, n, edge in zip(index, self.shape, self.chunks, strict=True)
        ]
        chunks = set(np.ndindex(*(part.stop for part in crossed))) if all(crossed) else set()
        chunks = {c for c in chunks if all(i in part for i, part in zip(c, crossed, strict=True))}
        assert not chunks & self.decoded, f"decoded twice: {chunks & self.decoded}"
        self.decoded |= chunks
        result = self.array[index]
        self.largest = max(self.largest, result.nbytes)
        return result
