import math
import subprocess
import sys
import warnings

import numcodecs.blosc
import numcodecs.pcodec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stores import chest, files_of

from lungmill.grid import Grid
from lungmill.packing import CHUNK, ZARR_FILES, create_cohort_group, pack
from lungmill.plane_codec import PlaneCodec, register
from lungmill.zarr_store import CODECS

# zarr says of every array with a codec of numcodecs that Zarr's specification has no such codec.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")

SHARD = "c/0/0/0"


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register()


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_and_chunk_round_trips(tmp_path_factory, codec, data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=12))
    chunk = data.draw(st.one_of(st.none(), st.integers(1, 16), st.tuples(*[st.integers(1, 16)] * 3)))
    elements = data.draw(st.sampled_from([st.sampled_from([-1024, 0, 32767, -32768]), st.integers(-32768, 32767)]))
    image = data.draw(hnp.arrays(np.int16, shape, elements=elements))
    mask = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 255)))
    path = tmp_path_factory.mktemp("stores") / "p"
    pack(path, image, mask, Grid(shape, (1, 1, 1), (0, 0, 0)), format="zarr", chunk=chunk, codec=codec)
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["image"][:], image)
    np.testing.assert_array_equal(group["mask"][:], mask)


@pytest.mark.parametrize("codec", ["pcodec", "blosc"])
def test_a_process_without_lungmill_opens_the_store(tmp_path, codec):
    image, mask, grid = chest((70, 80, 90))
    pack(tmp_path / "p", image, mask, grid, format="zarr", codec=codec)
    code = (
        "import sys, numpy, zarr; group = zarr.open_group(sys.argv[1], mode='r')\n"
        "numpy.savez(sys.argv[2], image=group['image'][:], mask=group['mask'][:], part=group['image'][3:68, 5, ::7])\n"
        "assert not any(name.startswith('lungmill') for name in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code, tmp_path / "p", tmp_path / "got.npz"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path)
    with np.load(tmp_path / "got.npz") as got:
        np.testing.assert_array_equal(got["image"], image)
        np.testing.assert_array_equal(got["mask"], mask)
        np.testing.assert_array_equal(got["part"], image[3:68, 5, ::7])


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_do_not_depend_on_threads(tmp_path, codec, monkeypatch):
    """Blosc with several threads writes the blocks of a large chunk in whatever order they get ready."""
    monkeypatch.setattr(numcodecs.blosc, "use_threads", None)  # its default, which importing zarr changes
    image, mask, grid = chest((32, 400, 400))
    contents = set()
    for threads in (1, 4, 4, 2):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        pack(path, image, mask, grid, format="zarr", codec=codec, chunk=(16, 400, 400), threads=threads)
        contents.add(tuple(sorted(files_of(path).items())))
    assert len(contents) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts differently elsewhere")
@pytest.mark.parametrize("codec", CODECS)
def test_no_more_than_a_layer_of_chunks_is_in_memory(tmp_path, codec):
    """A volume of 84 MB is packed from its file with 40 MB on top of what the imports take."""
    shape = (160, 512, 512)
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.int16, shape)
    rng = np.random.default_rng(0)
    image[:] = rng.integers(-60, 60, shape[1:], np.int16)  # every plane the same
    image.flush()
    np.lib.format.open_memmap(tmp_path / "mask.npy", "w+", np.uint8, shape).flush()
    code = """
import resource, sys
import numpy as np
from lungmill.grid import Grid
from lungmill.packing import pack
small = np.zeros((9, 9, 9), np.int16)
pack(sys.argv[1] + "/small", small, small.astype(np.uint8), Grid((9, 9, 9), (1, 1, 1), (0, 0, 0)), format="zarr",
     codec=sys.argv[2], threads=2)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 40_000_000, resource.RLIM_INFINITY))
image, mask = (np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in ("image", "mask"))
pack(sys.argv[1] + "/p", image, mask, Grid(image.shape, (1, 1, 1), (0, 0, 0)), format="zarr", codec=sys.argv[2],
     threads=2)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path, codec], check=True, timeout=120, env=_environment())
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "p", mode="r")["image"][100:102], image[100:102])


def _environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "scripts")}


def test_a_handful_of_files_and_parts_read_alone(tmp_path):
    image, mask, grid = chest((150, 160, 170))
    pack(tmp_path / "p", image, mask, grid, format="zarr", chunk=32)
    assert sorted(files_of(tmp_path / "p")) == sorted(ZARR_FILES)
    stored = zarr.open_group(tmp_path / "p", mode="r")["image"]
    assert stored.chunks == (32, 32, 32)
    assert stored.shards == (160, 160, 192)
    np.testing.assert_array_equal(stored[140:, 31:33, 5::7], image[140:, 31:33, 5::7])
    assert stored[149, 0, 169] == image[149, 0, 169]


def test_chunks_divide_the_volume_evenly(tmp_path):
    image, mask, grid = chest((65, 128, 9))
    pack(tmp_path / "p", image, mask, grid, format="zarr")
    group = zarr.open_group(tmp_path / "p", mode="r")
    assert group["image"].chunks == (33, 64, 9)
    assert group["mask"].chunks == (64, 64, 9)
    for n, edge, longest in zip(image.shape, group["image"].chunks, CHUNK["zarr"], strict=True):
        assert math.ceil(n / edge) == math.ceil(n / longest)
        assert math.ceil(n / edge) * edge - n < math.ceil(n / edge)


def test_chunks_of_nothing_but_air_take_no_space(tmp_path):
    image, mask = np.full((130, 130, 130), -1024, np.int16), np.zeros((130, 130, 130), np.uint8)
    pack(tmp_path / "p", image, mask, Grid(image.shape, (1, 1, 1), (0, 0, 0)), format="zarr")
    for name in ("image", "mask"):
        assert (tmp_path / "p" / name / SHARD).stat().st_size == 27 * 16 + 4  # the index and its checksum
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "p", mode="r")["image"][:], image)


def written_by_zarr(path, array, fill, codec, level):
    """An array with the chunks and codecs that zarr-python makes of its own arguments."""
    if codec == "pcodec":
        pipeline = {
            "filters": [zarr.codecs.TransposeCodec(order=(1, 2, 0))],
            "serializer": zarr.codecs.PCodec(level=level, mode_spec="classic", delta_encoding_order=2),
            "compressors": None,
        }
    elif codec == "planes":
        pipeline = {"serializer": PlaneCodec(level=level), "compressors": None}
    else:
        blosc = zarr.codecs.BloscCodec(cname="zstd", clevel=level, shuffle="bitshuffle", typesize=array.itemsize)
        pipeline = {"compressors": [blosc]}
    return zarr.create_array(
        path,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(32, 40, 90),
        shards=(64, 80, 90),
        fill_value=fill,
        dimension_names=("z", "y", "x"),
        **pipeline,
    )


@pytest.mark.parametrize("codec", CODECS)
def test_metadata_is_what_zarr_python_writes(tmp_path, codec):
    image, mask, grid = chest((64, 80, 90))
    pack(tmp_path / "ours", image, mask, grid, format="zarr", chunk=(32, 40, 90), level=5, codec=codec)
    for name, array, fill, own in (("image", image, -1024, codec), ("mask", mask, 0, "blosc")):
        theirs = written_by_zarr(tmp_path / name, array, fill, own, 5)
        ours = zarr.open_array(tmp_path / "ours" / name, mode="r")
        assert ours.metadata.to_dict() == theirs.metadata.to_dict()
        if own != "pcodec":  # which zarr-python passes a transposed view, and that it refuses
            theirs[:] = array
            # The same chunks, so the same sizes; zarr-python may lay them out in another order.
            assert (tmp_path / "ours" / name / SHARD).stat().st_size == (tmp_path / name / SHARD).stat().st_size


def test_a_chunk_is_stored_by_the_order_of_differences_that_suits_it(tmp_path):
    """Noise that no plane shares with the next, and a curve along z that first differences leave large."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 200, (64, 64, 64)).astype(np.int16)
    curve = (noise[:1] / 8 + np.cumsum(np.arange(64) + 0 * noise[0, 0])[:, None, None]).astype(np.int16)
    for image in (noise, curve):
        grid = Grid(image.shape, (1, 1, 1), (0, 0, 0))
        pack(tmp_path / "p", image, np.zeros(image.shape, np.uint8), grid, format="zarr")
        size = (tmp_path / "p" / "image" / SHARD).stat().st_size
        block = np.ascontiguousarray(image.transpose(1, 2, 0))
        coders = [numcodecs.pcodec.PCodec(level=8, mode_spec="classic", delta_encoding_order=k) for k in (1, 2)]
        sizes = [len(coder.encode(block)) for coder in coders]
        assert max(sizes) > 1.05 * min(sizes)
        assert size < 1.01 * min(sizes)


def test_damage_is_noticed_by_the_reader(tmp_path):
    image, mask, grid = chest((20, 20, 20))
    pack(tmp_path / "p", image, mask, grid, format="zarr")
    shard = tmp_path / "p" / "image" / SHARD
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1  # in the index, which its checksum covers
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(tmp_path / "p", mode="r")["image"][:]


def test_ome_zarr_metadata(tmp_path):
    image, mask, grid = chest((8, 9, 10))
    pack(tmp_path / "p", image, mask, grid, format="zarr")
    group = zarr.open_group(tmp_path / "p", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert [m["name"] for m in ome["multiscales"]] == ["image", "mask"]
    for multiscale in ome["multiscales"]:
        assert [(a["name"], a["type"], a["unit"]) for a in multiscale["axes"]] == [
            (axis, "space", "millimeter") for axis in "zyx"
        ]
        (dataset,) = multiscale["datasets"]
        assert tuple(axis["name"] for axis in multiscale["axes"]) == group[dataset["path"]].metadata.dimension_names
        scale, translation = dataset["coordinateTransformations"]
        index = np.array([2, 3, 4])
        world = index * scale["scale"] + translation["translation"]
        np.testing.assert_allclose(world, grid.to_mm(index))


def test_cohort_group_holds_the_patients_and_leaves_them_alone(tmp_path):
    image, mask, grid = chest((8, 9, 10))
    pack(tmp_path / "cohort.zarr" / "p1", image, mask, grid, format="zarr")
    before = files_of(tmp_path / "cohort.zarr" / "p1")
    create_cohort_group(tmp_path / "cohort.zarr")
    pack(tmp_path / "cohort.zarr" / "p2", image, mask, grid, format="zarr")
    create_cohort_group(tmp_path / "cohort.zarr")
    assert files_of(tmp_path / "cohort.zarr" / "p1") == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        cohort = zarr.open_group(tmp_path / "cohort.zarr", mode="r")
        assert sorted(cohort.keys()) == ["p1", "p2"]
        assert len(list(cohort.members(max_depth=None))) == 6
    np.testing.assert_array_equal(cohort["p2"]["image"][:], image)
