"""The workflow as a user meets it: what is computed, what is computed again, and what is not."""

import shutil
import sys

import h5py
import numpy as np
import pytest
from dicom_files import chest_like, stack, write_series
from stores import EVERY_FORMAT, FORMATS, assert_stores_equal_arrays
from workspace import Workspace

from lungmill.files import read_json, read_tsv

PER_PATIENT = {"index", "resample", "segment", "pack_zarr", "patches"}
TABLES = {"verdicts", "cohort", "dataset", "report"}


def add_patient(folder, count=14, seed=0, **attributes):
    noise = np.random.default_rng(seed)
    write_series(
        folder,
        lambda points: chest_like(points) + noise.normal(0, 10, points.shape[:-1]),
        stack((-24, -24, seed), (0, 0, 2), count),
        **attributes,
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two good patients and one with too few slices."""
    folder = tmp_path_factory.mktemp("dicom")
    add_patient(folder / "anna", seed=1)
    add_patient(folder / "bert", seed=2)
    add_patient(folder / "carl", count=4)
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, cohort):
    """A workspace in which the cohort has been run once."""
    made = Workspace(tmp_path_factory.mktemp("lungmill"))
    made.first = made.run(dicom=cohort)
    return made


def test_everything_is_made_once(workspace, cohort):
    accepted = {(rule, patient) for rule in PER_PATIENT for patient in ("anna", "bert")}
    assert workspace.first.jobs == accepted | {("index", "carl"), ("cohort_zarr", "")} | {(rule, "") for rule in TABLES}
    again = workspace.run(dicom=cohort)
    assert not again.jobs
    assert "Nothing to be done" in again.text


def test_tables_say_what_became_of_whom(workspace):
    rows = {row["patient"]: row for row in read_tsv(workspace.results / "cohort.tsv")}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "anna": ("accepted", ""),
        "bert": ("accepted", ""),
        "carl": ("rejected", "too_few_slices"),
    }
    assert rows["anna"]["mask_status"] == "no_lungs"
    dataset = read_tsv(workspace.results / "dataset.tsv")
    assert [row["patient"] for row in dataset] == ["anna", "bert"]
    for row in dataset:
        assert row["split"] in {"train", "val", "test"}
        assert all((workspace.results / row[key]).exists() for key in ("volume", "mask", "zarr", "patches"))
    page = (workspace.results / "report" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in rows)


def test_logs_and_benchmarks_stand_side_by_side(workspace):
    for rule in PER_PATIENT:
        assert (workspace.folder / "logs" / rule / "anna.log").is_file()
        assert (workspace.folder / "logs" / rule / "anna.tsv").is_file()


def test_one_more_format_computes_only_that_and_all_formats_hold_the_same(workspace, cohort):
    outcome = workspace.run(dicom=cohort, pack=EVERY_FORMAT)
    assert outcome.rules == {f"pack_{name}" for name in FORMATS[1:]} | {"cohort", "dataset", "report"}
    for patient in ("anna", "bert"):
        assert_stores_equal_arrays(workspace.results, patient)
    assert len(workspace.run(dicom=cohort).jobs) == 3  # back to zarr alone: the tables


def test_a_new_patient_is_the_only_one_computed(workspace, cohort):
    workspace.run(dicom=cohort)
    add_patient(cohort / "dora", seed=4)
    splits = {row["patient"]: row["split"] for row in read_tsv(workspace.results / "dataset.tsv")}
    outcome = workspace.run(dicom=cohort)
    assert outcome.patients == {"dora"}
    assert outcome.rules == PER_PATIENT | TABLES
    now = {row["patient"]: row["split"] for row in read_tsv(workspace.results / "dataset.tsv")}
    assert splits.items() <= now.items() and "dora" in now
    shutil.rmtree(cohort / "dora")
    assert workspace.run(dicom=cohort).rules == TABLES


def test_another_spacing_redoes_all_but_the_index(workspace, cohort):
    outcome = workspace.run(dicom=cohort, resample="{spacing: 2}")
    assert outcome.rules == (PER_PATIENT - {"index"}) | (TABLES - {"verdicts"})
    assert read_json(workspace.results / "volumes" / "anna.json")["spacing_mm"] == [2, 2, 2]
    # Swapping two values of a setting is a change too, though Snakemake compares parameters as a set.
    outcome = workspace.run(dicom=cohort, resample="{spacing: [2, 1, 1]}")
    assert "resample" in outcome.rules
    outcome = workspace.run(dicom=cohort, resample="{spacing: [1, 2, 1]}")
    assert "resample" in outcome.rules
    workspace.run(dicom=cohort)


def test_a_slice_overwritten_in_place_redoes_its_patient(workspace, cohort):
    before = workspace.digests()
    slice_file = cohort / "bert" / "IM0005"
    whole = slice_file.read_bytes()
    slice_file.write_bytes(whole[:-100] + bytes(100))  # the same header, other pixels
    outcome = workspace.run(dicom=cohort)
    assert outcome.patients == {"bert"} and {"index", "resample"} <= outcome.rules
    assert workspace.digests()["volumes/bert.npy"] != before["volumes/bert.npy"]
    slice_file.write_bytes(whole)
    workspace.run(dicom=cohort)
    assert workspace.digests() == before


def test_an_edited_library_module_redoes_what_uses_it(workspace, cohort):
    module = workspace.folder / "scripts" / "lungmill" / "segmentation.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(text + "\nEDITED = True\n", encoding="utf-8")
    outcome = workspace.run(dicom=cohort)
    assert outcome.rules >= {"segment", "pack_zarr", "patches"}
    assert not outcome.rules & {"index", "resample", "verdicts"}
    module.write_text(text + "\nEDITED = True  # with a comment\n", encoding="utf-8")
    assert "Nothing to be done" in workspace.run(dicom=cohort).text
    module.write_text(text, encoding="utf-8")
    workspace.run(dicom=cohort)


def test_a_dry_run_lists_jobs_and_does_none(workspace, cohort):
    outcome = workspace.run("-n", dicom=cohort, resample="{spacing: 3}")
    assert "would run  resample     anna" in outcome.text
    assert read_json(workspace.results / "volumes" / "anna.json")["spacing_mm"] == [1, 1, 1]


def test_snakemakes_own_output_is_there_for_the_asking(workspace, cohort):
    text = workspace.run("-n", "--quiet", "host", dicom=cohort, resample="{spacing: 3}").text
    assert "rule resample:" in text and "would run" not in text


def test_changed_annotations_redo_the_patches_of_whom_they_concern(workspace, cohort, tmp_path):
    table = tmp_path / "annotations.csv"
    head = "patient,coordX,coordY,coordZ,diameter_mm\n"
    table.write_text(head + "anna,0,0,8,6\nbert,1,1,9,5\n")
    assert workspace.run(dicom=cohort, annotations=table).patients == {"anna", "bert"}
    with h5py.File(workspace.results / "patches" / "anna.h5") as file:
        assert len(file["nodule"]) > 0
    table.write_text(head + "anna,0,0,8,6\nbert,1,1,10,5\n")
    outcome = workspace.run(dicom=cohort, annotations=table)
    assert outcome.patients == {"bert"} and "resample" not in outcome.rules
    workspace.run(dicom=cohort)


def test_names_that_are_no_file_names_stay_inside_results(tmp_path, cohort):
    workspace = Workspace(tmp_path / "work")
    table = tmp_path / "patients.tsv"
    names = ["../../outside", "Anna Müller", "a/b", "名前", "zarr.json"]
    table.write_text("patient\tdicom\tsplit\tlabel\n" + "".join(f"{n}\t{cohort / 'anna'}\tval\t1\n" for n in names))
    before = {path for path in tmp_path.rglob("*") if workspace.results not in path.parents}
    workspace.run(patients=table)
    rows = read_tsv(workspace.results / "cohort.tsv")
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert all(row["status"] == "accepted" for row in rows)
    assert {row["split"] for row in read_tsv(workspace.results / "dataset.tsv")} == {"val"}
    new = {path for path in tmp_path.rglob("*") if workspace.results not in path.parents} - before
    ours = {path.relative_to(workspace.folder).parts[0] for path in new}
    assert ours <= {"results", "logs", ".snakemake", "scripts", "rules"}  # the last two: Python's and numba's caches
    assert all(
        "__pycache__" in path.parts
        for path in new
        if path.relative_to(workspace.folder).parts[0] in ("scripts", "rules")
    )
    assert "Nothing to be done" in workspace.run(patients=table).text


def test_a_program_of_ones_own_makes_the_masks(tmp_path, cohort):
    program = tmp_path / "segment.py"
    program.write_text(
        "import sys, nibabel\n"
        "image = nibabel.load(sys.argv[1])\n"
        "labels = (image.get_fdata() > -500).astype('uint8') * 7\n"
        "print('half of it is', labels.shape[0] // 2)\n"
        "labels[: labels.shape[0] // 2] //= 2\n"
        "nibabel.save(nibabel.Nifti1Image(labels, image.affine), sys.argv[2])\n"
    )
    settings = tmp_path / "settings.yaml"
    command = f"{sys.executable} {program} {{volume}} {{mask}}"
    settings.write_text(f"segment: {{method: command, command: '{command}', labels: {{right: [3], left: [7]}}}}\n")
    workspace = Workspace(tmp_path / "work")
    outcome = workspace.run("--configfile", str(settings), dicom=cohort)
    assert ("segment", "anna") in outcome.jobs
    volume = np.load(workspace.results / "volumes" / "anna.npy")
    labels = np.where(np.arange(volume.shape[2]) < volume.shape[2] // 2, 1, 2) * (volume > -500)
    np.testing.assert_array_equal(np.load(workspace.results / "masks" / "anna.npy"), labels)
    assert read_json(workspace.results / "masks" / "anna.json")["method"] == "command"
    assert f"half of it is {volume.shape[2] // 2}" in (workspace.folder / "logs" / "segment" / "anna.log").read_text()
    with h5py.File(workspace.results / "patches" / "anna.h5") as patches:
        centres = tuple(patches["positions/lung"][:].T)
        assert len(centres[0]) == 32 and labels[centres].all()
    settings.write_text(settings.read_text().replace("{volume} {mask}", "{volume}"))
    refused = workspace.run("--configfile", str(settings), ok=False, dicom=cohort)
    assert "segment.command: {mask} is not in" in refused.text and "Traceback" not in refused.text
