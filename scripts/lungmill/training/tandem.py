"""Reading the elements of a batch from several arrays in tandem."""

from dataclasses import replace

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.failures import failed
from lungmill.training.reading import is_a
from lungmill.training.views import DelayedView

STORED = (("h5py", "Dataset"), ("zarr", "Array"), ("bcolz", "carray"))


class TandemReader:
    """Arrays of equal length, read at the same indices of their first axis.

    Raises ArrayError where `data` is no list of arrays or the lengths differ.
    """

    def __init__(self, data):
        if not isinstance(data, (list, tuple)) or not data:
            raise ArrayError("data must be a list of arrays of equal length; write [array] for a single one")
        self._arrays = [_indexable(array, position) for position, array in enumerate(data)]
        lengths = [len(array) for array in self._arrays]
        if len(set(lengths)) > 1:
            raise ArrayError(f"the arrays in data have different lengths: {lengths}")
        self._length = lengths[0]

    def __len__(self):
        return self._length

    def read(self, chunk, empty=np.empty):
        """The chunk with a list of new, writable arrays, one of each source; raise FlowError where that fails.

        `empty(shape, dtype)` may provide the memory to read into.
        """
        batch = []
        for position, array in enumerate(self._arrays):
            try:
                batch.append(_elements(array, chunk.indices, empty))
            except Exception as error:
                culprit = _first_unreadable(array, chunk.indices)
                raise failed(f"reading data[{position}]", chunk, error, index=culprit) from error
        return replace(chunk, batch=batch)


def _indexable(array, position):
    if any(is_a(array, *kind) for kind in STORED):
        # Stores take only some orders of indices, and decode a chunk for each time it is asked for; views know better.
        array = DelayedView(array)
    elif isinstance(array, (list, tuple)):
        array = np.asarray(array)
    elif hasattr(array, "to_numpy"):
        # Indexing a pandas object goes by its labels, not by positions.
        array = array.to_numpy()
    try:
        len(array)
    except TypeError as error:
        raise ArrayError(f"data[{position}] has no length: {error}") from error
    return array


def _elements(array, indices, empty=np.empty):
    """`array[indices]` as a new array."""
    if isinstance(array, np.ndarray):
        found = empty((len(indices), *array.shape[1:]), array.dtype)
        # With the default mode, NumPy would read into a copy of `found` first, lest an index out of range spoils it.
        return np.asarray(array).take(indices, axis=0, out=found, mode="clip")
    found = np.asarray(array[indices])
    return found if found.flags.writeable and found.flags.owndata else found.copy()


def _first_unreadable(array, indices):
    """The first of these elements that cannot be read by itself, or None where each of them can."""
    for index in indices:
        try:
            _elements(array, np.array([index]))
        except Exception:
            return index
    return None
