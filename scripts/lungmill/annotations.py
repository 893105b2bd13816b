"""Nodules as readers marked them: a CSV in the format of the LUNA16 challenge (https://luna16.grand-challenge.org/Data)."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from lungmill.errors import LungmillError

COLUMNS = ("coordX", "coordY", "coordZ", "diameter_mm")


class Nodule(NamedTuple):
    """One annotated nodule: whose, where its centre lies ([z, y, x] in LPS mm) and its diameter in mm."""

    patient_or_series: str
    centre_mm: tuple[float, float, float]
    diameter_mm: float


def read_annotations(path):
    """Read a CSV of nodules as a list of Nodule, in the order of its lines.

    Columns: `seriesuid` or `patient` (where both are filled in, `patient` counts), `coordX`, `coordY`, `coordZ` in LPS
    mm and `diameter_mm`; others are ignored. Raises LungmillError on a file that cannot be read, a missing column, an
    empty name, or a cell that is no finite number, with the line and the column.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            _check_header(path, header)
            return [_nodule(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise LungmillError(f"annotations: {path} cannot be read ({error.strerror}): check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise LungmillError(f"annotations: {path} is not a CSV file in UTF-8 ({error}): save it as one") from error


def nodules_of(annotations, patient, series_hash=None):
    """The nodules of one patient: those under the patient's name, or under the UID of the series that was chosen.

    patient: the id, so an annotation may name the folder as it is or as `lungmill.identity.patient_id` writes it.
    series_hash: `series` of the volume's sidecar, which holds no UID but what `lungmill.identity.hash_uid` makes of it.
    """
    from lungmill.identity import hash_uid, patient_id

    def is_of_patient(name):
        return name == patient or patient_id(name) == patient or hash_uid(name) == series_hash

    return [nodule for nodule in annotations if is_of_patient(nodule.patient_or_series)]


def _check_header(path, header):
    missing = [name for name in COLUMNS if name not in header]
    if "patient" not in header and "seriesuid" not in header:
        missing.insert(0, "seriesuid (or patient)")
    if missing:
        raise LungmillError(
            f"annotations: {path} has no column {', '.join(missing)}: its first line must be like LUNA16's, "
            f"seriesuid,{','.join(COLUMNS)}"
        )


def _nodule(path, line, row):
    name = (row.get("patient") or "").strip() or (row.get("seriesuid") or "").strip()
    if not name:
        raise LungmillError(f"annotations: {path}, line {line}: neither patient nor seriesuid is filled in")
    x, y, z, diameter = (_number(path, line, column, row[column]) for column in COLUMNS)
    if diameter <= 0:
        raise LungmillError(f"annotations: {path}, line {line}, column diameter_mm: {diameter:g} is not above 0")
    return Nodule(name, (z, y, x), diameter)


def _number(path, line, column, text):
    try:
        value = float(text)
    except (TypeError, ValueError):  # TypeError: the line ends before this column
        value = math.nan
    if not math.isfinite(value):
        raise LungmillError(f"annotations: {path}, line {line}, column {column}: {text or ''!r} is not a number")
    return value
