"""A scan as a sequence of slices in Hounsfield units, decoded one at a time as they are asked for."""

from pathlib import Path

import numpy as np

from lungmill.dicom.geometry import SliceGeometry
from lungmill.dicom.pixels import read_hounsfield
from lungmill.errors import DicomError, LungmillError
from lungmill.files import archive_stem
from lungmill.indexing import index


class Series:
    """The slices of an accepted verdict: `series[k]` decodes slice k to int16 HU (rows, columns).

    geometry: `SliceGeometry`, which says where each sample lies. verdict: the verdict it was made from.
    """

    def __init__(self, folder, verdict: dict):
        if verdict["status"] != "accepted":
            raise DicomError(verdict["reason"], verdict["detail"])
        self.folder = Path(folder)
        self.verdict = verdict
        self.geometry = geometry_of(verdict)
        self.shape = self.geometry.shape
        self.dtype = np.dtype(np.int16)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, k):
        return self.read(k)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def read(self, k, out=None):
        """Decode slice k, to `out` where it is given: int16 (rows, columns)."""
        return read_hounsfield(self.folder, self.verdict["slices"][k], out=out)

    def to_array(self):
        """Decode all slices into one int16 array (slices, rows, columns), in the scan's own axes."""
        array = np.empty(self.shape, dtype=np.int16)
        for k in range(len(self)):
            self.read(k, array[k])
        return array


def geometry_of(verdict: dict) -> SliceGeometry:
    """The slice geometry that an accepted verdict describes."""
    stored = verdict["geometry"]
    return SliceGeometry(
        origins=np.array([record["position"] for record in verdict["slices"]], dtype=np.float64),
        row_direction=np.array(stored["directions"][:3], dtype=np.float64),
        column_direction=np.array(stored["directions"][3:], dtype=np.float64),
        pixel_spacing=tuple(stored["pixel_spacing"]),
        shape=tuple(stored["shape"]),
    )


def read_series(folder, verdict: dict | None = None, **settings) -> Series:
    """Open the CT series below `folder`, or in the archive of that name.

    verdict: what `lungmill.indexing.index` said of the folder; made now where it is not given, with `settings`
    (`min_slices`, `max_gap`, `orientations`, `series_uid`).
    Returns a `Series`. Raises DicomError with the verdict's reason where the folder is rejected.
    """
    if verdict is None:
        if not (Path(folder).is_dir() or (archive_stem(str(folder)) and Path(folder).is_file())):
            raise LungmillError(f"{folder} is no folder: give a folder with DICOM files, or a .zip or .tar of one")
        uid = settings.pop("series_uid", None)
        verdict = index(folder, settings=settings, series_uid=uid)
    return Series(folder, verdict)
