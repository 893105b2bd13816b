"""NumPy's indices, taken apart for arrays whose elements are read from somewhere first.

`select` turns an index into a `Selection`: which elements along axis 0 to read, which box of each, and what remains to
be picked out of what was read. Nothing here reads anything.
"""

import operator
from dataclasses import dataclass

import numpy as np

ALL = slice(None)

VALID = "only integers, slices, ellipsis (`...`) and integer or boolean arrays are valid indices"


@dataclass(frozen=True, slots=True)
class Selection:
    """What an index means for an array of elements along axis 0.

    rows: position of an element for every point of the result, int64, in the result's order, repeats included.
    box: for each axis of an element a slice with start, stop and a step above 0: the part that has to be read.
    rest: index into that part, one entry for each axis and maybe a `...`. `paired`: its arrays have one value for each
    row; otherwise they hold for all rows alike. points, axis: the shape which the axis of the rows takes in the result
    and where it stands there. scalar: a result of no axes is to be a scalar, not an array.
    """

    rows: np.ndarray
    box: tuple
    rest: tuple
    paired: bool
    points: tuple
    axis: int
    scalar: bool

    @property
    def simple(self):
        """True where `rest` has no arrays: what it picks is a view of what was read."""
        return not any(isinstance(entry, np.ndarray) for entry in self.rest)

    def pick(self, block, local=None, which=ALL):
        """The values of the rows `which`, axis of the rows first.

        block: the boxes of some elements, stacked along axis 0. local: where in `block` each of the rows lies; None
        where they are the block in its order.
        """
        if self.paired:
            local = np.arange(len(block)) if local is None else local
            return block[(local, *(entry[which] if isinstance(entry, np.ndarray) else entry for entry in self.rest))]
        if self.simple:
            block = block[(ALL, *self.rest)]
            return block if local is None else block[local]
        block = block if local is None else block[local]
        return np.moveaxis(block[(ALL, *self.rest)], self.axis, 0)

    def element_shape(self, block):
        """Shape of what `pick` gives for one row."""
        return self.pick(block[:1], np.zeros(0, np.intp), slice(0, 0)).shape[1:]

    def finish(self, values):
        """Give `values`, axis of the rows first, the shape that NumPy would give the result."""
        values = values.reshape(self.points + values.shape[1:])
        if self.axis:
            values = np.moveaxis(values, 0, self.axis)
        return values[()] if self.scalar and values.ndim == 0 else values


def select(index, shape):
    """Take an index of an array of this shape apart: a Selection.

    Raises IndexError where NumPy does, and for `None` and single booleans, which would add an axis.
    """
    entries, ellipsis = _entries(index, shape)
    entries = [within(entry, size, axis) for axis, (entry, size) in enumerate(zip(entries, shape, strict=True))]
    advanced = [axis for axis, entry in enumerate(entries) if isinstance(entry, np.ndarray)]
    try:
        common = () if not advanced else np.broadcast_shapes(*(entries[axis].shape for axis in advanced))
    except ValueError:
        shapes = " ".join(str(entries[axis].shape) for axis in advanced)
        raise IndexError(
            f"shape mismatch: indexing arrays could not be broadcast together with shapes {shapes}"
        ) from None
    first, others = entries[0], [axis for axis in advanced if axis]
    paired = bool(others) and not isinstance(first, slice)
    if paired:
        entries = [np.broadcast_to(e, common).ravel() if isinstance(e, np.ndarray) else e for e in entries]
    boxes = [_box(entry, size) for entry, size in zip(entries[1:], shape[1:], strict=True)]
    rest = [remaining for _, remaining in boxes]
    axis = 0
    if isinstance(first, slice):
        rows = np.arange(*first.indices(shape[0]))
        points = rows.shape
        if others and _apart(entries, ellipsis):
            axis = len(common)
            if ellipsis is not None and ellipsis > 0:
                rest.insert(ellipsis - 1, ...)
    elif paired:
        rows = np.full(np.prod(common, dtype=int), first) if isinstance(first, int) else entries[0]
        points = common
    else:
        rows, points = np.ravel(first), np.shape(first)
    return Selection(
        rows.astype(np.int64, copy=False),
        tuple(box for box, _ in boxes),
        tuple(rest),
        paired,
        points,
        axis,
        scalar=not _has_ellipsis(index),
    )


def _has_ellipsis(index):
    return index is ... or (isinstance(index, tuple) and any(item is ... for item in index))


def _entries(index, shape):
    """One entry per axis: an int, a slice or an integer array; and before which axis a `...` of no axes stood."""
    items = []
    for item in index if isinstance(index, tuple) else (index,):
        items += [item] if item is ... or isinstance(item, slice) else _integers(item)
    consumed = sum(_width(item) for item in items)
    if consumed > len(shape):
        raise IndexError(f"too many indices for array: array is {len(shape)}-dimensional, but {consumed} were indexed")
    dots = [place for place, item in enumerate(items) if item is ...]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = len(shape) - consumed
    place = dots[0] if dots else len(items)
    before = sum(_width(item) for item in items[:place])
    items[place : place + 1] = [ALL] * missing
    entries = []
    for item in items:
        entries += _nonzero(item, shape, len(entries)) if _is_mask(item) else [item]
    return entries, before if dots and not missing else None


def _is_mask(item):
    return isinstance(item, np.ndarray) and item.dtype == bool


def _width(item):
    """How many axes an item of an index stands for."""
    if item is ...:
        return 0
    return item.ndim if _is_mask(item) else 1


def _integers(item):
    """An int, an array of integers or one of booleans, in a list, out of whatever else may stand in an index."""
    if item is None:
        raise IndexError("None (a new axis) is no valid index here: index first, then add the axis to what comes back")
    if isinstance(item, (bool, np.bool_)):
        raise IndexError(f"{item} is no valid index here: a boolean array needs an entry for each element")
    if isinstance(item, (str, bytes, dict, set)):
        raise IndexError(f"{VALID}, not {item!r}")
    if not isinstance(item, (list, tuple, range, np.ndarray)):
        try:
            return [operator.index(item)]
        except TypeError:
            if not hasattr(item, "__array__"):
                raise IndexError(f"{VALID}, not {item!r}") from None
    array = np.asarray(item)
    if array.size == 0 and not isinstance(item, np.ndarray):
        array = array.astype(np.intp)
    if array.dtype == bool and array.ndim:
        return [array]
    if array.dtype.kind not in "iu":
        raise IndexError(f"arrays used as indices must be of integer (or boolean) type, not {array.dtype}")
    return [int(array)] if array.ndim == 0 else [array.astype(np.intp, copy=False)]


def _nonzero(mask, shape, axis):
    for offset, (size, expected) in enumerate(zip(mask.shape, shape[axis:], strict=False)):
        if size != expected:
            raise IndexError(
                f"boolean index did not match indexed array along axis {axis + offset}; size of axis is {expected} "
                f"but size of corresponding boolean axis is {size}"
            )
    return list(mask.nonzero())


def within(entry, size, axis):
    """The entry with negative positions counted from the end; IndexError where one is outside."""
    if isinstance(entry, slice):
        return entry
    lowest, highest = (entry, entry) if isinstance(entry, int) else (entry.min(initial=0), entry.max(initial=-1))
    if lowest < -size or highest >= size:
        wrong = lowest if lowest < -size else highest
        raise IndexError(f"index {wrong} is out of bounds for axis {axis} with size {size}")
    if isinstance(entry, int):
        return entry + size if entry < 0 else entry
    return np.where(entry < 0, entry + size, entry) if lowest < 0 else entry


def _box(entry, size):
    """The slice with a step above 0 that has to be read of an axis, and the index into what was read."""
    if isinstance(entry, int):
        return slice(entry, entry + 1, 1), 0
    if isinstance(entry, slice):
        start, stop, step = entry.indices(size)
        count = len(range(start, stop, step))
        if count == 0:
            return slice(0, 0, 1), ALL
        last = start + (count - 1) * step
        if step > 0:
            return slice(start, last + 1, step if count > 1 else 1), ALL
        return slice(last, start + 1, -step if count > 1 else 1), slice(None, None, -1)
    if entry.size == 0:
        return slice(0, 0, 1), entry
    lowest = int(entry.min())
    return slice(lowest, int(entry.max()) + 1, 1), entry - lowest


def _apart(entries, ellipsis):
    """True where NumPy puts the axes of the indexing arrays first, because something stands between them.

    An integer beside an array counts as one of them, and so does a `...` of no axes as something between.
    """
    places = [axis for axis, entry in enumerate(entries) if not isinstance(entry, slice)]
    if places[-1] - places[0] >= len(places):
        return True
    return ellipsis is not None and places[0] < ellipsis <= places[-1]
