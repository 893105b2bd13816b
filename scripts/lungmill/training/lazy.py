"""What lazy arrays have in common: NumPy's interface over elements that are read when they are asked for."""

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.portable import portable, restored
from lungmill.training.reading import read_groups
from lungmill.training.selection import select, within

# Iteration reads about this much at a time.
ITERATION_BYTES = 8 * 2**20

# From this size on, elements are copied one by one to their places, which saves a copy of them all.
LARGE_ELEMENT = 2048


class LazyArray:
    """An array along axis 0 of elements that lie elsewhere, indexed as NumPy would; what comes back is a new array.

    A subclass says how many there are (`__len__`) and where they lie (`_locate`, `_find`).
    """

    def __init__(self, dtype, element_shape):
        self._dtype = np.dtype(dtype)
        self._element_shape = tuple(int(n) for n in element_shape)

    @property
    def dtype(self):
        return self._dtype

    @property
    def shape(self):
        return (len(self), *self._element_shape)

    @property
    def ndim(self):
        return 1 + len(self._element_shape)

    @property
    def size(self):
        return len(self) * int(np.prod(self._element_shape, dtype=np.int64))

    @property
    def nbytes(self):
        """What the whole would take in memory."""
        return self.size * self._dtype.itemsize

    def _locate(self, positions):
        """Yield (array, positions in it, which): the stored arrays with what is asked of each.

        `which` indexes the `positions` asked for: an array of integers, or `slice(None)` where there is no other part.
        An array may come more than once, and there is always one part at least.
        """
        raise NotImplementedError

    def _find(self, place):
        """The stored array and the position in it of one element."""
        raise NotImplementedError

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):  # a short cut, for reading one by one
            array, place = self._find(within(int(index), len(self), 0))
            if isinstance(array, np.ndarray):
                return np.array(array[place : place + 1])[0]
        selection = select(index, self.shape)
        count = len(selection.rows)
        result = None
        for array, positions, outer in _merged(self._locate(selection.rows)):
            for block, local, inner in read_groups(array, positions, selection.box):
                which = inner if isinstance(outer, slice) else outer[inner]
                if isinstance(which, slice) and len(block if local is None else local) == count:
                    return selection.finish(_own(selection.pick(block, local), array))
                if result is None:
                    result = np.empty((count, *selection.element_shape(block)), self._dtype)
                _place(result, which, selection, block, local)
        return selection.finish(result)

    def __iter__(self):
        element_bytes = max(1, self.nbytes // max(1, len(self)))
        step = max(1, ITERATION_BYTES // element_bytes)
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("a lazy array has to be read to become a NumPy array: it cannot do without a copy")
        values = self[...]
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getstate__(self):
        return {name: _each(portable, value) for name, value in self.__dict__.items()}

    def __setstate__(self, state):
        self.__dict__.update({name: _each(restored, value) for name, value in state.items()})


def as_source(array):
    """The array itself where it has shape, dtype and an index, else a NumPy array of it; ArrayError without an axis."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__")):
        array = np.asarray(array)
    if len(array.shape) == 0:
        raise ArrayError(f"{array!r} has no axes: an array of elements along axis 0 is needed")
    return array


def fresh_seed():
    """A seed that nobody chose, to be read back."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])


def _each(function, value):
    return [function(item) for item in value] if isinstance(value, list) else function(value)


def _merged(parts):
    """One entry for each stored array, however many views of it are asked."""
    together = {}
    for part in parts:
        together.setdefault(id(part[0]), []).append(part)
    for same in together.values():
        if len(same) == 1:
            yield same[0]
        else:
            _, positions, which = zip(*same, strict=True)
            yield same[0][0], np.concatenate(positions), np.concatenate(which)


def _own(values, array):
    """Values that share no memory with the source."""
    return values.copy() if isinstance(array, np.ndarray) and np.may_share_memory(values, array) else values


def _place(result, which, selection, block, local):
    """Copy the values of a block to their places in the result."""
    if selection.simple and result.nbytes >= LARGE_ELEMENT * len(result):
        values = selection.pick(block)
        places = range(*which.indices(len(result))) if isinstance(which, slice) else which
        for place, row in zip(places, range(len(values)) if local is None else local, strict=True):
            result[place] = values[row]
    else:
        result[which] = selection.pick(block, local, which)
