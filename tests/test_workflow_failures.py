"""The workflow when things go wrong: kills at any moment, jobs that fail, input that makes no sense."""

import subprocess
import time

import numpy as np
import pydicom
import pytest
from dicom_files import chest_like, stack, write_series
from pydicom.encaps import encapsulate
from stores import EVERY_FORMAT
from workspace import Workspace

KILLS = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    for name, height in (("anna", 1), ("bert", 2), ("carl", 3)):
        write_series(folder / name, chest_like, stack((-24, -24, height), (0, 0, 2), 14))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cohort):
    """Digests of a run that nothing disturbed, and how long it took."""
    workspace = Workspace(tmp_path_factory.mktemp("whole"))
    start = time.monotonic()
    workspace.run(dicom=cohort, pack=EVERY_FORMAT)
    return workspace.digests(), time.monotonic() - start


@pytest.mark.parametrize("whole_group", [True, False], ids=["with its jobs", "leaving its jobs"])
def test_killed_again_and_again_it_still_ends_with_the_same_bytes(tmp_path, cohort, uninterrupted, whole_group):
    expected, seconds = uninterrupted
    workspace = Workspace(tmp_path / "work")
    settings = {"dicom": cohort, "pack": EVERY_FORMAT}
    moments = np.random.default_rng(7).uniform(0.2, 0.7, KILLS) * seconds
    busy = [workspace.run_and_kill(moment, whole_group, **settings) for moment in moments]
    assert any(busy)
    workspace.run(**settings)
    assert workspace.digests() == expected
    again = workspace.run(**settings)
    assert "Nothing to be done" in again.text
    assert not list(workspace.results.rglob("*.partial"))


def test_a_second_run_at_the_same_time_is_refused(tmp_path, cohort):
    workspace = Workspace(tmp_path / "work")
    first = subprocess.Popen(
        workspace.command(dicom=cohort), cwd=workspace.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lock = workspace.folder / ".snakemake" / "lungmill-run.lock"
    while not lock.exists() and first.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    refused = workspace.run(ok=False, dicom=cohort)
    assert "another run is at work" in refused.text
    assert first.wait(120) == 0


def test_a_failed_job_stops_nobody_else_and_says_what_to_do(tmp_path):
    dicom = tmp_path / "dicom"
    for name in ("anna", "bert"):
        write_series(dicom / name, chest_like, stack((-24, -24, 0), (0, 0, 2), 14))
    # One compressed slice whose frame is garbage: its length and markers are right, so only decoding shows it.
    broken = next(path for path in sorted((dicom / "bert").iterdir()) if _z(path) == 2)
    whole = broken.read_bytes()
    dataset = pydicom.dcmread(broken)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = encapsulate([b"\x02" + bytes(99)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(broken)
    workspace = Workspace(tmp_path / "work")
    failed = workspace.run(ok=False, dicom=dicom)
    assert {("patches", "anna"), ("pack_zarr", "anna"), ("index", "bert")} <= failed.jobs
    assert ("resample", "bert") not in failed.jobs
    end = "\n".join(failed.lines[-6:])
    assert "resample     bert" in end and broken.name in end and "cannot be decoded" in end
    assert "logs/resample/bert.log" in end and "run the same command again" in end and "exclude" in end
    assert "Traceback" not in failed.text
    assert "Traceback" in (workspace.folder / "logs" / "resample" / "bert.log").read_text()
    without = workspace.run(dicom=dicom, exclude="[bert]")
    assert without.patients <= {"anna"} and "report" in without.rules
    broken.write_bytes(whole)
    assert workspace.run(dicom=dicom).patients == {"bert"}


def _z(path):
    return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


@pytest.fixture(scope="module")
def idle(tmp_path_factory, cohort):
    """A workspace in which nothing ever runs, with odd things to point it at."""
    workspace = Workspace(tmp_path_factory.mktemp("idle"))
    folder = workspace.folder
    (folder / "empty").mkdir()
    (folder / "flat").mkdir()
    (folder / "flat" / "a.dcm").touch()
    (folder / "file").touch()
    (folder / "twice.tsv").write_text(f"patient\tdicom\nx\t{cohort / 'anna'}\nx\t{cohort / 'bert'}\n")
    (folder / "absent.tsv").write_text("patient\tdicom\nx\tno/such/folder\n")
    (folder / "column.tsv").write_text("patient\tfolder\nx\tempty\n")
    return workspace


@pytest.mark.parametrize(
    "config, words",
    [
        ({"sed": 1}, ["'sed'", "seed"]),
        ({"resample": "{spacin: 2}"}, ["resample.spacin", "resample.spacing"]),
        ({"interpolation": "cubic"}, ["resample.interpolation"]),
        ({"resample": "{interpolation: cubik}"}, ["cubik", "linear, cubic"]),
        ({"resample": "{spacing: wide}"}, ["resample.spacing", "wide", "a number"]),
        ({"resample": "{spacing: [1, 2]}"}, ["resample.spacing", "three"]),
        ({"resample": "{spacing: 0}"}, ["resample.spacing", "0.1"]),
        ({"seed": "many"}, ["seed", "whole number"]),
        ({"series": "7"}, ["series", "section"]),
        ({"pack": "{formats: [zar]}"}, ["zar", "zarr"]),
        ({"split": "{fractions: {train: 0.9}}"}, ["split.fractions", "1.2"]),
        ({"dicom": "nowhere"}, ["nowhere", "dicom"]),
        ({"dicom": "file"}, ["file", "folder"]),
        ({"dicom": "empty"}, ["empty", "no patient"]),
        ({"dicom": "flat"}, ["flat", "parent"]),
        ({"patients": "nowhere.tsv"}, ["nowhere.tsv"]),
        ({"patients": "twice.tsv"}, ["'x'", "twice", "lines 2 and 3"]),
        ({"patients": "absent.tsv"}, ["line 2", "no/such/folder"]),
        ({"patients": "column.tsv"}, ["no column 'dicom'"]),
        ({"exclude": "[demo-1-plane]"}, ["demo-1-plane", "demo-1-plain"]),
        ({"results": "file/results"}, ["file", "results"]),
        ({"dicom": ".", "results": "results"}, ["inside dicom"]),
        ({"annotations": "nowhere.csv", "dicom": "."}, ["nowhere.csv"]),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(idle, config, words):
    if config.get("annotations"):
        config = {**config, "dicom": "profiles"}
    outcome = idle.run(ok=False, **config)
    assert len(outcome.lines) == 1, outcome.text
    assert outcome.lines[0].startswith("lungmill: ")
    assert all(word in outcome.lines[0] for word in words), outcome.lines[0]
    assert not idle.results.exists()


def test_what_failed_after_a_change_of_settings_is_not_forgotten(tmp_path):
    """Nothing but the failed job was to be made: its results are gone, and the tables of the run before are there."""
    write_series(tmp_path / "dicom" / "anna", chest_like, stack((-24, -24, 0), (0, 0, 2), 14))
    workspace = Workspace(tmp_path / "work")
    script = workspace.folder / "scripts" / "resample.py"
    script.write_text(
        script.read_text().replace("import _job\n", "import os\n\nimport _job\n\nassert not os.path.exists('full')\n")
    )
    workspace.run(dicom=tmp_path / "dicom")
    (workspace.folder / "full").touch()
    workspace.run(ok=False, dicom=tmp_path / "dicom", resample="{spacing: 3}")
    assert not (workspace.results / "volumes" / "anna.npy").exists()
    (workspace.folder / "full").unlink()
    assert ("resample", "anna") in workspace.run(dicom=tmp_path / "dicom", resample="{spacing: 3}").jobs
    assert "Nothing to be done" in workspace.run(dicom=tmp_path / "dicom", resample="{spacing: 3}").text
