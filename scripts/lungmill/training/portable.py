"""Stored arrays on their way to another process: the name of the file travels, not what it holds.

A memory map pickles as a copy of its values and an HDF5 dataset not at all; both, and bcolz arrays on disk, are opened
again by path, read-only. Zarr arrays do that by themselves. Anything else is pickled as it is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.reading import is_a


def portable(array):
    """What to pickle for this array: a handle with `open()`, or the array itself."""
    if isinstance(array, np.ndarray):
        return _mapped(array) or array
    if is_a(array, "h5py", "Dataset"):
        file = array.file
        if array.name is None or file.driver in ("core", "fileobj"):
            raise ArrayError(f"{array!r} lies in no file, so another process cannot open it: write it to one first")
        return _Hdf5(str(Path(file.filename).absolute()), array.name, file.swmr_mode)
    if is_a(array, "bcolz", "carray") and array.rootdir:
        return _Bcolz(str(Path(array.rootdir).absolute()))
    return array


def restored(handle):
    """The array that `portable` was given, opened in this process."""
    return handle.open() if isinstance(handle, (_Mapped, _Hdf5, _Bcolz)) else handle


def _mapped(array):
    """The handle of an array that lies in a memory-mapped file, sliced or reshaped as it may be, or None."""
    root = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or not root.filename or root.mode == "c" or array.nbytes == 0:
        return None
    low, high = np.lib.array_utils.byte_bounds(array)
    offset = root.offset + low - root.ctypes.data
    first = array.ctypes.data - low
    return _Mapped(str(root.filename), offset, high - low, first, array.dtype, array.shape, array.strides)


@dataclass(frozen=True)
class _Mapped:
    filename: str
    offset: int
    nbytes: int
    first: int  # where the first element lies in these bytes
    dtype: np.dtype
    shape: tuple
    strides: tuple

    def open(self):
        span = np.memmap(self.filename, np.uint8, "r", offset=self.offset, shape=(self.nbytes,))
        return np.ndarray(self.shape, self.dtype, buffer=span, offset=self.first, strides=self.strides)


@dataclass(frozen=True)
class _Hdf5:
    filename: str
    name: str
    swmr: bool

    def open(self):
        import h5py

        return h5py.File(self.filename, "r", swmr=self.swmr)[self.name]


@dataclass(frozen=True)
class _Bcolz:
    folder: str

    def open(self):
        import bcolz

        return bcolz.open(self.folder, mode="r")
