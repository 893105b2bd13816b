"""Parts of a cohort joined: the same patients as in one run over all of them, through links and tables alone."""

import subprocess
import sys

import numpy as np
import pytest
import zarr
from test_cohort import PATIENTS, grid_of, make_results, volume_of
from workspace import ROOT

from lungmill.cohort import open_cohort
from lungmill.errors import LungmillError
from lungmill.files import read_tsv, write_tsv
from lungmill.joining import join_cohorts

STORES = ["volume", "mask", "zarr"]


def part_of(folder, patients):
    """Results of a run over some of the patients of `make_results`."""
    make_results(folder, STORES)
    for name in ("dataset.tsv", "cohort.tsv"):
        rows = read_tsv(folder / name)
        write_tsv(folder / name, list(rows[0]), [row for row in rows if row["patient"] in patients])
    return folder


@pytest.fixture
def parts(tmp_path):
    return [part_of(tmp_path / "runs" / "one", ["001", "anna"]), part_of(tmp_path / "runs" / "two", ["bert"])]


def test_a_joined_cohort_is_that_of_one_run(tmp_path, parts):
    assert join_cohorts(tmp_path / "all", parts) == 3
    whole = open_cohort(make_results(tmp_path / "whole", STORES))
    joined = open_cohort(tmp_path / "all")
    assert list(joined) == list(whole)
    for i, entry in enumerate(PATIENTS):
        patient = joined[entry["patient"]]
        np.testing.assert_array_equal(patient.image[:], volume_of(i))
        np.testing.assert_array_equal(np.load(patient.paths["volume"]), volume_of(i))
        assert patient.grid == grid_of(i)
        assert (patient.split, patient.verdict) == (whole[patient.name].split, whole[patient.name].verdict)
    assert joined.table.shape == whole.table.shape
    group = zarr.open_group(tmp_path / "all" / "cohort.zarr", mode="r")
    assert sorted(group) == sorted(entry["patient"] for entry in PATIENTS)


def test_joining_again_and_moving_everything_together_changes_nothing(tmp_path, parts):
    for _ in range(2):
        join_cohorts(tmp_path / "runs" / "all", parts)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    joined = open_cohort(tmp_path / "elsewhere" / "all")
    np.testing.assert_array_equal(joined["bert"].image[:], volume_of(2))


def test_what_cannot_be_joined_is_one_line(tmp_path, parts):
    with pytest.raises(LungmillError, match=r"bert is in .*two and in .*again"):
        join_cohorts(tmp_path / "all", [*parts, part_of(tmp_path / "again", ["bert"])])
    (parts[1] / "cohort.tsv").unlink()
    with pytest.raises(LungmillError, match=r"two has no cohort\.tsv: run snakemake there"):
        join_cohorts(tmp_path / "all", parts)


def test_by_one_command(tmp_path, parts):
    command = [sys.executable, "-m", "lungmill.joining", str(tmp_path / "all"), *map(str, parts)]
    here = {"capture_output": True, "text": True, "env": {"PYTHONPATH": str(ROOT / "scripts")}}
    done = subprocess.run(command, check=True, **here)
    assert "3 patients of 2 runs" in done.stdout
    refused = subprocess.run([*command, str(tmp_path)], check=False, **here)
    assert refused.returncode == 1
    assert refused.stderr.startswith("lungmill: ") and "Traceback" not in refused.stderr
