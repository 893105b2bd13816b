"""What the rules need to know before anything runs, read and checked once; wrong input ends in one line."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from lungmill.config import checked_config
from lungmill.dataset import PRODUCTS
from lungmill.demo import PATIENTS as DEMO_PATIENTS
from lungmill.errors import ConfigError, LungmillError
from lungmill.files import read_json, read_tsv
from lungmill.patients import Patient, find_patients, without_excluded
from lungmill.provenance import code_hash, folder_fingerprint
from remote import Remote, check_address, check_plugin


@dataclass(frozen=True)
class Settings:
    """Checked settings of one run; `patients` maps ids to `lungmill.patients.Patient`."""

    root: Path
    results: str
    logs: str
    patients: dict[str, Patient]
    annotations: str | None
    is_demo: bool
    remote: Remote

    def code(self, script: str) -> str:
        return code_hash(self.root / "scripts" / f"{script}.py")

    def fingerprint(self, folder: str) -> str:
        """Changes when a file below a folder does. What Snakemake fetches itself needs none: it knows those files."""
        if folder.startswith("s3://") or self.remote.is_used:
            return ""
        return _fingerprint(folder)

    def nodules(self, patient: Patient) -> list:
        """A patient's nodules as plain lists: whose, centre [z, y, x] in mm, diameter."""
        from lungmill.annotations import nodules_of

        table = self.remote.fetch(self.annotations) if self.is_demo else self.annotations
        os.stat(table)  # noqa: PTH116 (Snakemake waits for a file that this error names)
        if self.remote.is_used:
            # A container's steps are planned together: nothing that one of them makes is there yet to be looked into.
            series = read_json(self.remote.fetch(f"{self.results}/index/{patient.id}.json"))["series"]["uid"]
        else:
            series = read_json(f"{self.results}/volumes/{patient.id}.json")["series"]
        found = nodules_of(_annotations(table), patient.name, series)
        return [[nodule.patient_or_series, list(nodule.centre_mm), nodule.diameter_mm] for nodule in found]

    def accepted(self, verdicts: str) -> list[str]:
        rows = read_tsv(self.remote.fetch(verdicts))
        return [row["patient"] for row in rows if row["status"] == "accepted" and row["patient"] in self.patients]


@cache
def _fingerprint(folder):
    return folder_fingerprint(folder)


@cache
def _annotations(path):
    from lungmill.annotations import read_annotations

    return read_annotations(path)


def read_settings(config: dict, root: Path, remote: Remote) -> Settings:
    """Check `config`, fill in its defaults in place, and find the patients; SystemExit with one line on an error."""
    try:
        schema = yaml.safe_load((root / "schemas" / "config.schema.yaml").read_text(encoding="utf-8"))
        remote.check(config)  # before anything that might repeat a value
        config.update(checked_config(dict(config), schema))
        config["pack"]["formats"] = remote.formats(config["pack"]["formats"], PRODUCTS)
        return _settings(config, root, remote)
    except LungmillError as error:
        raise SystemExit(f"lungmill: {error}") from None


def _settings(config, root, remote):
    results = os.path.normpath(config["results"])
    is_demo = config["dicom"] is None and config["patients"] is None
    logs = config["logs"] or ("logs" if results == "results" else f"{results}/logs")
    _check_place(results, config["dicom"])
    remote.ship(root, config["patients"], config["annotations"])
    if is_demo:
        suffix = ".zip" if remote.is_used else ""  # a folder does not travel
        demo = [Patient(name, name, f"{results}/demo/dicom/{name}{suffix}") for name in DEMO_PATIENTS]
        patients = without_excluded(demo, config["exclude"])
        annotations = config["annotations"] or f"{results}/demo/annotations.csv"
    else:
        patients = find_patients(config["dicom"], config["patients"], config["exclude"])
        _check_places(patients, remote)
        annotations = config["annotations"]
        if annotations and not Path(annotations).is_file():
            raise ConfigError(f"annotations: there is no file {annotations}: correct `annotations` in config.yaml")
    return Settings(root, results, logs, patients, annotations, is_demo, remote)


def _check_places(patients, remote):
    """Jobs elsewhere see what lies in S3 and nothing else; everyone else needs the plugin for it."""
    for patient in patients.values():
        if patient.dicom.startswith("s3://"):
            check_address(patient.dicom, f"patients: {patient.name}")
            check_plugin(f"patients: {patient.name}")
        elif remote.is_used:
            raise ConfigError(
                f"patients: {patient.name}: jobs cannot see {patient.dicom}: copy it to S3 and give its s3:// address"
            )


def _check_place(results, dicom):
    """Results must be writable, and not be taken for patients on the next run."""
    if ":/" in results:  # normalized: one slash is left
        raise ConfigError(f"results: {results} is an address: name it as default-storage-prefix (profiles/aws-batch)")
    if any(mark in results for mark in "{}<>*\n"):
        raise ConfigError(f"results: {results!r} holds one of {{}}<>*, which Snakemake gives a meaning: rename it")
    if dicom and Path(dicom).resolve() in Path(results).resolve().parents:
        raise ConfigError(f"results: {results} lies inside dicom, {dicom}: choose a folder outside it")
    place = Path(results).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"results: {place} is not a folder that may be written to: set `results` to one that is")
