import sys
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lungmill.training.dataflow import DataFlow
from lungmill.training.errors import ArrayError
from lungmill.training.patch_generator import PatchGenerator, create_dataset

FORMATS = ["hdf5", "zarr", *(["bcolz"] if find_spec("bcolz") else [])]


def reference(source, pixel, shape, mirrored):
    """A patch by np.pad of the whole source and a plain slice."""
    solid = (1, *shape)[-source.ndim :]
    wide = max(solid)
    padded = np.pad(source, wide, mode="reflect") if mirrored else np.pad(source, wide)
    start = [int(c) + wide - n // 2 for c, n in zip(pixel, solid, strict=True)]
    return padded[tuple(slice(s, s + n) for s, n in zip(start, solid, strict=True))].reshape(shape)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_patch_around_every_pixel(data):
    axes = data.draw(st.sampled_from([2, 3]))
    source = data.draw(
        hnp.arrays(
            st.sampled_from([np.int16, np.uint8, np.float32, bool]),
            hnp.array_shapes(min_dims=axes, max_dims=axes, max_side=5),
        )
    )
    size = data.draw(st.one_of(st.integers(1, 7), st.tuples(*[st.integers(1, 7)] * data.draw(st.integers(2, axes)))))
    mirrored = data.draw(st.booleans())
    mask = data.draw(st.none() | hnp.arrays(np.uint8, source.shape, elements=st.integers(0, 2)))
    patches = PatchGenerator(size, source, mask, mirrored=mirrored)
    pixels = list(np.ndindex(source.shape)) if mask is None else list(map(tuple, np.argwhere(mask)))
    shape = (size,) * axes if isinstance(size, int) else size
    assert patches.shape == (len(pixels), *shape)
    assert list(map(tuple, patches.positions().tolist())) == pixels
    for patch, pixel in zip(patches, pixels, strict=True):
        assert patch.dtype == np.float32
        expected = reference(source, pixel, shape, mirrored)
        np.testing.assert_array_equal(patch, expected.astype(np.float32))


def test_indexing():
    source = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    patches = PatchGenerator((3, 4, 5), source)
    whole = np.stack(list(patches))
    for index in (5, -1, slice(3, 40, 7), [4, 4, 0], (slice(None), 1), ([3, 9], ..., slice(None, None, -2)), (7, 2, 3)):
        np.testing.assert_array_equal(patches[index], whole[index])
    with pytest.raises(IndexError):
        patches[len(patches)]
    flow = DataFlow([patches, patches.positions()], 50, loop_forever=False)
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in flow.flow()]), whole)


def test_the_centre_of_an_even_patch_is_the_pixel_after_the_middle():
    source = np.zeros((9, 9), np.int16)
    source[4, 5] = 1
    patches = PatchGenerator((4, 6), source, source)
    assert len(patches) == 1
    assert np.argwhere(patches[0]).tolist() == [[2, 3]]


def test_random_order_and_max_num():
    source = np.random.default_rng(0).integers(-1000, 1000, (30, 31)).astype(np.int16)
    mask = source > 300
    in_order = PatchGenerator(5, source, mask)
    shuffled = PatchGenerator(5, source, mask, random_order=True, rng=1)
    rows = {tuple(p) for p in in_order.positions().tolist()}
    assert {tuple(p) for p in shuffled.positions().tolist()} == rows
    assert (shuffled.positions() != in_order.positions()).any()
    np.testing.assert_array_equal(PatchGenerator(5, source, mask, True, rng=1)[:], shuffled[:])
    assert (PatchGenerator(5, source, mask, True, rng=2).positions() != shuffled.positions()).any()
    np.testing.assert_array_equal(PatchGenerator(5, source, mask, max_num=10)[:], in_order[:10])
    some = PatchGenerator(5, source, mask, random_order=True, max_num=10, rng=3).positions().tolist()
    assert len({tuple(p) for p in some} & rows) == 10
    assert some != sorted(some) and max(some)[0] > 15  # neither in order nor the first ones
    assert len(PatchGenerator(5, source, mask, max_num=10**6)) == len(in_order)
    assert len(PatchGenerator(5, source, max_num=0)) == 0
    assert len(PatchGenerator(5, source, np.zeros_like(mask))[:]) == 0


def test_stores_as_sources(tmp_path):
    volume = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    np.save(tmp_path / "a.npy", volume)
    expected = PatchGenerator(3, volume)[:]
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    stored = zarr.create_array(tmp_path / "a.zarr", data=volume)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", data=volume)
        for source in (mapped, stored, dataset):
            np.testing.assert_array_equal(PatchGenerator(3, source)[:], expected)
    assert isinstance(PatchGenerator(3, mapped)._source, np.memmap)


@pytest.mark.parametrize(
    ("size", "source", "options", "message"),
    [
        (3, np.zeros(5), {}, "source is float64"),
        (3, np.zeros((2, 3, 4, 5)), {}, "without channels"),
        ((3, 3, 3), np.zeros((4, 5)), {}, "patchsize=.* has more axes"),
        (3, np.zeros((4, 5), complex), {}, "real numbers"),
        (0, np.zeros((4, 5)), {}, "less than a voxel"),
        (3, np.zeros((4, 5)), {"binary_mask": np.ones((5, 4))}, r"binary_mask has shape \(5, 4\)"),
        (3, np.zeros((4, 5)), {"max_num": -1}, "max_num"),
    ],
)
def test_arguments_that_do_not_fit(size, source, options, message):
    with pytest.raises(ArrayError, match=message):
        PatchGenerator(size, source, **options)


# --- create_dataset ---


def read(path, file_format):
    if file_format == "hdf5":
        with h5py.File(path) as file:
            return {name: file[name][:] for name in file}
    if file_format == "zarr":
        return {name: array[:] for name, array in zarr.open_group(path, mode="r").arrays()}
    import bcolz

    return {folder.name: bcolz.open(str(folder), mode="r")[:] for folder in path.iterdir()}


def labelled():
    rng = np.random.default_rng(5)
    return rng.integers(-1000, 1000, (7, 12, 13)).astype(np.int16), rng.integers(0, 3, (7, 12, 13)).astype(np.uint8)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("random_order", [True, False])
def test_one_array_per_class(tmp_path, file_format, random_order):
    volume, mask = labelled()
    path = tmp_path / "patches"
    counts = create_dataset(path, (3, 4, 5), volume, mask, random_order=random_order, file_format=file_format)
    content = read(path, file_format)
    assert counts == {f"class_{c}": int((mask == c).sum()) for c in range(3)}
    assert {name: array.shape for name, array in content.items()} == {n: (c, 3, 4, 5) for n, c in counts.items()}
    for value in range(3):
        got = content[f"class_{value}"]
        expected = np.stack([reference(volume, pixel, (3, 4, 5), True) for pixel in np.argwhere(mask == value)])
        assert got.dtype == np.float32
        if random_order:
            assert not np.array_equal(got, expected)
            got, expected = (np.array(sorted(array.reshape(len(array), -1).tolist())) for array in (got, expected))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("file_format", FORMATS)
def test_classes_settings_and_files_that_are_there(tmp_path, file_format, capsys):
    volume, mask = labelled()
    path = tmp_path / "patches"
    options = {"file_format": file_format, "batchsize": 7}
    create_dataset(path, 3, volume, **options)
    assert set(read(path, file_format)) == {"class_0"}
    counts = create_dataset(path, (3, 3), volume, mask, [2], max_num=10, show_progress=True, mirrored=False, **options)
    assert "patches" in capsys.readouterr().err
    content = read(path, file_format)
    assert counts == {"class_2": 10} and content["class_2"].shape == (10, 3, 3)
    again = create_dataset(tmp_path / "again", (3, 3), volume, mask, [2], max_num=10, mirrored=False, **options)
    assert again == counts
    np.testing.assert_array_equal(read(tmp_path / "again", file_format)["class_2"], content["class_2"])
    # What goes wrong leaves the file that was there.
    with pytest.raises(Exception, match="chunk"):
        create_dataset(path, 3, volume, kwargs={"chunks": "no", "chunklen": "no"}, **options)
    np.testing.assert_array_equal(read(path, file_format)["class_2"], content["class_2"])
    assert {item.name for item in tmp_path.iterdir()} == {"patches", "again"}


def test_settings_reach_the_store(tmp_path):
    volume, _ = labelled()
    create_dataset(tmp_path / "a.h5", 3, volume, kwargs={"compression": "gzip", "chunks": (5, 3, 3, 3)})
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["class_0"].compression == "gzip" and file["class_0"].chunks == (5, 3, 3, 3)
    create_dataset(tmp_path / "a.zarr", 3, volume, file_format="zarr", kwargs={"chunks": (5, 3, 3, 3)})
    assert zarr.open_group(tmp_path / "a.zarr", mode="r")["class_0"].chunks == (5, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"file_format": "npz"}, "file_format='npz' is not one of hdf5, zarr, bcolz"),
        ({"mask": np.zeros((7, 12, 12), int)}, "integers of the volume's shape"),
        ({"mask": np.zeros((7, 12, 13))}, "integers of the volume's shape"),
        ({"class_list": [0, 0]}, "give different values"),
        ({"class_list": []}, "give different values"),
        ({"class_list": [1, 5]}, r"\[5\] do not occur in the mask, which has \[0, 1, 2\]"),
        ({"batchsize": 0}, "batchsize"),
        ({"patchsize": (3, 3, 3, 3)}, "patchsize=.* is not three numbers"),
    ],
)
def test_datasets_that_cannot_be_made(tmp_path, arguments, message):
    volume, mask = labelled()
    with pytest.raises(ArrayError, match=message):
        create_dataset(tmp_path / "a", **{"patchsize": 3, "volume": volume, "mask": mask, **arguments})
    assert not list(tmp_path.iterdir())


def test_no_store_is_imported_before_it_is_needed():
    assert "lungmill.training.patch_generator" in sys.modules
    assert not hasattr(sys.modules["lungmill.training.patch_generator"], "h5py")
