"""Which patients there are: the sub-folders and archives in `dicom`, or the rows of the patients table."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from lungmill.errors import ConfigError
from lungmill.files import archive_stem, read_tsv
from lungmill.identity import patient_id

COLUMNS = ("patient", "dicom", "series_uid", "split", "label")
SPLITS = ("", "train", "val", "test")


@dataclass(frozen=True)
class Patient:
    """One patient: `id` is the name of its files, `name` what the user calls it, `dicom` its folder or archive."""

    id: str
    name: str
    dicom: str
    series_uid: str = ""
    split: str = ""
    label: str = ""


def find_patients(dicom, table=None, exclude=()) -> dict[str, Patient]:
    """List the patients by id, sorted.

    Places of the table that begin with s3:// are taken as they are; nothing here looks into them.

    dicom: folder with one sub-folder or archive (.zip, .tar, .tar.gz, .tgz) per patient, or None where `table` names
    them itself.
    table: a TSV with the columns `patient` and `dicom`, optionally `series_uid`, `split` and `label`.
    exclude: names to leave out. Raises ConfigError, one line, for whatever is missing, doubled or misspelt.
    """
    if not table and str(dicom).startswith("s3://"):
        raise ConfigError(f"dicom: {dicom} cannot be listed: give a table of its patients (`patients` in config.yaml)")
    patients = _from_table(Path(table), dicom) if table else _from_folder(Path(dicom))
    return without_excluded(patients, exclude)


def without_excluded(patients: list[Patient], exclude) -> dict[str, Patient]:
    """The patients by id, sorted, less those named in `exclude`; a name that fits nobody is a ConfigError."""
    names = [patient.name for patient in patients]
    excluded = {str(name) for name in exclude}
    for name in sorted(excluded - set(names)):
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(f"exclude: there is no patient {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    kept = [patient for patient in patients if patient.name not in excluded]
    if not kept:
        raise ConfigError("exclude: no patient is left: shorten the list")
    return {patient.id: patient for patient in sorted(kept, key=lambda patient: patient.id)}


def _from_folder(folder):
    if not folder.exists():
        raise ConfigError(f"dicom: there is no folder {folder}: correct `dicom` in config.yaml")
    if not folder.is_dir():
        raise ConfigError(f"dicom: {folder} is a file: give the folder that holds one sub-folder per patient")
    try:
        entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except PermissionError as error:
        raise ConfigError(f"dicom: {folder} may not be read: change its permissions") from error
    named = {}
    for entry in entries:
        name = entry if (folder / entry).is_dir() else archive_stem(entry)
        if name is None:
            continue
        if name in named:
            raise ConfigError(f"dicom: {folder} holds {named[name]} and {entry}, both of patient {name!r}: keep one")
        named[name] = entry
    if not named:
        files = f" but {len(entries)} files: give its parent" if entries else ": put one sub-folder per patient there"
        raise ConfigError(f"dicom: {folder} holds no patient folders{files}")
    return [Patient(patient_id(name), name, str(folder / entry)) for name, entry in named.items()]


def _from_table(table, dicom):
    if not table.is_file():
        raise ConfigError(f"patients: there is no file {table}: correct `patients` in config.yaml")
    try:
        rows = read_tsv(table)
    except UnicodeDecodeError as error:
        raise ConfigError(f"patients: {table} is not UTF-8 text: save it as UTF-8") from error
    if not rows:
        raise ConfigError(f"patients: {table} has no rows: give one row per patient under a header line")
    for column in ("patient", "dicom"):
        if column not in rows[0]:
            raise ConfigError(f"patients: {table} has no column {column!r}: separate the columns by tabs")
    unknown = [column for column in rows[0] if column and column not in COLUMNS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known ones are {', '.join(COLUMNS)}"
        raise ConfigError(f"patients: {table} has a column {unknown[0]!r} that means nothing{hint}")
    patients, lines = [], {}
    for line, row in enumerate(rows, start=2):
        patient = _from_row(table, line, row, dicom)
        if patient.name in lines:
            raise ConfigError(
                f"patients: {table} lists {patient.name!r} twice, in lines {lines[patient.name]} and {line}: keep one"
            )
        lines[patient.name] = line
        patients.append(patient)
    return patients


def _from_row(table, line, row, dicom):
    name, folder = row["patient"], row["dicom"]
    if not name or not folder:
        raise ConfigError(f"patients: {table} line {line} lacks {'patient' if not name else 'dicom'}: fill it in")
    if row.get("split", "") not in SPLITS:
        raise ConfigError(f"patients: {table} line {line} has split {row['split']!r}: use train, val, test or nothing")
    path = _joined(dicom, folder)
    if not str(path).startswith("s3://") and not (path.is_dir() or (archive_stem(folder) and path.is_file())):
        raise ConfigError(f"patients: {table} line {line}: there is no folder {path}: correct the dicom column")
    return Patient(
        patient_id(name), name, str(path), row.get("series_uid", ""), row.get("split", ""), row.get("label", "")
    )


def _joined(dicom, place):
    """A row's place below `dicom`; s3:// addresses, which are no paths, stay text."""
    if place.startswith("s3://"):
        return place
    if str(dicom or "").startswith("s3://"):
        return f"{str(dicom).rstrip('/')}/{place}"
    return Path(dicom or ".") / place
