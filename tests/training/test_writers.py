"""Writers: what is in the file, read by the file's own library, against what was handed over."""

import bcolz
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers_files import KINDS, files_of, stored
from writers_process import BATCH, DTYPE, SHAPE, numbered, writer

from lungmill.errors import LungmillError
from lungmill.training.fitting import chunk_shape
from lungmill.training.writers import BcolzArrayWriter, BufferedArrayWriter, H5pyArrayWriter, ZarrArrayWriter


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# --- blocks ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["flush", "reopen", "one"]) | st.integers(0, 30), max_size=12))
def test_any_sequence_of_writes_flushes_and_reopenings(tmp_path_factory, kind, steps):
    path = tmp_path_factory.mktemp("sequence") / "file"
    output = writer(kind, path)
    count = 0
    for step in steps:
        if step == "flush":
            output.flush_buffer()
            assert (output.written, output.buffered) == (count, 0)
        elif step == "reopen":
            output.close()
            np.testing.assert_array_equal(stored(kind, path), numbered(0, count))
            output = writer(kind, path, append=True)
            assert output.written == count
        else:
            data = numbered(count, 1)[0] if step == "one" else numbered(count, step)
            output.buffered_write(data)
            count += len(data) if step != "one" else 1
        assert output.written + output.buffered == count and output.buffered < BATCH
        assert output.storage_array.shape == (output.written, *SHAPE)
    output.close()
    output.close()
    np.testing.assert_array_equal(stored(kind, path), numbered(0, count))


def test_whole_blocks_are_on_disk_as_they_fill(tmp_path):
    for kind in ("zarr", "bcolz"):  # an HDF5 file that is open for writing may not be opened beside
        output = writer(kind, tmp_path / kind)
        output.buffered_write(numbered(0, 5))
        assert len(stored(kind, tmp_path / kind)) == 0
        output.buffered_write(numbered(5, 4))
        np.testing.assert_array_equal(stored(kind, tmp_path / kind), numbered(0, 8))
        output.buffered_write(numbered(9, 30))
        np.testing.assert_array_equal(stored(kind, tmp_path / kind), numbered(0, 32))
        output.close()
    with pytest.raises(ValueError, match="closed"):
        output.buffered_write(numbered(0, 1))


def test_storage_arrays_of_every_kind(tmp_path):
    """What a user has opened: it grows, or has room already."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        grows = file.create_dataset("grows", (3, *SHAPE), DTYPE, maxshape=(None, *SHAPE))
        fixed = file.create_dataset("fixed", (50, *SHAPE), DTYPE)
        mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", DTYPE, (50, *SHAPE))
        carray = bcolz.carray(np.zeros((3, *SHAPE), DTYPE), rootdir=str(tmp_path / "b"))
        array = zarr.create_array(tmp_path / "z", shape=(3, *SHAPE), dtype=DTYPE, chunks=(4, 5, 4))
        for storage in (grows, carray, array):
            with BufferedArrayWriter(storage, SHAPE, DTYPE, BATCH, length=50) as output:
                output.buffered_write(numbered(3, 33))
            np.testing.assert_array_equal(storage[:3], np.zeros((3, *SHAPE)))
            np.testing.assert_array_equal(storage[3:], numbered(3, 33))
            assert storage.shape[0] == output.written == 36
        for storage in (fixed, mapped, np.zeros((50, *SHAPE), DTYPE)):
            with BufferedArrayWriter(storage, SHAPE, DTYPE, BATCH) as output:
                output.buffered_write(numbered(0, 33))
            assert output.written == 33
            np.testing.assert_array_equal(storage[:33], numbered(0, 33))
            assert not storage[33:].any()
        for storage in (grows, carray, array):  # 36 there, and 36 is the length: room made in advance
            with BufferedArrayWriter(storage, SHAPE, DTYPE, BATCH, length=36) as output:
                output.buffered_write(numbered(100, 20))
            np.testing.assert_array_equal(storage[:], np.concatenate([numbered(100, 20), numbered(20, 16)]))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[:33], numbered(0, 33))
    np.testing.assert_array_equal(stored("bcolz", tmp_path / "b")[:20], numbered(100, 20))


def test_scalars_and_large_elements(tmp_path):
    for number, (shape, batch) in enumerate([((), 1000), ((), 7), ((300, 200, 10), 2)]):
        data = np.random.default_rng(0).normal(size=(2500 if shape == () else 3, *shape)).astype(np.float32)
        paths = [tmp_path / f"{number}.{kind}" for kind in KINDS]
        with H5pyArrayWriter(shape, "f4", batch, paths[0], "g/a") as output:
            output.buffered_write(data)
        with ZarrArrayWriter(shape, "f4", batch, paths[1], "g/a") as output:
            for element in data:
                output.buffered_write(element)
        with BcolzArrayWriter(shape, "f4", batch, paths[2]) as output:
            output.buffered_write(data)
        for kind, path in zip(KINDS, paths, strict=True):
            np.testing.assert_array_equal(stored(kind, path, "g/a"), data)


@given(st.lists(st.integers(1, 400), max_size=3), st.sampled_from(["u1", "i2", "f8"]), st.integers(1, 5000))
def test_chunks_are_about_a_megabyte_and_blocks_end_with_one(shape, dtype, batch):
    chunk = chunk_shape(tuple(shape), np.dtype(dtype), batch)
    assert batch % chunk[0] == 0 or chunk[0] % batch == 0
    assert all(1 <= edge <= n for edge, n in zip(chunk[1:], shape, strict=True))
    size = np.prod(chunk) * np.dtype(dtype).itemsize
    assert size <= 2 * 2**20
    assert chunk[0] == 1 or chunk[1:] == tuple(shape)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_too_many_elements_lose_none(tmp_path, kind):
    with writer(kind, tmp_path / "file", length=20) as output:
        output.buffered_write(numbered(0, 15))
        with pytest.raises(LungmillError, match=r"10 elements are too many behind 15 of 20: none .* 5 would fit"):
            output.buffered_write(numbered(15, 10))
        output.buffered_write(numbered(15, 5))
        with pytest.raises(LungmillError, match="too many"):
            output.buffered_write(numbered(20, 1)[0])
    np.testing.assert_array_equal(stored(kind, tmp_path / "file"), numbered(0, 20))
    with pytest.raises(LungmillError, match="length=19 is less than the 20"):
        writer(kind, tmp_path / "file", length=19, append=True)
    with writer(kind, tmp_path / "file", length=21, append=True) as output:
        output.buffered_write(numbered(20, 1))
    np.testing.assert_array_equal(stored(kind, tmp_path / "file"), numbered(0, 21))
    with pytest.raises(LungmillError, match="length=6 is more than the 5 elements"):
        BufferedArrayWriter(np.zeros((5, 2)), (2,), float, 2, length=6)


def test_an_exception_inside_the_block_loses_none(tmp_path, kind):
    with pytest.raises(ZeroDivisionError), writer(kind, tmp_path / "file") as output:
        output.buffered_write(numbered(0, 11))
        1 / 0  # noqa: B018
    np.testing.assert_array_equal(stored(kind, tmp_path / "file"), numbered(0, 11))


def other_writer(kind, path, shape, dtype, **options):
    if kind == "bcolz":
        return BcolzArrayWriter(shape, dtype, 4, path, **options)
    return {"hdf5": H5pyArrayWriter, "zarr": ZarrArrayWriter}[kind](shape, dtype, 4, path, "a", **options)


def test_what_is_there_is_neither_replaced_nor_mixed(tmp_path, kind):
    path = tmp_path / "file"
    with writer(kind, path) as output:
        output.buffered_write(numbered(0, 11))
    before = files_of(path)
    with pytest.raises(LungmillError, match="is there already: append=True") as caught:
        writer(kind, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    for shape, dtype in [((5, 5), np.int32), ((5,), np.int32), (SHAPE, np.int64), (SHAPE, np.float32)]:
        with pytest.raises(LungmillError, match=r"int32\(5, 4\)") as caught:
            other_writer(kind, path, shape, dtype, append=True)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert files_of(path) == before
    (tmp_path / "text").write_text("something else")
    with pytest.raises(LungmillError, match="text"):
        writer(kind, tmp_path / "text", append=True)
    assert (tmp_path / "text").read_text() == "something else"


def test_other_arrays_are_left_alone(tmp_path):
    """Two writers at once on one HDF5 file and on one zarr group, beside an array of somebody else."""
    with h5py.File(tmp_path / "hdf5", "w") as file:
        file["mine"] = np.arange(5)
        file.create_group("group")
        file.create_dataset("fixed", (3, *SHAPE), DTYPE)
    zarr.open_group(tmp_path / "zarr", mode="w").create_array("mine", data=np.arange(5))
    zarr.open_group(tmp_path / "zarr").create_group("group")
    for kind, make in (("hdf5", H5pyArrayWriter), ("zarr", ZarrArrayWriter)):
        path = tmp_path / kind
        with make(SHAPE, DTYPE, BATCH, path, "a") as first:
            with make((), np.float64, 3, path, "labels/b") as second:
                for n in range(20):
                    first.buffered_write(numbered(n, 1))
                    second.buffered_write(n)
            first.buffered_write(numbered(20, 7))
        assert stored(kind, path, "mine").tolist() == [0, 1, 2, 3, 4]
        assert stored(kind, path, "labels/b").tolist() == list(range(20))
        np.testing.assert_array_equal(stored(kind, path), numbered(0, 27))
        with pytest.raises(LungmillError, match="group is a group"):
            make(SHAPE, DTYPE, BATCH, path, "group", append=True)
    with pytest.raises(LungmillError, match="cannot grow"):
        H5pyArrayWriter(SHAPE, DTYPE, BATCH, tmp_path / "hdf5", "fixed", append=True)


def test_values_change_by_rounding_of_floats_only():
    def written(data, dtype):
        storage = np.zeros(3, dtype)
        with BufferedArrayWriter(storage, (), dtype, 2) as output:
            output.buffered_write(data)
        return storage.tolist()

    assert written([1, 2, 3], np.uint8) == [1, 2, 3]
    assert written([True, False, True], np.int16) == [1, 0, 1]
    assert written(np.array([0.5, np.inf, -2.0]), np.float32) == [0.5, np.inf, -2.0]
    assert written([-1024, 3071, 2**24], np.float32) == [-1024, 3071, 2**24]
    for data, dtype in [
        ([0.5, 1, 2], np.int16),
        ([1.0, 2.0, 3.0], np.int16),
        ([1, 300, 2], np.uint8),
        ([1, -1, 2], np.uint8),
        ([40000, 0, 0], np.int16),
        ([2**24 + 1, 0, 0], np.float32),
        ([1e39, 0, 0], np.float32),
        ([1j, 0, 0], np.float64),
        (["a", "b", "c"], np.float32),
        ([0, 1, 1], bool),
    ]:
        with pytest.raises(LungmillError, match="does not fit into"):
            written(data, dtype)


def test_arguments_that_make_no_sense(tmp_path):
    output = BufferedArrayWriter(np.zeros((9, 5, 4)), (5, 4), float, 3)
    for shape in [(4, 5), (5,), (2, 2, 5, 4), (0,), ()]:
        with pytest.raises(LungmillError, match="neither one element"):
            output.buffered_write(np.zeros(shape))
    output.buffered_write(np.zeros((0, 5, 4)))
    assert output.written + output.buffered == 0
    for batch in (0, -1, 2.0, True, None):
        with pytest.raises(LungmillError, match="batch_size"):
            BufferedArrayWriter(np.zeros((9, 5, 4)), (5, 4), float, batch)
    with pytest.raises(LungmillError, match=r"float64\(5, 4\)"):
        BufferedArrayWriter(np.zeros((9, 5, 4)), (5, 4), np.float32, 3)
    for kind in KINDS:
        with pytest.raises(LungmillError, match="'dtype' follows"):
            writer(kind, tmp_path / kind, kwargs={"dtype": "i4"})
        assert not (tmp_path / kind).exists()
