"""The voxels that patches of each class may be centred on, patient by patient."""

from collections import defaultdict

import numpy as np

from lungmill.files import read_json
from lungmill.patches import clear_of
from lungmill.training.errors import ArrayError

NODULE = "nodule"


class Positions:
    """Reads the tables of positions of a cohort: `of(patient)` is a dict of int32 (n, 3) voxels [z, y, x] by class.

    classes: the wanted ones; a patient without one has an empty table of it. size: of a patch in voxels [z, y, x].
    annotations: nodules by `NodulesByName`, or None; own: {class: {patient: voxels}}, which win over stored tables.

    `nodule` comes from the annotations where there are some, else from the patches that the workflow cut. Where nodules
    are asked for, positions of other stored classes whose patch would contain one of them are left out.
    """

    def __init__(self, cohort, classes, size, annotations=None, own=None):
        self._cohort, self._classes, self._size = cohort, tuple(classes), np.array(size)
        self._annotations, self._own = annotations, own or {}

    def of(self, name):
        patient = self._cohort[name]
        stored = [label for label in self._classes if label not in self._own]
        tables = dict.fromkeys(stored, np.empty((0, 3), np.int32)) | self._stored(patient, stored)
        if NODULE in stored:
            tables[NODULE] = self._nodules(patient)
            for label in stored:
                if label != NODULE:
                    tables[label] = clear_of(tables[label], tables[NODULE], self._size)
        for label, by_patient in self._own.items():
            tables[label] = _voxels(by_patient.get(name, []), f"positions[{label!r}][{name!r}]")
        return tables

    def known_classes(self, name):
        """The classes that are stored for a patient, whether asked for or not."""
        patient = self._cohort[name]
        known = list(self._own)
        for column in ("positions", "patches"):
            path = patient.paths.get(column)
            if path is not None and path.exists():
                known += _names_in(path)
        return sorted({*known, *([NODULE] if self._annotations is not None else [])})

    def _stored(self, patient, labels):
        path = patient.paths.get("positions")
        if path is None or not path.exists() or set(labels) <= {NODULE}:
            return {}
        with np.load(path) as file:
            return {label: file[label] for label in labels if label in file.files}

    def _nodules(self, patient):
        if self._annotations is not None:
            return self._annotations.voxels_of(patient)
        path = patient.paths.get("patches")
        if path is None or not path.exists():
            return np.empty((0, 3), np.int32)
        import h5py

        with h5py.File(path, "r") as file:
            if f"positions/{NODULE}" not in file:
                return np.empty((0, 3), np.int32)
            found, shape = file[f"positions/{NODULE}"][:], [1, *file.attrs["patch_shape"]][-3:]
        shift = np.array(shape) // 4  # by which the workflow moved them, see `lungmill.patches`
        if len(found) and (shift > (self._size - 1) // 2).any():
            raise ArrayError(
                f"{patient.name}: {path} has positions up to {shift.tolist()} voxels from their nodule, which patches "
                f"of {self._size.tolist()} would miss: give annotations=, the CSV of the nodules, to centre on them"
            )
        return found


class NodulesByName:
    """Annotated nodules, found by patient without looking through all of them: a path or a list of Nodule."""

    def __init__(self, annotations):
        from lungmill.annotations import read_annotations
        from lungmill.identity import hash_uid, patient_id

        nodules = annotations if isinstance(annotations, (list, tuple)) else read_annotations(annotations)
        self._of_patient, self._of_series = defaultdict(dict), defaultdict(dict)
        for number, nodule in enumerate(nodules):
            name = nodule.patient_or_series
            for known in {name, patient_id(name)}:
                self._of_patient[known][number] = nodule
            self._of_series[hash_uid(name)][number] = nodule

    def voxels_of(self, patient):
        """Centres of a Patient's nodules that lie in the volume, to the nearest voxel: int32 (n, 3) [z, y, x]."""
        nodules = self._of_patient.get(patient.name, {}) | self._of_series.get(_series_of(patient), {})
        centres = np.array([patient.grid.to_index(nodule.centre_mm) for nodule in nodules.values()]).reshape(-1, 3)
        voxels = np.floor(centres + 0.5).astype(np.int32)
        return voxels[((voxels >= 0) & (voxels < patient.grid.shape)).all(axis=1)]


def _series_of(patient):
    path = patient.paths.get("volume")
    sidecar = path.with_suffix(".json") if path is not None else None
    return read_json(sidecar).get("series") if sidecar is not None and sidecar.exists() else None


def _names_in(path):
    if path.suffix == ".npz":
        with np.load(path) as file:
            return list(file.files)
    import h5py

    with h5py.File(path, "r") as file:
        return [NODULE] if f"positions/{NODULE}" in file else []


def _voxels(values, what):
    values = np.asarray(values)
    if values.size == 0:
        return np.empty((0, 3), np.int32)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iu":
        raise ArrayError(f"{what}: {values.dtype}{values.shape} is not a table of voxels, integers (n, 3) [z, y, x]")
    return values.astype(np.int32)
