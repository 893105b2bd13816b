"""A volume or a mask on disk: the .npy, and the JSON beside it that says where its voxels lie."""

import math
from contextlib import closing
from pathlib import Path

import numpy as np

from lungmill.files import read_json, replacing, write_json
from lungmill.grid import Grid
from lungmill.version import __version__


def open_volume(npy, sidecar):
    """Memory-map a volume or mask and read its JSON: (array, grid, JSON)."""
    described = read_json(sidecar)
    return np.load(npy, mmap_mode="r"), Grid.from_dict(described), described


def write_array(npy, sidecar, patient: str, make):
    """Write an array and its JSON so that the .npy appears only when it is whole, and the JSON after it.

    make: called with a function that takes (shape, dtype) and returns the `PlaneFile` to fill; returns the dict for
    the JSON, which `lungmill` and `patient` are put in front of.
    """
    with replacing(npy) as temporary, closing(PlaneFile(temporary)) as file:
        described = make(file.create)
    write_json(sidecar, {"lungmill": __version__, "patient": patient, **described})


class PlaneFile:
    """A .npy that is written plane by plane, in any order: `file[3:5] = planes`, `file[:] = array`.

    Writing costs half of what a memory map does, which the kernel maps page by page, and whose pages count as the
    process's memory. A full disk is an OSError, where a memory map ends the process.
    """

    def __init__(self, path):
        self.path, self.stream = path, None

    def create(self, shape, dtype):
        """Write the header of an array of that shape and type, C-ordered; returns the file itself."""
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        self.stream = Path(self.path).open("wb")  # noqa: SIM115 - closed by `close`
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.stream, described)
        self.start = self.stream.tell()
        self.stream.truncate(self.start + math.prod(self.shape) * self.dtype.itemsize)
        return self

    def __setitem__(self, planes, values):
        first, stop, step = planes.indices(self.shape[0])
        values = np.ascontiguousarray(values, dtype=self.dtype)
        if step != 1 or values.shape != (stop - first, *self.shape[1:]):
            raise ValueError(f"planes of shape {values.shape} do not fit {planes} of {self.shape}")
        self.stream.seek(self.start + first * math.prod(self.shape[1:]) * self.dtype.itemsize)
        self.stream.write(values)

    def close(self):
        if self.stream is not None:
            self.stream.close()
