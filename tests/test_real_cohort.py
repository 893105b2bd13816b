"""Real scans through the whole workflow, against SimpleITK, scipy and what radiologists drew."""

import csv

import numpy as np
import pytest
from references import scipy_linear, simpleitk_linear
from stores import EVERY_FORMAT, assert_stores_equal_arrays
from workspace import Workspace

from lungmill import Grid
from lungmill.files import read_json, read_tsv

PATIENTS = ("lidc-0001", "ct64", "tilt-ge")


@pytest.fixture(scope="module")
def results(tmp_path_factory, real_data):
    workspace = Workspace(tmp_path_factory.mktemp("real"))
    table = workspace.folder / "patients.tsv"
    table.write_text("patient\tdicom\n" + "".join(f"{name}\t{real_data / name}\n" for name in PATIENTS))
    workspace.run(patients=table, pack=EVERY_FORMAT)
    return workspace.results


def load(results, patient, kind="volumes"):
    array = np.load(results / kind / f"{patient}.npy", mmap_mode="r")
    return array, Grid.from_dict(read_json(results / kind / f"{patient}.json"))


def test_all_are_accepted_and_say_what_is_odd(results):
    rows = {row["patient"]: row for row in read_tsv(results / "cohort.tsv")}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(PATIENTS, "accepted")
    assert set(rows["tilt-ge"]["warnings"].split(",")) >= {"gantry_tilt", "irregular_spacing"}
    assert rows["tilt-ge"]["mask_status"] == "no_lungs"  # a head
    assert rows["lidc-0001"]["mask_status"] == rows["ct64"]["mask_status"] == "ok"


def test_chest_agrees_with_simpleitk(results, real_data):
    volume, grid = load(results, "lidc-0001")
    difference = np.abs(volume - simpleitk_linear(real_data / "lidc-0001", grid))
    inside = volume > -1024
    assert (difference[inside] <= 1).mean() > 0.999
    assert (difference[~inside] <= 1).mean() > 0.999


def test_tilted_uneven_head_agrees_with_scipy(results, real_data):
    volume, grid = load(results, "tilt-ge")
    difference = np.abs(volume - scipy_linear(real_data / "tilt-ge", grid))
    assert (difference <= 1).mean() > 0.999
    assert (volume > 300).sum() > 100_000  # a skull is there to be compared
    assert not np.load(results / "masks" / "tilt-ge.npy").any()


def test_the_nodule_is_where_the_radiologists_saw_it(results, real_data):
    volume, grid = load(results, "lidc-0001")
    mask, _ = load(results, "lidc-0001", "masks")
    with (real_data / "lidc-0001" / "nodules.csv").open() as file:
        outlined = [row for row in csv.DictReader(file) if float(row["diam_eq_mm"]) > 10]
    assert len(outlined) >= 3
    for row in outlined:
        centre = [float(row[key]) for key in ("cz_mm", "world_y_mm", "world_x_mm")]
        z, y, x = np.rint(grid.to_index(centre)).astype(int)
        assert volume[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].mean() > -100  # soft tissue, not lung
        assert mask[z, y, x] == 2


def test_what_readers_outlined_is_inside_the_mask(results, real_data):
    mask, grid = load(results, "lidc-0001", "masks")
    drawn = np.load(real_data / "lidc-0001" / "LIDC-IDRI-0001_nodules_readers_bitmask.npz")
    labels, pixel = drawn["labels"], float(drawn["pixel_spacing"])
    k, row, column = np.nonzero(labels)
    origin = read_json(results / "index" / "lidc-0001.json")["slices"][0]["position"]
    points = np.stack([drawn["z_mm"][k], origin[1] + row * pixel, origin[0] + column * pixel], axis=1)
    index = np.rint(grid.to_index(points)).astype(int)
    inside = mask[tuple(index.T)] > 0
    readers = np.bitwise_count(labels[k, row, column])
    assert inside.mean() > 0.995
    assert inside[readers >= 3].all()


@pytest.mark.parametrize("patient", PATIENTS)
def test_all_stores_hold_the_same_arrays(results, patient):
    assert_stores_equal_arrays(results, patient)
