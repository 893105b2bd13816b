import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungmill.errors import LungmillError
from lungmill.files import list_files, read_json, read_tsv, replacing, write_json, write_tsv

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_json_is_what_json_reads(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(LungmillError, match=r"broken\.json"):
        read_json(path)


def test_failure_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "data.npy"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.npy"]


def test_a_folder_replaces_a_folder_and_leftovers_of_a_kill(tmp_path):
    target = tmp_path / "store"
    (target / "old").mkdir(parents=True)
    (tmp_path / ".store.partial" / "left").mkdir(parents=True)
    with replacing(target) as temporary:
        assert not temporary.exists()
        temporary.mkdir()
        np.save(temporary / "new.npy", np.arange(3))
    assert [entry.name for entry in target.iterdir()] == ["new.npy"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_tsv_round_trip(tmp_path):
    path = tmp_path / "table.tsv"
    write_tsv(path, ["a", "b", "c"], [{"a": 'x "y"\tz', "b": None}, {"a": 1, "b": [1, 2], "c": "ü"}])
    assert read_tsv(path) == [{"a": 'x "y"\tz', "b": "", "c": ""}, {"a": "1", "b": "1,2", "c": "ü"}]


def test_list_files_survives_loops_and_dead_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "2").touch()
    (tmp_path / "a" / ".hidden").touch()
    (tmp_path / "1").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    assert list(list_files(tmp_path)) == ["1", "a/b/2", "dead"]
    with pytest.raises(FileNotFoundError):
        list(list_files(tmp_path / "absent"))
