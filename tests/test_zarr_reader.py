import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from stores import chest

from lungmill.errors import LungmillError
from lungmill.packing import pack
from lungmill.zarr_reader import open_array
from lungmill.zarr_store import CODECS

KEYS = [
    np.s_[:],
    np.s_[...],
    np.s_[3],
    np.s_[-1, 5],
    np.s_[2, 3, 4],
    np.s_[..., 7],
    np.s_[5:69, 10:74, 1:65],
    np.s_[:, -20:, ::7],
    np.s_[60:10:-3, 5, 100:200],
    np.s_[10:10],
    np.s_[:0, 3],
    np.s_[np.int64(4), 2:3],
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    image, mask, grid = chest((70, 90, 130))
    for codec in CODECS:
        pack(folder / codec, image, mask, grid, format="zarr", codec=codec)
    return folder, {"image": image, "mask": mask}


@pytest.mark.parametrize("name", ["image", "mask"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_is_numpys(packed, codec, name, key):
    folder, arrays = packed
    got = open_array(folder / codec, name)[key]
    assert got.dtype == arrays[name].dtype
    np.testing.assert_array_equal(got, arrays[name][key])


def test_it_looks_like_an_array(packed):
    folder, arrays = packed
    reader = open_array(folder / "pcodec", "image")
    assert (reader.shape, reader.ndim, len(reader)) == ((70, 90, 130), 3, 70)
    assert reader.chunks == (35, 45, 44)
    np.testing.assert_array_equal(np.asarray(reader), arrays["image"])
    for key in (70, (0, 0, 0, 0), (0, -91)):
        with pytest.raises(IndexError):
            reader[key]


def test_threads_and_copies_read_the_same(packed):
    folder, arrays = packed
    reader = open_array(folder / "pcodec", "image")
    assert reader[0].shape == (90, 130)
    copy = pickle.loads(pickle.dumps(reader))
    with ThreadPoolExecutor(4) as pool:
        planes = list(pool.map(lambda z: (reader, copy)[z % 2][z], range(70), timeout=60))
    np.testing.assert_array_equal(planes, arrays["image"])


def test_what_lungmill_did_not_write_is_left_to_zarr(tmp_path):
    group = zarr.open_group(tmp_path / "p", mode="w")
    group.create_array("image", shape=(4, 4, 4), dtype="i2", chunks=(2, 2, 2))
    assert open_array(tmp_path / "p", "image") is None


@pytest.mark.parametrize("damage", ["index", "chunk", "short"])
def test_damage_is_one_line(tmp_path, damage):
    image, mask, grid = chest((20, 20, 20))
    pack(tmp_path / "p", image, mask, grid, format="zarr")
    shard = tmp_path / "p" / "image" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    if damage == "index":
        content[-8] ^= 1
    elif damage == "chunk":
        content[:64] = bytes(64)
    shard.write_bytes(content[:-30] if damage == "short" else content)
    with pytest.raises(LungmillError, match="is damaged"):
        open_array(tmp_path / "p", "image")[:]
