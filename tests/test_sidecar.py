"""Arrays written plane by plane against what NumPy writes of them."""

import numpy as np
import pytest

from lungmill.files import read_json
from lungmill.sidecar import write_array


def written(folder, fill, shape=(5, 4, 3), dtype="int16"):
    def make(create):
        fill(create(shape, dtype))
        return {"status": "ok"}

    write_array(folder / "a.npy", folder / "a.json", "one", make)
    return (folder / "a.npy").read_bytes()


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_planes_in_any_order_are_the_file_that_numpy_writes(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(dtype)

    def in_pieces(file):
        file[3:5] = array[3:5]
        file[0:1] = array[0:1]
        file[1:3] = array.transpose(0, 2, 1)[1:3].transpose(0, 2, 1)  # not contiguous

    def at_once(file):
        file[:] = array

    np.save(tmp_path / "expected.npy", array)
    expected = (tmp_path / "expected.npy").read_bytes()
    assert written(tmp_path, in_pieces, dtype=dtype) == expected
    assert written(tmp_path, at_once, dtype=dtype) == expected
    described = read_json(tmp_path / "a.json")
    assert described["patient"] == "one" and described["status"] == "ok"


@pytest.mark.parametrize("planes", [slice(0, 2), slice(4, 6), slice(0, 5, 2)])
def test_planes_that_do_not_fit_leave_no_file(tmp_path, planes):
    def fill(file):
        file[planes] = np.zeros((3, 4, 3), np.int16)

    with pytest.raises(ValueError, match="do not fit"):
        written(tmp_path, fill)
    assert list(tmp_path.iterdir()) == []
