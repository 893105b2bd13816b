from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from lungmill.identity import hash_uid, patient_id


@given(st.text(min_size=1, max_size=300))
def test_an_id_is_one_safe_path_component(name):
    made = patient_id(name)
    assert PurePosixPath(made).name == made
    assert made not in {"", ".", ".."}
    assert made.isascii() and not made.startswith(".")
    assert len(made.encode()) <= 140


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_different_names_get_different_ids(one, other):
    assert (patient_id(one) == patient_id(other)) == (one == other)


def test_plain_names_stay():
    assert patient_id("LIDC-IDRI-0001") == "LIDC-IDRI-0001"
    assert patient_id("zarr.json") != "zarr.json"


def test_uid_hash_ignores_padding():
    assert hash_uid("1.2.3 ") == hash_uid("1.2.3") != hash_uid("1.2.4")
