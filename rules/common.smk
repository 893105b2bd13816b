# Settings, patients and the functions that rules take their inputs and parameters from.
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "rules")]

import cluster
from console import Console
from lungmill.dataset import PRODUCTS
from lungmill.packing import ZARR_FILES
from many_inputs import look_pipes_up
from resources import Needs
from remote import Remote
from settings import read_settings
from warm import use_warm_interpreter

use_warm_interpreter()
look_pipes_up()
REMOTE = Remote(workflow)
SETTINGS = read_settings(config, ROOT, REMOTE)
RESULTS, LOGS = SETTINGS.results, SETTINGS.logs
PATIENTS = SETTINGS.patients
ANNOTATIONS = SETTINGS.annotations
NEEDS = Needs(RESULTS, config, PATIENTS, lambda: not workflow.local_exec, REMOTE.fetch, REMOTE.is_used)
Console.install(workflow, REMOTE.find_log)
cluster.install(workflow)


pathvars:
    results=RESULTS,
    logs=LOGS,


wildcard_constraints:
    patient=r"[^/]+",


# Parameters decide whether a job runs again, so the functions that make them take `wildcards` alone: Snakemake does not
# record those that take `input`. Where they need a file that another job makes, the error that names it makes
# Snakemake ask again once it is there.
def code(script):
    """Hash of a script and the library modules it uses: rules put it into their parameters."""
    return SETTINGS.code(script)


def dicom_input(wildcards):
    """The demo's files, which are made here, or an s3:// address, which is fetched; not the folder of a user."""
    place = PATIENTS[wildcards.patient].dicom
    if place.startswith("s3://"):
        return storage.s3(place)
    return place if SETTINGS.is_demo else []


def dicom_state(wildcards):
    """Where a patient's DICOM files are and a fingerprint that changes when one of them does."""
    folder = PATIENTS[wildcards.patient].dicom
    return {"dicom": folder, "fingerprint": SETTINGS.fingerprint(folder)}


def nodules(wildcards):
    """The annotated nodules of a patient, or None where there are no annotations."""
    if ANNOTATIONS is None:
        return None
    return SETTINGS.nodules(PATIENTS[wildcards.patient])


def accepted():
    """The patients whose verdict is to go on; known once the checkpoint has run."""
    return SETTINGS.accepted(checkpoints.verdicts.get().output.table)


def of_accepted(*patterns):
    """An input function: the files of all accepted patients after each pattern."""
    return lambda wildcards: [
        f"{RESULTS}/{pattern.format(patient=patient)}" for patient in accepted() for pattern in patterns
    ]


def pack_settings(store):
    """Parameters of the rule that writes one format."""
    settings = config["pack"]
    of_zarr = {"codec": settings["codec"]} if store in ("zarr", "zarr_zip") else {}
    return {"format": store, "level": settings["level"], "chunk": settings["chunk"], **of_zarr, "code": code("pack")}


def tell_where_to_look():
    """The last line of a run that did something."""
    rejected = len(PATIENTS) - len(accepted())
    page = REMOTE.address(f"{RESULTS}/report/index.html")
    print(f"Patients: {len(PATIENTS)}, rejected: {rejected}. Look at {page}", file=sys.stderr)


def product_file(name):
    """The file that shows that a product is there: a Zarr group is when its zarr.json is."""
    path = Path(PRODUCTS[name].format("{patient}"))
    return str(path / "zarr.json" if name == "zarr" else path)


def dataset_rows():
    """Accepted patients with the split and label that the patients table gives them."""
    return [
        {"patient": patient, "split": PATIENTS[patient].split, "label": PATIENTS[patient].label}
        for patient in accepted()
    ]


FORMATS = [name for name in PRODUCTS if name in config["pack"]["formats"]]
MADE = ["volume", "mask", "positions", *FORMATS, "patches"]
PRODUCT_FILES = [product_file(name) for name in MADE]
# What tables of the cohort need to know of a patient's products. Elsewhere that is their sizes in one small file: nobody
# wants every volume on the machine that counts them.
SHOWN = ["products/{patient}.json"] if REMOTE.is_used else PRODUCT_FILES
COHORT_GROUP = "<results>/cohort.zarr/zarr.json" if "zarr" in FORMATS else []
