"""Windows into stored arrays: one array, or many as one, in order or shuffled, loading only what is indexed."""

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.lazy import LazyArray, as_source, fresh_seed


class DelayedView(LazyArray):
    """The elements `idx_min` to `idx_max` (excluded) of an array along axis 0, in order or shuffled.

    arr: anything with shape, dtype and slices: ndarray, memory map, HDF5 dataset, zarr or bcolz array, another view.
    idx_min, idx_max: as in a slice, negative ones count from the end; None is the array's first and last element.
    shuffle: True draws an order; `shuffle(random_seed)` fixes one, and `random_seed` says which seed made it (None: in
    order).

    Indexing follows NumPy and gives a new NumPy array: `view[3]`, `view[-2:, 10:20]`, `view[[5, 1, 1]]`,
    `view[mask, ..., ::2]`. What is asked for is read, each chunk of the array once; a slice of an element reads only
    the chunks that it crosses. Beside the result, 32 MB at most are in use, or one chunk along axis 0 where that is
    more. Reading from several threads is safe for the arrays named above while nobody shuffles or writes. A view is
    pickled by the path of its file, where there is one, and is opened again read-only.

    Raises ArrayError for an array without axes and for a window outside it; indexing raises IndexError as NumPy does,
    and for None in an index.

    >>> view = DelayedView(np.arange(10) * 10, idx_min=2, idx_max=6)
    >>> view.shape, view[-1], view[::2]
    ((4,), np.int64(50), array([20, 40]))
    """

    def __init__(self, arr, shuffle=False, idx_min=None, idx_max=None):
        self.arr = as_source(arr)
        super().__init__(self.arr.dtype, self.arr.shape[1:])
        self._first, last = _window(idx_min, idx_max, int(self.arr.shape[0]))
        self._length = last - self._first
        self._order = None
        self.random_seed = None
        if shuffle:
            self.shuffle()

    def __len__(self):
        return self._length

    def shuffle(self, random_seed=None):
        """Put the elements into a random order that depends on the seed alone; None draws a seed, see `random_seed`."""
        self.random_seed = fresh_seed() if random_seed is None else random_seed
        self._order = np.random.default_rng(self.random_seed).permutation(self._length)

    @property
    def indices(self):
        """Where in `arr` each of the elements lies, in the current order: int64."""
        return self._positions(np.arange(self._length))

    def _positions(self, places):
        order = self._order
        return self._first + (places if order is None else order[places])

    def _locate(self, positions):
        positions = self._positions(positions)
        if isinstance(self.arr, LazyArray):
            yield from self.arr._locate(positions)
        else:
            yield self.arr, positions, slice(None)

    def _find(self, place):
        order = self._order
        place = self._first + int(place if order is None else order[place])
        return self.arr._find(place) if isinstance(self.arr, LazyArray) else (self.arr, place)

    def __repr__(self):
        return f"<DelayedView {self.shape} {self.dtype} of {type(self.arr).__name__}{_order_words(self.random_seed)}>"


class MultiSourceArray(LazyArray):
    """Many arrays as one along axis 0, source after source or shuffled across all of them.

    source_list: arrays as for DelayedView, views too; all elements of one shape and dtype. class_list: one label for
    each source, or for a source an array with a label for each of its elements; None numbers the sources from 0.
    maxlen: of each source at most so many elements are taken; the first ones, or with `shuffle=True` random ones.
    shuffle: True draws an order; `shuffle(random_seed)` fixes one, and `random_seed` says which seed made it (None: in
    order, or an order that was set through `index_pairs`).

    Indexing is NumPy's, see DelayedView; reads are grouped, so that a shuffled batch decodes no chunk twice, even where
    sources are views of the same stored array. Arrays in tandem, images and masks for instance, get the same order by
    the same seed or by `masks.index_pairs = images.index_pairs`.

    Raises ArrayError where the sources, labels or `maxlen` do not fit together, naming the source.

    >>> both = MultiSourceArray([np.arange(3), np.arange(10, 15)], class_list=["low", "high"], maxlen=2)
    >>> both[:], both.get_labels().tolist()
    (array([ 0,  1, 10, 11]), ['low', 'low', 'high', 'high'])
    """

    def __init__(self, source_list, class_list=None, shuffle=False, maxlen=None):
        self.sources = [as_source(source) for source in source_list]
        if not self.sources:
            raise ArrayError("source_list is empty: give at least one array")
        first = self.sources[0]
        for number, source in enumerate(self.sources):
            if tuple(source.shape[1:]) != tuple(first.shape[1:]) or np.dtype(source.dtype) != np.dtype(first.dtype):
                raise ArrayError(
                    f"source {number} has elements of {_element_words(source)}, source 0 of {_element_words(first)}: "
                    "all sources need elements of one shape and dtype"
                )
        super().__init__(first.dtype, first.shape[1:])
        lengths = [int(source.shape[0]) for source in self.sources]  # zarr's arrays have no len()
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._labels = _labels(class_list, lengths)
        self._maxlen = _checked_maxlen(maxlen)
        self._draws = bool(shuffle) and maxlen is not None
        self._order = None  # positions in all sources laid end to end; None: all of them, in order
        self.random_seed = None
        if maxlen is not None:
            self._order = np.concatenate(
                [start + np.arange(min(maxlen, n)) for start, n in zip(self._starts[:-1], lengths, strict=True)]
            )
        if shuffle:
            self.shuffle()

    def __len__(self):
        return int(self._starts[-1]) if self._order is None else len(self._order)

    def shuffle(self, random_seed=None):
        """Put the elements into a random order that depends on the seed alone; None draws a seed, see `random_seed`.

        Made with `shuffle=True` and `maxlen`, the seed also chooses which elements of each source are taken.
        """
        seed = fresh_seed() if random_seed is None else random_seed
        rng = np.random.default_rng(seed)
        if self._draws:
            chosen = np.concatenate(
                [
                    start + rng.choice(stop - start, min(self._maxlen, stop - start), replace=False)
                    for start, stop in zip(self._starts[:-1], self._starts[1:], strict=True)
                ]
            )
        else:
            chosen = np.arange(len(self)) if self._order is None else np.sort(self._order)
        self._order = rng.permutation(chosen)
        self.random_seed = seed

    def get_labels(self):
        """The label of each element in the current order, as a NumPy array."""
        places = np.arange(len(self)) if self._order is None else self._order
        if isinstance(self._labels, np.ndarray):
            return self._labels[np.searchsorted(self._starts, places, side="right") - 1]
        return np.concatenate(self._labels)[places]

    @property
    def index_pairs(self):
        """(source, element) for each element in the current order: int64, [len, 2].

        Setting it takes the pairs of another MultiSourceArray, or any others, repeated ones too; ArrayError where
        one names an element that is not there.
        """
        places = np.arange(len(self)) if self._order is None else self._order
        source = np.searchsorted(self._starts, places, side="right") - 1
        return np.stack([source, places - self._starts[source]], axis=1)

    @index_pairs.setter
    def index_pairs(self, pairs):
        pairs = np.asarray(pairs)
        if pairs.size == 0:
            pairs = np.zeros((0, 2), np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ArrayError(f"index_pairs: {pairs.dtype}{pairs.shape} is not a list of pairs of integers")
        source, element = pairs.astype(np.int64).T
        lengths = np.diff(self._starts)
        wrong = (source < 0) | (source >= len(lengths)) | (element < 0)
        wrong |= element >= lengths[np.where(wrong, 0, source)]
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ArrayError(
                f"index_pairs: pair {place} is source {source[place]}, element {element[place]}, which is not there: "
                f"the sources have {lengths.tolist() if len(lengths) < 10 else 'other'} lengths"
            )
        self._order = self._starts[source] + element
        self._draws = False
        self.random_seed = None

    def _locate(self, positions):
        order = self._order
        places = positions if order is None else order[positions]
        source = np.searchsorted(self._starts, places, side="right") - 1
        places = places - self._starts[source]
        if len(source) == 0 or (source == source[0]).all():
            yield from self._locate_in(self.sources[source[0] if len(source) else 0], places, None)
            return
        sorted_by_source = np.argsort(source, kind="stable")
        cuts = np.flatnonzero(np.diff(source[sorted_by_source])) + 1
        for which in np.split(sorted_by_source, cuts):
            yield from self._locate_in(self.sources[source[which[0]]], places[which], which)

    @staticmethod
    def _locate_in(source, places, which):
        parts = source._locate(places) if isinstance(source, LazyArray) else [(source, places, slice(None))]
        for array, positions, inner in parts:
            yield array, positions, inner if which is None else which[inner]

    def _find(self, place):
        order = self._order
        place = place if order is None else order[place]
        number = self._starts.searchsorted(place, side="right") - 1
        source, place = self.sources[number], int(place - self._starts[number])
        return source._find(place) if isinstance(source, LazyArray) else (source, place)

    def __repr__(self):
        words = _order_words(self.random_seed)
        return f"<MultiSourceArray {self.shape} {self.dtype} of {len(self.sources)} sources{words}>"


def _window(idx_min, idx_max, length):
    first = 0 if idx_min is None else _bound("idx_min", idx_min, length)
    last = length if idx_max is None else _bound("idx_max", idx_max, length)
    if last < first:
        raise ArrayError(f"idx_max={idx_max} lies before idx_min={idx_min} in an array of {length} elements")
    return first, last


def _bound(name, value, length):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArrayError(f"{name}={value!r} is not an integer")
    place = int(value) + length if value < 0 else int(value)
    if not 0 <= place <= length:
        raise ArrayError(f"{name}={value} is outside an array of {length} elements")
    return place


def _checked_maxlen(maxlen):
    if maxlen is not None and (isinstance(maxlen, bool) or not isinstance(maxlen, (int, np.integer)) or maxlen < 0):
        raise ArrayError(f"maxlen={maxlen!r} is not a number of elements")
    return maxlen


def _labels(class_list, lengths):
    """An array with a label per source, or a list of arrays with a label per element."""
    if class_list is None:
        return np.arange(len(lengths))
    class_list = list(class_list)
    if len(class_list) != len(lengths):
        raise ArrayError(f"class_list has {len(class_list)} entries for {len(lengths)} sources: give one for each")
    if all(np.ndim(label) == 0 for label in class_list):
        return np.asarray(class_list)
    arrays = []
    for number, (label, length) in enumerate(zip(class_list, lengths, strict=True)):
        label = np.full(length, label) if np.ndim(label) == 0 else np.asarray(label)
        if len(label) != length:
            raise ArrayError(f"class_list: source {number} has {length} elements but {len(label)} labels")
        arrays.append(label)
    return arrays


def _element_words(source):
    return f"{np.dtype(source.dtype)}{tuple(source.shape[1:])}"


def _order_words(seed):
    return "" if seed is None else f", shuffled by seed {seed}"
