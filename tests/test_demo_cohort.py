"""The demo cohort through the whole workflow, against the anatomy it was made from."""

import csv
import json
import re
import warnings

import h5py
import numpy as np
import pytest
import zarr
from stores import FORMATS, assert_stores_equal_arrays
from workspace import ROOT

from lungmill import Grid, open_cohort
from lungmill.demo import PATIENTS, demo_anatomy
from lungmill.files import read_json, read_tsv

SEED = 2017
VERDICTS = {
    "demo-1-plain": ("accepted", "", ""),
    "demo-2-thin-localizer": ("accepted", "", ""),
    "demo-3-jpeg2000": ("accepted", "", ""),
    "demo-4-rle-padding": ("accepted", "", "padding"),
    "demo-5-tilt": ("accepted", "", "gantry_tilt"),
    "demo-6-prone-gap": ("accepted", "", "missing_slices"),
    "demo-7-truncated": ("rejected", "truncated_pixels", ""),
    "demo-8-few-slices": ("rejected", "too_few_slices", ""),
}
ACCEPTED = [patient for patient, (status, *_) in VERDICTS.items() if status == "accepted"]


@pytest.fixture(scope="module")
def results(demo_results):
    return demo_results


@pytest.fixture(scope="module")
def nodules(results):
    """True nodules by patient: (centre [z, y, x] mm, diameter mm)."""
    found = {patient: [] for patient in ACCEPTED}
    with (results / "demo" / "annotations.csv").open() as file:
        for row in csv.DictReader(file):
            centre = tuple(float(row[f"coord{axis}"]) for axis in "ZYX")
            found[row["patient"]].append((centre, float(row["diameter_mm"])))
    return found


def test_verdicts(results):
    rows = read_tsv(results / "cohort.tsv")
    assert {row["patient"]: (row["status"], row["reason"], row["warnings"]) for row in rows} == VERDICTS
    assert set(VERDICTS) == set(PATIENTS)


@pytest.mark.parametrize("patient", ACCEPTED)
def test_lungs_are_those_of_the_anatomy(results, patient):
    sidecar = read_json(results / "masks" / f"{patient}.json")
    assert sidecar["status"] == "ok"
    mask = np.load(results / "masks" / f"{patient}.npy")
    truth = demo_anatomy(patient, SEED).labels(Grid.from_dict(sidecar), of="lungs")
    for label, side in ((1, "right"), (2, "left")):
        found, true = mask == label, truth == label
        dice = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
        assert dice > 0.985, side
        volume = sidecar["volume_ml"][side]
        assert volume == pytest.approx(np.count_nonzero(true) / 1000, rel=0.03)


@pytest.mark.parametrize("patient", ACCEPTED)
def test_sampling_positions_are_where_the_anatomy_has_them(results, patient):
    """Against distances that the anatomy's formulas give, not against our mask."""
    opened = open_cohort(results)[patient]
    for name, voxels in opened.positions.items():
        assert voxels.shape == (4096, 3), name
        right, left, _ = demo_anatomy(patient, SEED).lung_distances(opened.grid.to_mm(voxels)).T
        depth = -np.minimum(right, left)
        if name == "background":
            assert np.mean(depth < 1.5) > 0.98
        else:
            assert np.mean(depth > -1.5) > 0.98
        if name == "pleura":
            assert np.mean(depth < 10.0 + 4.0) > 0.98


@pytest.mark.parametrize("patient", ACCEPTED)
def test_nodules_are_where_the_annotations_say(results, nodules, patient):
    volume = np.load(results / "volumes" / f"{patient}.npy", mmap_mode="r")
    mask = np.load(results / "masks" / f"{patient}.npy", mmap_mode="r")
    grid = Grid.from_dict(read_json(results / "volumes" / f"{patient}.json"))
    assert nodules[patient]
    for centre, diameter in nodules[patient]:
        index = np.rint(grid.to_index(centre)).astype(int)
        core = tuple(slice(i - 1, i + 2) for i in index)
        assert -300 < volume[core].mean() < 120, (centre, diameter)
        assert mask[tuple(index)] in (1, 2), (centre, diameter)


@pytest.mark.parametrize("patient", ACCEPTED)
def test_patches_are_cut_where_they_say(results, nodules, patient):
    volume = np.load(results / "volumes" / f"{patient}.npy", mmap_mode="r")
    grid = Grid.from_dict(read_json(results / "volumes" / f"{patient}.json"))
    padded = np.pad(volume, 16, constant_values=-1024)
    with h5py.File(results / "patches" / f"{patient}.h5") as file:
        assert set(file) == {"lung", "background", "nodule", "positions"}
        for name in ("lung", "background", "nodule"):
            positions = file["positions"][name][:]
            assert file[name].shape == (32, 32, 32, 32) and len(positions) == 32
            for patch, (z, y, x) in zip(file[name], positions, strict=True):
                np.testing.assert_array_equal(patch, padded[z : z + 32, y : y + 32, x : x + 32])
        centres = grid.to_mm(file["positions"]["nodule"][:])
    true = np.array([centre for centre, _ in nodules[patient]])
    distance = np.abs(centres[:, None] - true[None]).max(axis=2)
    assert (distance.min(axis=1) < 16).all()
    assert set(distance.argmin(axis=1)) == set(range(len(true)))


@pytest.mark.parametrize("patient", ACCEPTED)
def test_all_stores_hold_the_same_arrays(results, patient):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(zarr.open_group(results / "cohort.zarr", mode="r")) == ACCEPTED
    assert_stores_equal_arrays(results, patient)


def test_the_cohort_opens_for_training(results):
    cohort = open_cohort(results)
    assert sorted(cohort) == ACCEPTED
    for part in ("train", "val", "test"):
        assert len(cohort.select(split=part)) >= 1, part
    first = cohort[ACCEPTED[0]]
    assert first.image.shape == first.grid.shape == first.mask.shape


def test_stores_open_as_the_readme_says(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    code = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    lines = [line for line in code.splitlines(keepends=True) if "bcolz" in FORMATS or not line.startswith("bcolz")]
    modules = {"zarr": zarr, "h5py": h5py, "numpy": np}
    if "bcolz" in FORMATS:
        modules["bcolz"] = pytest.importorskip("bcolz")
    exec("".join(lines), modules)


def test_the_report_knows_what_every_stage_took(results):
    page = (results / "report" / "index.html").read_text(encoding="utf-8")
    (timings,) = re.findall(r'<script type="application/json" id="timings">(.*)</script>', page)
    measured = json.loads(timings)
    assert set(measured["patients"]) == set(PATIENTS)
    for patient in ACCEPTED:
        stages = {measured["stages"][stage]: values for stage, *values in measured["patients"][patient]}
        assert len(stages) == 5 + len(FORMATS)  # demo, index, resample, segment, patches and stores
        for seconds, cpu_seconds, megabytes in stages.values():
            assert 0 < seconds < 300 and 0 < cpu_seconds < 300 and 30 < megabytes < 4000


def test_few_files_per_patient(results):
    for patient in ACCEPTED:
        files = [path for path in (results / "cohort.zarr" / patient).rglob("*") if path.is_file()]
        assert len(files) <= 5
