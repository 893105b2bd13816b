import numpy as np
import pytest
import zarr

from lungmill.cohort import UnknownPatientError, crop_center, open_cohort
from lungmill.dataset import make_dataset
from lungmill.errors import LungmillError
from lungmill.files import write_json, write_tsv
from lungmill.grid import Grid
from lungmill.packing import create_cohort_group, pack
from lungmill.zarr_reader import ShardReader

PATIENTS = [
    {"patient": "001", "split": "train", "label": "1"},
    {"patient": "anna", "split": "test", "label": ""},
    {"patient": "bert", "split": "train", "label": "0"},
]
SHAPE = (6, 7, 8)


def volume_of(i):
    return np.random.default_rng(i).integers(-1024, 3000, SHAPE).astype(np.int16)


def mask_of(i):
    return np.random.default_rng(100 + i).integers(0, 3, SHAPE).astype(np.uint8)


def grid_of(i):
    return Grid(SHAPE, (1.0, 0.5, 0.5), (float(i), 2.0, 3.0))


def make_results(folder, products):
    """A small tree of results as the workflow leaves it, with one rejected patient."""
    for name in ("volumes", "masks"):
        (folder / name).mkdir(parents=True)
    for i, row in enumerate(PATIENTS):
        patient = row["patient"]
        np.save(folder / "volumes" / f"{patient}.npy", volume_of(i))
        np.save(folder / "masks" / f"{patient}.npy", mask_of(i))
        write_json(folder / "volumes" / f"{patient}.json", {"patient": patient, **grid_of(i).as_dict()})
        write_json(folder / "index" / f"{patient}.json", {"status": "accepted", "patient": patient})
        if "zarr_zip" in products:
            zipped = folder / "zarr" / f"{patient}.zarr.zip"
            pack(zipped, volume_of(i), mask_of(i), grid_of(i), format="zarr_zip")
        if "zarr" in products:
            pack(folder / "cohort.zarr" / patient, volume_of(i), mask_of(i), grid_of(i), format="zarr")
    if "zarr" in products:
        create_cohort_group(folder / "cohort.zarr")
    write_json(folder / "index" / "carl.json", {"status": "rejected", "reason": "too_few_slices", "patient": "carl"})
    rows = [{"patient": r["patient"], "status": "accepted", "n_slices": 10 + i} for i, r in enumerate(PATIENTS)]
    rows.append({"patient": "carl", "status": "rejected", "reason": "too_few_slices", "n_slices": 3})
    write_tsv(folder / "cohort.tsv", ["patient", "status", "reason", "n_slices"], rows)
    make_dataset(folder / "dataset.tsv", PATIENTS, products=products, fractions={"train": 1.0}, seed=0)
    return folder


@pytest.fixture(
    params=[["volume", "mask", "zarr"], ["volume", "mask", "zarr_zip"], ["volume", "mask"]],
    ids=["zarr", "zarr_zip", "npy"],
)
def results(request, tmp_path):
    return make_results(tmp_path / "results", request.param)


def test_a_cohort_is_a_mapping_of_patients(results):
    cohort = open_cohort(results)
    assert len(cohort) == 3
    assert list(cohort) == list(cohort.keys()) == ["001", "anna", "bert"]
    assert [p.split for p in cohort.values()] == ["train", "test", "train"]
    assert [cohort[name].label for name in cohort] == ["1", None, "0"]
    assert "anna" in cohort
    assert "carl" not in cohort
    assert "2 train, 0 val, 1 test" in repr(cohort)


def test_arrays_and_geometry(results):
    cohort = open_cohort(str(results))
    for i, patient in enumerate(cohort.values()):
        np.testing.assert_array_equal(patient.image[:], volume_of(i))
        np.testing.assert_array_equal(patient.mask[:], mask_of(i))
        np.testing.assert_array_equal(patient.image[2, 1:3, ::2], volume_of(i)[2, 1:3, ::2])
        assert patient.grid == grid_of(i)
        assert patient.verdict["status"] == "accepted"
        assert patient.paths["volume"].samefile(results / "volumes" / f"{patient.name}.npy")


def test_zarr_where_there_is_zarr_and_memory_maps_elsewhere(tmp_path):
    both = open_cohort(make_results(tmp_path / "a", ["volume", "mask", "zarr"]))
    assert isinstance(both["anna"].image, ShardReader) and isinstance(both["anna"].zarr["image"], zarr.Array)
    plain = open_cohort(make_results(tmp_path / "b", ["volume", "mask"]))
    assert isinstance(plain["anna"].image, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        plain["anna"].image[0] = 0


@pytest.mark.parametrize("store", ["zarr", "zarr_zip"])
def test_stores_alone_are_enough(tmp_path, store):
    results = make_results(tmp_path / "a", [store])
    for folder in ("volumes", "masks"):
        for file in (results / folder).iterdir():
            file.unlink()
    patient = open_cohort(results)["bert"]
    np.testing.assert_array_equal(patient.image[:], volume_of(2))
    assert patient.grid == grid_of(2)


def test_nothing_is_read_before_it_is_asked_for(results):
    (results / "volumes" / "anna.npy").write_bytes(b"broken")
    patient = open_cohort(results)["anna"]
    assert patient.split == "test"


def test_select(results):
    cohort = open_cohort(results)
    assert list(cohort.select(split="train")) == ["001", "bert"]
    assert list(cohort.select(split=["val", "test"])) == ["anna"]
    assert list(cohort.select(split="train", label=1)) == ["001"]
    assert len(cohort.select(split="val")) == 0
    assert cohort.select(split="val").select(split="train").table.empty
    with pytest.raises(LungmillError, match="no column 'splitt': did you mean 'split'"):
        cohort.select(splitt="train")
    with pytest.raises(LungmillError, match="split: valid is not one of train, val, test"):
        cohort.select(split="valid")


def test_table_joins_dataset_and_cohort(results):
    table = open_cohort(results).table
    assert table["patient"].tolist() == ["001", "anna", "bert"]
    assert table["n_slices"].tolist() == [10, 11, 12]
    assert table["status"].eq("accepted").all()
    assert table["label"].tolist()[::2] == ["1", "0"]
    assert table["label"].isna().tolist() == [False, True, False]
    assert table["volume"].tolist()[1] == "volumes/anna.npy"
    assert open_cohort(results).select(split="test").table["patient"].tolist() == ["anna"]


def test_unknown_and_rejected_patients(results):
    cohort = open_cohort(results)
    with pytest.raises(LungmillError, match="no patient 'ana' among the 3 of this cohort: did you mean 'anna'"):
        cohort["ana"]
    with pytest.raises(KeyError):
        cohort["zzz"]
    with pytest.raises(UnknownPatientError, match=r"'carl' was rejected \(too_few_slices\)"):
        cohort["carl"]
    with pytest.raises(LungmillError, match="no patient"):
        cohort["../index/carl"]
    assert cohort.get("zzz") is None


def test_missing_results(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(LungmillError, match="resutls is not a folder: did you mean 'results'"):
        open_cohort(tmp_path / "resutls")
    with pytest.raises(LungmillError, match=r"dataset\.tsv does not exist: run snakemake"):
        open_cohort(tmp_path / "results")


def test_files_that_went_away(tmp_path):
    results = make_results(tmp_path / "a", ["volume", "mask"])
    (results / "volumes" / "anna.npy").unlink()
    (results / "volumes" / "anna.json").unlink()
    (results / "index" / "anna.json").unlink()
    patient = open_cohort(results)["anna"]
    for attribute in ("image", "grid", "verdict"):
        with pytest.raises(LungmillError, match=r"anna: .*run snakemake again"):
            getattr(patient, attribute)


def test_crop_center_of_a_patient(results):
    image = open_cohort(results)["anna"].image
    expected = np.pad(volume_of(1), 10, constant_values=-1024)[
        10 + 0 - 2 : 10 + 2, 10 + 6 - 2 : 10 + 8, 10 + 4 - 1 : 10 + 6
    ]
    np.testing.assert_array_equal(crop_center(image, (4, 4, 3), (0, 6, 4)), expected)
