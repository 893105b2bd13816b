import json
import time
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stores import chest, files_of
from zarr.storage import ZipStore

from lungmill.errors import ConfigError, LungmillError
from lungmill.grid import Grid
from lungmill.packing import FORMATS as ALL_FORMATS
from lungmill.packing import SUFFIX, pack
from lungmill.version import __version__

# zarr says of every array with a codec of numcodecs that Zarr's specification has no such codec.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")

NO_BCOLZ = pytest.mark.skipif(find_spec("bcolz") is None, reason="bcolz-zipline is not installed")
BCOLZ = pytest.param("bcolz", marks=NO_BCOLZ)
INSTALLED = [name for name in ALL_FORMATS if name != "bcolz" or find_spec("bcolz")]
FORMATS = [BCOLZ if name == "bcolz" else name for name in ALL_FORMATS]


def open_zarr(path, format):
    return zarr.open_group(ZipStore(path, mode="r") if format == "zarr_zip" else path, mode="r")


def read(path, format, name):
    """The array by the stock reader of its format, without lungmill."""
    if format.startswith("zarr"):
        return open_zarr(path, format)[name][:]
    if format == "bcolz":
        import bcolz

        return bcolz.open(str(path), mode="r")[name][:]
    if format == "hdf5":
        with h5py.File(path) as file:
            return file[name][:]
    with np.load(path) as archive:
        return archive[name]


def attributes(path, format):
    if format.startswith("zarr"):
        return dict(open_zarr(path, format).attrs)
    if format == "bcolz":
        import bcolz

        return dict(bcolz.open(str(path), mode="r").attrs)
    if format == "hdf5":
        with h5py.File(path) as file:
            return dict(file.attrs)
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files if name not in ("image", "mask")}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(70, 90, 130), (3, 5, 7), (1, 200, 64), (65, 64, 1)])
def test_stock_readers_get_the_arrays_back(tmp_path, format, shape):
    image, mask, grid = chest(shape)
    path = tmp_path / "stores" / f"p{SUFFIX[format]}"
    pack(path, image, mask, grid, format=format)
    for name, array in (("image", image), ("mask", mask)):
        got = read(path, format, name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("format", FORMATS)
def test_extremes_of_int16_and_uint8_survive(tmp_path, format):
    image = np.resize(np.array([-32768, 32767, -1, 0, -1024, 3071], np.int16), (9, 10, 11))
    mask = np.resize(np.arange(256, dtype=np.uint8), (9, 10, 11))
    path = tmp_path / f"p{SUFFIX[format]}"
    pack(path, image, mask, Grid(image.shape, (1, 1, 1), (0, 0, 0)), format=format)
    np.testing.assert_array_equal(read(path, format, "image"), image)
    np.testing.assert_array_equal(read(path, format, "mask"), mask)


@pytest.mark.parametrize("format", ["hdf5", BCOLZ])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_and_chunk_round_trips(tmp_path_factory, format, data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=12))
    chunk = data.draw(st.one_of(st.integers(1, 16), st.tuples(*[st.integers(1, 16)] * 3)))
    image = data.draw(hnp.arrays(np.int16, shape, elements=st.sampled_from([-1024, 0, 32767, -32768])))
    mask = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2)))
    path = tmp_path_factory.mktemp("stores") / "p"
    pack(path, image, mask, Grid(shape, (1, 1, 1), (0, 0, 0)), format=format, chunk=chunk)
    np.testing.assert_array_equal(read(path, format, "image"), image)
    np.testing.assert_array_equal(read(path, format, "mask"), mask)


@NO_BCOLZ
def test_bytes_of_bcolz_do_not_depend_on_threads(tmp_path):
    """Blosc with several threads writes the blocks of a large chunk in whatever order they get ready."""
    image, mask, grid = chest((32, 400, 400))
    contents = set()
    for attempt in range(4):
        path = tmp_path / str(attempt)
        pack(path, image, mask, grid, format="bcolz", chunk=(32, 400, 400), threads=4)
        contents.add(tuple(sorted(files_of(path).items())))
    assert len(contents) == 1


def test_the_same_input_gives_the_same_bytes(tmp_path):
    image, mask, grid = chest((70, 80, 90))
    for format in INSTALLED:
        pack(tmp_path / "a" / format, image, mask, grid, format=format, metadata={"patient": "p"})
    time.sleep(2.1)  # a zip counts time in steps of 2 s
    for format in INSTALLED:
        pack(tmp_path / "b" / format, image, mask, grid, format=format, metadata={"patient": "p"}, threads=4)
        assert files_of(tmp_path / "a" / format) == files_of(tmp_path / "b" / format)
        # Over an existing store.
        pack(tmp_path / "b" / format, image, mask, grid, format=format, metadata={"patient": "p"}, threads=2)
        assert files_of(tmp_path / "a" / format) == files_of(tmp_path / "b" / format)


@pytest.mark.parametrize("format", FORMATS)
def test_memory_mapped_files_are_read(tmp_path, format):
    image, mask, grid = chest((40, 50, 60))
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "mask.npy", mask)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("image", "mask")]
    pack(tmp_path / "p", *mapped, grid, format=format)
    path = tmp_path / "p"
    np.testing.assert_array_equal(read(path, format, "image"), image)


@pytest.mark.parametrize("format", FORMATS)
def test_geometry_and_metadata_are_attributes(tmp_path, format):
    image, mask, grid = chest((8, 9, 10))
    metadata = {"patient": "p 1", "volume_ml": {"right": 2.5}, "source_shape": [3, 4, 5], "n": 7}
    pack(tmp_path / "p", image, mask, grid, format=format, metadata=metadata)
    got = attributes(tmp_path / "p", format)
    np.testing.assert_array_equal(got["spacing_mm"], [1.25, 0.7, 0.7])
    np.testing.assert_array_equal(got["origin_mm"], [-300.5, -180.25, -171.0])
    np.testing.assert_array_equal(got["source_shape"], [3, 4, 5])
    assert str(got["lungmill"]) == __version__
    assert str(got["patient"]) == "p 1"
    assert int(got["n"]) == 7
    nested = got["volume_ml"]
    assert (nested if isinstance(nested, dict) else json.loads(str(nested))) == {"right": 2.5}


@NO_BCOLZ
def test_bcolz_threads_are_put_back(tmp_path):
    import bcolz

    image, mask, grid = chest((8, 9, 10))
    before = bcolz.set_nthreads(3)
    try:
        pack(tmp_path / "p", image, mask, grid, format="bcolz")
        assert bcolz.set_nthreads(3) == 3
    finally:
        bcolz.set_nthreads(before)


@pytest.mark.parametrize("format", FORMATS)
def test_compression_compresses(tmp_path, format):
    image, mask, grid = chest((64, 64, 64))
    pack(tmp_path / "p", image, mask, grid, format=format)
    assert sum(map(len, files_of(tmp_path / "p").values())) < 0.6 * (image.nbytes + mask.nbytes)


def test_failure_leaves_the_old_store_and_no_temporary(tmp_path):
    image, mask, grid = chest((8, 9, 10))
    pack(tmp_path / "p.h5", image, mask, grid, format="hdf5")
    before = files_of(tmp_path / "p.h5")
    with pytest.raises(ValueError):
        pack(tmp_path / "p.h5", image, mask, grid, format="hdf5", level=99)
    assert files_of(tmp_path / "p.h5") == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.h5"]


def test_wrong_input_is_one_line(tmp_path):
    image, mask, grid = chest((8, 9, 10))
    with pytest.raises(ConfigError, match=r"pack\.formats: 'tiff' is not one of zarr, zarr_zip, bcolz, hdf5, npz"):
        pack(tmp_path / "p", image, mask, grid, format="tiff")
    with pytest.raises(ConfigError, match=r"pack\.codec: 'zip' is not one of pcodec, blosc, planes"):
        pack(tmp_path / "p", image, mask, grid, format="zarr", codec="zip")
    with pytest.raises(LungmillError, match="the image is float32"):
        pack(tmp_path / "p", image.astype(np.float32), mask, grid, format="zarr")
    with pytest.raises(LungmillError, match="the mask is uint8"):
        pack(tmp_path / "p", image, mask[:-1], grid, format="zarr")
    assert not (tmp_path / "p").exists()
