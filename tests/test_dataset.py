import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungmill.dataset import PRODUCTS, check_fractions, make_dataset, split_of
from lungmill.errors import ConfigError, LungmillError
from lungmill.files import read_tsv

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


@pytest.mark.parametrize("fractions", [FRACTIONS, {"train": 0.5, "val": 0.0, "test": 0.5}, {"train": 0.8, "val": 0.2}])
def test_fractions_are_approached(fractions):
    counts = Counter(split_of(f"patient-{i}", fractions, seed=3) for i in range(10_000))
    for split in ("train", "val", "test"):
        share = fractions.get(split, 0)
        # Five standard deviations of a binomial share.
        assert abs(counts[split] / 10_000 - share) <= 5 * (share * (1 - share) / 10_000) ** 0.5


@given(patient=st.text(alphabet=string.printable, max_size=20), seed=st.integers(0, 2**40))
def test_a_split_of_everything_takes_everybody(patient, seed):
    for split in ("train", "val", "test"):
        assert split_of(patient, {split: 1}, seed) == split


@given(patient=st.text(max_size=20), seed=st.integers(0, 2**40))
def test_a_larger_train_fraction_never_takes_a_patient_out_of_train(patient, seed):
    if split_of(patient, {"train": 0.5, "val": 0.25, "test": 0.25}, seed) == "train":
        assert split_of(patient, {"train": 0.6, "val": 0.2, "test": 0.2}, seed) == "train"


def test_seed_and_name_change_the_draw():
    names = [f"p{i}" for i in range(200)]
    assert [split_of(n, FRACTIONS, 1) for n in names] != [split_of(n, FRACTIONS, 2) for n in names]
    assert len({split_of(n, FRACTIONS, 1) for n in names}) == 3


def test_adding_patients_moves_nobody(tmp_path):
    def splits(names):
        make_dataset(
            tmp_path / "dataset.tsv", [{"patient": n} for n in names], products=[], fractions=FRACTIONS, seed=0
        )
        return {row["patient"]: row["split"] for row in read_tsv(tmp_path / "dataset.tsv")}

    few = splits([f"p{i}" for i in range(0, 60, 3)])
    many = splits([f"p{i}" for i in reversed(range(60))])
    assert {name: many[name] for name in few} == few
    assert len(many) == 60


def test_the_table(tmp_path):
    for product in ("volume", "mask", "zarr"):
        for patient in ("b", "a"):
            file = tmp_path / PRODUCTS[product].format(patient)
            file.parent.mkdir(exist_ok=True)
            file.touch()
    make_dataset(
        tmp_path / "dataset.tsv",
        [{"patient": "b", "split": "test", "label": "1"}, {"patient": "a", "split": "", "label": ""}],
        products=["zarr", "mask", "volume"],
        fractions={"train": 1.0},
        seed=0,
    )
    assert (tmp_path / "dataset.tsv").read_text() == (
        "patient\tsplit\tlabel\tvolume\tmask\tzarr\n"
        "b\ttest\t1\tvolumes/b.npy\tmasks/b.npy\tcohort.zarr/b\n"
        "a\ttrain\t\tvolumes/a.npy\tmasks/a.npy\tcohort.zarr/a\n"
    )


def test_a_product_that_is_not_there(tmp_path):
    with pytest.raises(LungmillError, match=r"anna: .*anna\.npz is missing"):
        make_dataset(tmp_path / "dataset.tsv", [{"patient": "anna"}], products=["npz"], fractions=FRACTIONS, seed=0)
    assert not (tmp_path / "dataset.tsv").exists()


def test_a_split_nobody_knows(tmp_path):
    with pytest.raises(ConfigError, match="anna has split 'valid': write one of train, val, test"):
        make_dataset(
            tmp_path / "dataset.tsv",
            [{"patient": "anna", "split": "valid"}],
            products=[],
            fractions=FRACTIONS,
            seed=0,
        )


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ({"train": 0.7, "val": 0.2, "test": 0.2}, r"split\.fractions: the sum .* is 1\.1, not 1"),
        ({"train": 1.2, "val": -0.2}, r"split\.fractions\.train: 1\.2 is not a number from 0 to 1"),
        ({"train": 0.5, "val": -0.5, "test": 1}, r"split\.fractions\.val"),
        ({"train": float("nan")}, r"split\.fractions\.train"),
        ({"train": "0.7"}, r"split\.fractions\.train"),
        ({"train": 0.7, "valid": 0.3}, r"split\.fractions: valid is not one of"),
        ({}, r"split\.fractions: the sum"),
    ],
)
def test_wrong_fractions_name_the_key(fractions, words):
    with pytest.raises(ConfigError, match=words):
        check_fractions(fractions)
    with pytest.raises(ConfigError, match=words):
        split_of("p", fractions, 0)


def test_thirds_make_one():
    check_fractions({"train": 1 / 3, "val": 1 / 3, "test": 1 / 3})
