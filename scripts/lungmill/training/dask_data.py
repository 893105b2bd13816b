"""Dask arrays over the stores of a cohort: nothing is read before it is computed, and a task reads a chunk of a store.

This module alone imports dask; nothing else of the library imports this module.
"""

import dask.array as da
import numpy as np
from dask.base import tokenize

from lungmill.training.lazy import LazyArray
from lungmill.training.views import DelayedView

# For arrays that are in no chunks: memory maps.
CHUNK = 64


def dask_image(patient, chunks=None):
    """A Patient's image in HU as a dask array, int16 [z, y, x].

    chunks: of the array, in voxels, a number or [z, y, x]; None takes those of the store, or 64 for a memory-mapped
    volume. The same patient gives the same names of tasks.
    """
    return _dask_volume(patient, "image", chunks)


def dask_mask(patient, chunks=None):
    """A Patient's lung mask as a dask array, uint8 [z, y, x]: 1 right lung, 2 left lung; see `dask_image`."""
    return _dask_volume(patient, "mask", chunks)


def dask_patches(patches, chunks=32):
    """A lazy array of patches as a dask array: `source.images`, SlidingWindows, DelayedView or another array.

    chunks: elements that a task reads. Elements are never cut.
    """
    view = patches if isinstance(patches, LazyArray) else DelayedView(patches)
    return _from_array(view, (chunks, *view.shape[1:]), False)


def _dask_volume(patient, product, chunks):
    array = getattr(patient, product)
    in_store = not isinstance(array, np.memmap)
    if chunks is None:
        chunks = array.chunks if in_store else CHUNK
    chunks = (chunks,) * array.ndim if isinstance(chunks, int) else tuple(chunks)
    path = patient.store if in_store else patient.paths[{"image": "volume", "mask": "mask"}[product]]
    name = f"{product}-{tokenize(str(path.absolute()), path.stat().st_mtime_ns, product, chunks)}"
    # A view is pickled by the path of its file: workers in other processes open it themselves.
    return _from_array(DelayedView(array), chunks, name)


def _from_array(view, chunks, name):
    meta = np.empty((0,) * view.ndim, view.dtype)  # else dask reads a little to find out
    return da.from_array(view, chunks=chunks, asarray=False, fancy=False, name=name, meta=meta)
