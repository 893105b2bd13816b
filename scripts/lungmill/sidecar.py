"""A volume or a mask on disk: the .npy, and the JSON beside it that says where its voxels lie."""

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

    make: called with a function that takes (shape, dtype) and returns the memory-mapped array to fill; returns the
    dict for the JSON, which `lungmill` and `patient` are put in front of.
    """
    with replacing(npy) as temporary:
        described = make(
            lambda shape, dtype: np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=tuple(shape))
        )
    write_json(sidecar, {"lungmill": __version__, "patient": patient, **described})
