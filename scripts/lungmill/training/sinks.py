"""Where a writer's blocks go: arrays of a fixed size, and HDF5, zarr and bcolz arrays that grow.

A sink has `array` (what it writes to), `start` (the first free element), `capacity` (None: as many as you like),
`write(place, block)`, `flush()` and `close()`. When `write` and `flush` have returned, the block outlives the process.
"""

import json
import math
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lungmill.files import remove, write_text
from lungmill.training.reading import is_a

_threads_lock = threading.Lock()


def sink_of(array):
    """The sink for a storage array, or the sink itself."""
    if isinstance(array, Sink):
        return array
    if is_a(array, "h5py", "Dataset"):
        return Hdf5(array)
    if is_a(array, "zarr", "Array"):
        return Zarr(array)
    if is_a(array, "bcolz", "carray"):
        return Bcolz(array)
    return Sink(array)


class Sink:
    """An array of fixed length with `array[a:b] = block`: ndarray, memory map."""

    def __init__(self, array):
        self.array = array
        self.start = 0
        self.capacity = int(array.shape[0])

    def write(self, place, block):
        self.array[place : place + len(block)] = block

    def flush(self):
        if isinstance(self.array, np.memmap):
            self.array.flush()

    def close(self):
        pass


class Hdf5(Sink):
    """An HDF5 dataset: written behind its end where it can grow, else from its start."""

    def __init__(self, dataset, file=None):
        super().__init__(dataset)
        most = dataset.maxshape[0]
        if most is None or most > self.capacity:
            self.start, self.capacity = self.capacity, most
        self._file = file  # ours, to be closed

    def write(self, place, block):
        if place + len(block) > self.array.shape[0]:
            self.array.resize(place + len(block), axis=0)
        self.array[place : place + len(block)] = block
        self.flush()

    def flush(self):
        self.array.file.flush()

    def close(self):
        if self._file is not None:
            self._file.close()


class Zarr(Sink):
    """A zarr array, written behind its end. The chunks are written first, then the length that takes them in."""

    def __init__(self, array):
        super().__init__(array)
        self.start, self.capacity = self.capacity, None

    def write(self, place, block):
        import zarr

        old = self.array.async_array
        shape = (max(place + len(block), old.shape[0]), *block.shape[1:])
        longer = zarr.AsyncArray(old.metadata.update_shape(shape), old.store_path, old.config)
        zarr.Array(longer)[place : place + len(block)] = block
        if shape != old.shape:
            self.array.resize(shape)


class Bcolz(Sink):
    """A bcolz array that the user holds: appended to and flushed in bcolz's own way."""

    def __init__(self, array):
        super().__init__(array)
        self.start, self.capacity = self.capacity, None

    def write(self, place, block):
        with one_blosc_thread():
            if place < len(self.array):
                self.array[place : place + len(block)] = block
            else:
                self.array.append(block)
        self.flush()

    def flush(self):
        with one_blosc_thread():
            self.array.flush()


class BcolzFolder(Sink):
    """A bcolz array on disk. bcolz writes a block beside it, then each file takes its place complete, the length last.

    bcolz's own append empties the file of the last chunk, and that of the length, before it writes them anew: a process
    killed then would take elements with it that were safe before.
    """

    def __init__(self, folder):
        self._folder = Path(folder)
        self._aside = self._folder / ".partial"
        remove(self._aside)
        array = self.array
        self.start, self.capacity = int(array.shape[0]), None
        self._chunklen, self._cparams = array.chunklen, array.cparams
        self._tail = array[self.start - self.start % self._chunklen :]
        self._bytes = sum(file.stat().st_size for file in (self._folder / "data").iterdir())

    @property
    def array(self):
        import bcolz

        return bcolz.open(str(self._folder), mode="r")

    def write(self, place, block):
        import bcolz

        rows = np.concatenate([self._tail, block])
        first = place // self._chunklen
        with one_blosc_thread():
            aside = {"rootdir": str(self._aside), "mode": "w", "chunklen": self._chunklen, "cparams": self._cparams}
            bcolz.carray(rows, **aside).flush()
        for number in range(math.ceil(len(rows) / self._chunklen)):
            chunk = self._aside / "data" / f"__{number}.blp"
            target = self._folder / "data" / f"__{first + number}.blp"
            self._bytes += chunk.stat().st_size - (target.stat().st_size if target.exists() else 0)
            chunk.replace(target)
        remove(self._aside)
        length = place + len(block)
        sizes = {"shape": [length, *block.shape[1:]], "nbytes": length * block[0].nbytes, "cbytes": self._bytes}
        write_text(self._folder / "meta" / "sizes", json.dumps(sizes) + "\n")
        self._tail = rows[len(rows) - len(rows) % self._chunklen :].copy()

    def flush(self):
        pass


@contextmanager
def one_blosc_thread():
    """Let Blosc compress in one thread: more write the blocks of a chunk in the order in which they finish."""
    import bcolz

    with _threads_lock:
        before = bcolz.blosc_set_nthreads(1)
        try:
            yield
        finally:
            bcolz.blosc_set_nthreads(before)
