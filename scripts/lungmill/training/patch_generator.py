"""Patches around every pixel of a slice or volume, and files of them, one array per class."""

import numpy as np

from lungmill.files import replacing
from lungmill.training.errors import ArrayError
from lungmill.training.fitting import whole_number
from lungmill.training.lazy import LazyArray, as_source
from lungmill.training.patch_arguments import patch_shape
from lungmill.training.selection import select

WRITERS = {"hdf5": "H5pyArrayWriter", "zarr": "ZarrArrayWriter", "bcolz": "BcolzArrayWriter"}


class PatchGenerator(LazyArray):
    """A patch around every pixel of a slice or volume, as a lazy float32 array (n, *patchsize).

    patchsize: an edge in pixels for all axes, or one for each; two for a volume are patches out of axial slices.
    source: [y, x] or [z, y, x], numbers of any real dtype; ndarrays and memory maps stay where they are, other stores
    are read whole. binary_mask: of the shape of the source, patches only where it is not 0. random_order: the pixels in
    random order instead of row by row. max_num: at most so many; the first, or with random_order random ones.
    mirrored: beyond the edges the source is reflected on its outermost pixels, which are not repeated
    (`mode="reflect"` of np.pad); otherwise it is 0 there. rng: an integer or a numpy.random.Generator for the order.

    Iterating gives one patch after another; indexing is NumPy's, so a DataFlow can read from it. The patch of size S
    around the pixel c covers c - S // 2 to c - S // 2 + S (excluded). `positions(rows)` says which pixels those are.

    Raises ArrayError where source, mask and patchsize do not fit together.

    >>> patches = PatchGenerator(3, np.arange(12).reshape(3, 4), mirrored=False)
    >>> len(patches), patches[5].tolist()
    (12, [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0], [8.0, 9.0, 10.0]])
    """

    def __init__(
        self, patchsize, source, binary_mask=None, random_order=False, mirrored=True, max_num=None, *, rng=None
    ):
        source = as_source(source)
        self._source = source if isinstance(source, np.ndarray) else np.asarray(source[...])
        axes, dtype = self._source.ndim, self._source.dtype
        if axes not in (2, 3) or dtype.kind not in "biuf":
            raise ArrayError(
                f"source is {dtype}{self._source.shape}: give a slice [y, x] or a volume [z, y, x] of real numbers, "
                "without channels"
            )
        shape = patch_shape((patchsize,) * axes if np.ndim(patchsize) == 0 else patchsize, name="patchsize")
        if len(shape) > axes:
            raise ArrayError(f"patchsize={patchsize!r} has more axes than the source {self._source.shape}")
        super().__init__(np.float32, shape)
        self._size = np.array((1, *shape)[-axes:])
        self._mirrored = mirrored
        max_num = None if max_num is None else whole_number("max_num", max_num, 0)
        # Where the pixels lie in the source laid flat; None: all of them, in order.
        self._pixels = None if binary_mask is None else _pixels_of(binary_mask, self._source.shape)
        count = self._source.size if self._pixels is None else len(self._pixels)
        self._length = count if max_num is None else min(count, max_num)
        if random_order:
            chosen = np.random.default_rng(rng).choice(count, self._length, replace=False).astype(_index_type(count))
            self._pixels = chosen if self._pixels is None else self._pixels[chosen]
        self._places = [_places(n, size, mirrored) for n, size in zip(self._source.shape, self._size, strict=True)]

    def __len__(self):
        return self._length

    def positions(self, rows=slice(None)):
        """The pixels that patches are centred on: int64 (n, axes of the source)."""
        rows = np.arange(self._length)[rows]
        pixels = rows if self._pixels is None else self._pixels[rows].astype(np.int64)
        return np.stack(np.unravel_index(pixels, self._source.shape), axis=-1)

    def __getitem__(self, index):
        selection = select(index, self.shape)
        patches = self._cut(selection.rows)[(slice(None), *selection.box)]
        return selection.finish(selection.pick(patches))

    def _locate(self, positions):
        yield self, positions, slice(None)

    def _cut(self, rows):
        source, size = np.asarray(self._source), self._size
        starts = self.positions(rows) - size // 2
        found = np.empty((len(rows), *size), np.float32)
        inside = ((starts >= 0) & (starts + size <= source.shape)).all(axis=1)
        if inside.any():
            windows = np.lib.stride_tricks.sliding_window_view(source, tuple(size))
            found[inside] = windows[tuple(starts[inside].T)]
        for row in np.flatnonzero(~inside):
            found[row] = self._at_edge(source, starts[row])
        return found.reshape(len(rows), *self.shape[1:])

    def _at_edge(self, source, start):
        taken = [
            places[first + n // 2 :][:n]
            for places, first, n in zip(self._places, start.tolist(), self._size.tolist(), strict=True)
        ]
        patch = source[np.ix_(*taken)].astype(np.float32)
        if not self._mirrored:
            for axis, places in enumerate(taken):
                patch[(*(slice(None),) * axis, places < 0)] = 0
        return patch


def create_dataset(
    save_path,
    patchsize,
    volume,
    mask=None,
    class_list=None,
    random_order=True,
    batchsize=32,
    file_format="hdf5",
    kwargs=None,
    show_progress=False,
    *,
    max_num=None,
    mirrored=True,
    rng=0,
):
    """Write the patches around all pixels of a slice or volume, one array per class; return {array's name: patches}.

    save_path: an HDF5 file, a zarr group or a folder of bcolz arrays; what is there is replaced when all is written.
    patchsize, volume, random_order, mirrored: as for PatchGenerator. mask: integers of the volume's shape, the class
    of each pixel; None takes all pixels as class 0. class_list: the values of the mask to write; None: all that occur,
    0 too. Class c is the array `class_c`, float32 (n, *patchsize). batchsize: patches made and written at a time.
    file_format: "hdf5", "zarr" or "bcolz". kwargs: for the array, see H5pyArrayWriter, ZarrArrayWriter and
    BcolzArrayWriter. show_progress: a bar on stderr. max_num: most patches of each class. rng: an integer or a
    numpy.random.Generator for the order; the same integer gives the same file.

    Raises ArrayError where volume, mask and patchsize do not fit together or a class has no pixels.
    """
    if file_format not in WRITERS:
        raise ArrayError(f"file_format={file_format!r} is not one of {', '.join(WRITERS)}")
    batchsize = whole_number("batchsize", batchsize, 1)
    volume = as_source(volume)
    volume = volume if isinstance(volume, np.ndarray) else np.asarray(volume[...])
    mask = None if mask is None else _label_mask(mask, volume.shape)
    classes = _classes(mask, class_list)
    rng = np.random.default_rng(rng)
    generators = {}
    for value in classes:
        pixels = None if mask is None else mask == value
        generators[f"class_{value}"] = PatchGenerator(
            patchsize, volume, pixels, random_order, mirrored, max_num, rng=rng
        )
    empty = [name for name, patches in generators.items() if max_num != 0 and not len(patches)]
    if empty:
        raise ArrayError(f"class_list: the mask has no pixels of {', '.join(empty)}")
    with replacing(save_path) as temporary, _bar(generators, show_progress) as step:
        for name, patches in generators.items():
            with _writer(temporary, name, patches, batchsize, file_format, kwargs) as writer:
                for first in range(0, len(patches), batchsize):
                    writer.buffered_write(patches[first : first + batchsize])
                    step(min(batchsize, len(patches) - first))
    return {name: len(patches) for name, patches in generators.items()}


def _writer(path, name, patches, batchsize, file_format, kwargs):
    from lungmill.training import writers

    shape, dtype, kwargs = patches.shape[1:], patches.dtype, kwargs or {}
    if file_format == "bcolz":
        path.mkdir(parents=True, exist_ok=True)
        return writers.BcolzArrayWriter(shape, dtype, batchsize, path / name, length=len(patches), kwargs=kwargs)
    write = getattr(writers, WRITERS[file_format])
    return write(shape, dtype, batchsize, path, name, length=len(patches), kwargs=kwargs)


def _bar(generators, shown):
    """A context manager that gives a function to count patches with."""
    from contextlib import contextmanager

    @contextmanager
    def counting():
        if not shown:
            yield lambda count: None
            return
        from tqdm import tqdm

        total = sum(map(len, generators.values()))
        with tqdm(total=total, desc="patches", unit="patch", dynamic_ncols=True) as bar:
            yield bar.update

    return counting()


def _label_mask(mask, shape):
    mask = np.asarray(mask[...]) if hasattr(mask, "shape") else np.asarray(mask)
    if mask.shape != shape or mask.dtype.kind not in "biu":
        raise ArrayError(f"mask is {mask.dtype}{mask.shape}: integers of the volume's shape {shape} are needed")
    return mask


def _classes(mask, class_list):
    """The values of the mask to write, as ints."""
    present = [0] if mask is None else np.unique(mask).tolist()
    wanted = present if class_list is None else [int(value) for value in class_list]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ArrayError(f"class_list={class_list!r}: give different values of the mask, one at least")
    missing = [value for value in wanted if value not in present]
    if missing:
        raise ArrayError(f"class_list: {missing} do not occur in the mask, which has {present}")
    return [int(value) for value in wanted]


def _pixels_of(mask, shape):
    """Where a mask is not 0, as places in the array laid flat."""
    mask = np.asarray(mask[...]) if hasattr(mask, "shape") else np.asarray(mask)
    if mask.shape != shape:
        raise ArrayError(f"binary_mask has shape {mask.shape}, the source {shape}")
    return np.flatnonzero(mask).astype(_index_type(mask.size))


def _index_type(count):
    return np.uint32 if count <= 2**32 else np.int64


def _places(n, size, mirrored):
    """For the pixels -(size // 2) to n + size of an axis, which pixel of the source stands there; below 0: none."""
    places = np.arange(-(size // 2), n + size)
    if not mirrored:
        return np.where((places >= 0) & (places < n), places, -1)
    if n == 1:
        return np.zeros_like(places)
    folded = places % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)
