"""Random patches straight out of a cohort's stores: lazy arrays of images, masks and labels, read when indexed."""

import copy
from functools import cached_property

import numpy as np

from lungmill.cohort import Cohort, open_cohort
from lungmill.errors import LungmillError
from lungmill.patches import AIR_HU
from lungmill.training.errors import ArrayError
from lungmill.training.fitting import whole_number
from lungmill.training.lazy import LazyArray
from lungmill.training.patch_arguments import class_names, fitting_int16, patch_shape
from lungmill.training.patch_draws import draw_patients, key_of, shuffled_rounds, uniform
from lungmill.training.patch_positions import NodulesByName, Positions
from lungmill.training.patch_stores import PRODUCTS, Readers, choose_store
from lungmill.training.selection import select

PER_CLASS_AND_PATIENT = 32


class PatchSource:
    """Random patches of a cohort, balanced over classes and patients, as arrays that are read when they are indexed.

    cohort: a Cohort, as of `open_cohort(results).select(split="train")`, or the folder of results.
    shape: of a patch in voxels; three numbers [z, y, x], or two [y, x] for patches out of axial slices. shape_mm gives
    it in mm instead, rounded to voxels; the patients of one run of the workflow share their spacing.
    classes: what the patches are centred on: `lung`, `pleura` and `background` are stored with every mask, `nodule`
    with the patches of an annotated cohort. A patient without a class is skipped for that class.
    length: number of patches of an epoch; None: 32 for each class and patient.
    seed: what is drawn depends on it, the patients and the classes alone. The same number gives the same patch.
    jitter_mm: largest random shift of a centre, along the axes of the patch; three numbers [z, y, x] for any axes. The
    centre stays in the volume.
    store: "zarr", "npy", "hdf5" or "bcolz"; "auto" is the first of these that all patients have.
    annotations: nodules as a CSV or a list of Nodule; `nodule` patches are then centred on them. positions: voxels of
    your own as {class: {patient: integers (n, 3)}}; they win over stored ones.
    fill: HU of what lies beyond the volume (masks: 0). max_open: stores that are open at a time in each process.

    `images` (int16 HU), `masks` (uint8, 1 right and 2 left lung) and `labels` (int64, places in `classes`) are arrays
    in tandem, with NumPy's indexing; `source[i]` is `source.images[i]`. A patch of size S around the voxel c covers
    c - S // 2 to c - S // 2 + S (excluded), as in `crop_center`.

    The elements of an epoch follow each other in random order: classes take turns, and so do the patients of a class,
    so that after any number of elements they differ by one at most; nor does a position come again before all others
    of that patient and class. `epoch(n)` is where the n-th epoch goes on. Where nodules are one of the classes,
    `lung`, `pleura` and `background` patches contain none.

    The positions of all patients are looked through once, when the source is made. Pickling takes along what was drawn
    and nothing that was read. Reading from several threads is safe.

    Raises ArrayError on arguments that make no sense, LungmillError where no patient has one of the classes or a store
    is missing.

    >>> source = PatchSource(cohort.select(split="train"), (64, 64, 64), ("nodule", "lung"))  # doctest: +SKIP
    >>> flow = DataFlow([source.images, source.labels], batch_size=32)  # doctest: +SKIP
    """

    def __init__(
        self, cohort, shape=None, classes=("lung", "background"), *, shape_mm=None, length=None, seed=0, jitter_mm=0.0,
        store="auto", annotations=None, positions=None, fill=AIR_HU, max_open=64,
    ):  # fmt: skip
        self.cohort = cohort if isinstance(cohort, Cohort) else open_cohort(cohort)
        if not len(self.cohort):
            raise ArrayError("the cohort has no patients: there is nothing to cut patches from")
        self._patients = np.array(list(self.cohort))
        self.shape_voxels = patch_shape(shape, shape_mm, self._spacing_mm)
        self.classes = class_names(classes, positions)
        self.seed = whole_number("seed", seed, 0)
        self.store = choose_store(self.cohort.values(), store)
        self._size = (1, *self.shape_voxels)[-3:]
        self._jitter = self._jitter_voxels(jitter_mm)
        nodules = None if annotations is None else NodulesByName(annotations)
        self._positions = Positions(self.cohort, self.classes, self._size, nodules, positions)
        self._patients_of = self._who_has_what()
        fills = {"image": fitting_int16(fill), "mask": 0}
        self._readers = Readers(self.cohort, self.store, fills, whole_number("max_open", max_open, 1))
        default = PER_CLASS_AND_PATIENT * len(self.classes) * len(self.cohort)
        self._length = default if length is None else whole_number("length", length, 1)
        self._begin(0)

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return self.images[index]

    def __iter__(self):
        return iter(self.images)

    @property
    def shape(self):
        return self.images.shape

    @property
    def dtype(self):
        return self.images.dtype

    def __repr__(self):
        voxels = "x".join(map(str, self.shape_voxels))
        names = ", ".join(self.classes)
        return f"<PatchSource {len(self)} of {voxels} from {len(self.cohort)} patients ({self.store}): {names}>"

    @property
    def images(self):
        """The patches in HU: a lazy int16 array (len, *shape)."""
        return Patches(self, "image")

    @property
    def masks(self):
        """The lung labels of the same patches, 0, 1 right, 2 left: a lazy uint8 array (len, *shape)."""
        return Patches(self, "mask")

    @property
    def labels(self):
        """The class of each patch, as its place in `classes`: int64 (len,)."""
        return self._labels

    @property
    def voxels(self):
        """The voxel [z, y, x] that each patch is centred on: int32 (len, 3)."""
        return self._centres_of(np.arange(self._length)).copy()

    @cached_property
    def table(self):
        """A pandas.DataFrame with a row per patch: patient, class, and the voxel z, y, x that it is centred on."""
        import pandas as pd

        z, y, x = self.voxels.T
        names = np.array(self.classes)[self._labels]
        return pd.DataFrame({"patient": self._patients[self._patient], "class": names, "z": z, "y": y, "x": x})

    def epoch(self, number):
        """The source of an epoch, 0 being the first: as many patches, drawn on from where the epoch before it ends."""
        other = copy.copy(self)
        other.__dict__.pop("table", None)
        other._begin(whole_number("epoch", number, 0))
        return other

    def _begin(self, epoch):
        self._start = epoch * self._length
        drawn = draw_patients(self.seed, self._patients_of, self._start, self._start + self._length)
        self._labels, self._patient, self._turn = drawn
        self._labels.flags.writeable = False
        # The elements of patient p: places bounds[p] to bounds[p + 1] of the order.
        self._by_patient = np.argsort(self._patient, kind="stable").astype(np.int32)
        counts = np.bincount(self._patient, minlength=len(self._patients))
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        self._centres = np.empty((self._length, 3), np.int32)
        self._located = np.zeros(len(self._patients), bool)

    def _who_has_what(self):
        """For each class the numbers of the patients that have it."""
        has = np.array([[len(t) > 0 for t in map(self._positions.of(p).get, self.classes)] for p in self._patients])
        for label, anybody in zip(self.classes, has.any(axis=0), strict=True):
            if not anybody:
                first = self._patients[0]
                known = ", ".join(self._positions.known_classes(first)) or "none"
                raise LungmillError(f"class {label!r}: none of {len(has)} patients has a position ({first}: {known})")
        return [np.flatnonzero(column).astype(np.int32) for column in has.T]

    def _centres_of(self, rows):
        """Centre voxels of some elements, int32 (n, 3); all elements of a patient are looked up at once."""
        for patient in np.unique(self._patient[rows]):
            if not self._located[patient]:
                self._locate(patient)
        return self._centres[rows]

    def _locate(self, patient):
        name = str(self._patients[patient])
        tables, shape = self._positions.of(name), self.cohort[name].grid.shape
        mine = self._by_patient[self._bounds[patient] : self._bounds[patient + 1]]
        found = np.empty((len(mine), 3), np.int32)
        for number, label in enumerate(self.classes):
            which = np.flatnonzero(self._labels[mine] == number)
            if len(which):
                table, key = tables[label], key_of(self.seed, "positions", name, label)
                found[which] = table[shuffled_rounds(key, len(table), self._turn[mine[which]])]
        if not ((found >= 0) & (found < shape)).all():
            raise LungmillError(f"{name}: positions lie outside the volume {shape}: run snakemake again")
        if self._jitter.any():
            shift = uniform(key_of(self.seed, "jitter"), 3, self._start + mine.astype(np.int64)) * self._jitter
            found = np.clip(found + np.rint(shift).astype(np.int32), 0, np.array(shape) - 1)
        self._centres[mine] = found  # at once: another thread may be about to write the same
        self._located[patient] = True

    def _read(self, product, rows, box):
        """The boxes (a slice of step 1 or more for each axis) of some patches: a new array (n, *extents of the box)."""
        extents = [part.stop - part.start for part in box]
        found = np.empty((len(rows), *extents), PRODUCTS[product])
        if found.size:
            starts = self._centres_of(rows) - np.array(self._size) // 2
            starts[:, 3 - len(box) :] += [part.start for part in box]
            starts = starts.tolist()
            boxes = found.reshape(len(rows), *(1, *extents)[-3:])
            patients = self._patient[rows]
            before = None
            for place in np.argsort(patients, kind="stable").tolist():
                if patients[place] != before:
                    before = patients[place]
                    reader = self._readers.get(str(self._patients[before]), product)
                reader.read(boxes[place], starts[place])
        if any(part.step > 1 for part in box):
            found = found[(slice(None), *(slice(None, None, part.step) for part in box))].copy()
        return found

    def _jitter_voxels(self, jitter_mm):
        """Largest shift of each axis [z, y, x] in voxels, float64."""
        jitter = np.asarray(jitter_mm, np.float64)
        if jitter.shape not in ((), (3,)) or not np.isfinite(jitter).all() or (jitter < 0).any():
            raise ArrayError(f"jitter_mm={jitter_mm!r} is not a number of mm from 0, or three of them")
        if jitter.ndim == 0:
            jitter = np.array([jitter * (len(self.shape_voxels) == 3), jitter, jitter])
        return jitter / self._spacing_mm if jitter.any() else jitter

    @property
    def _spacing_mm(self):
        return self.cohort[self._patients[0]].grid.spacing_mm


class Patches(LazyArray):
    """The images or the masks of a PatchSource: NumPy's indexing, read when indexed, patient by patient."""

    def __init__(self, source, product):
        super().__init__(PRODUCTS[product], source.shape_voxels)
        self._source, self._product = source, product
        self._whole = tuple(slice(0, n, 1) for n in source.shape_voxels)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype.kind in "iu":  # a batch: no detours
            return self._source._read(self._product, _rows(index, len(self)), self._whole)
        selection = select(index, self.shape)
        return selection.finish(selection.pick(self._source._read(self._product, selection.rows, selection.box)))

    def _locate(self, positions):
        yield self, positions, slice(None)

    def __repr__(self):
        return f"<{self._product} patches {self.shape} {self.dtype} of {self._source!r}>"


def _rows(index, length):
    lowest, highest = index.min(initial=0), index.max(initial=-1)
    if lowest < -length or highest >= length:
        wrong = lowest if lowest < -length else highest
        raise IndexError(f"index {wrong} is out of bounds for axis 0 with size {length}")
    return np.where(index < 0, index + length, index) if lowest < 0 else index
