import h5py
import numpy as np
import pytest
from body_phantom import GRID, MASK, ORIGIN, SPACING, TABLE, VOLUME
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lungmill.annotations import Nodule
from lungmill.errors import LungmillError
from lungmill.patches import choose_centres, crop_center, cut_patches
from lungmill.positions import sampling_positions


def table_of(mask=MASK, volume=VOLUME, number=4096):
    return sampling_positions(volume, mask, SPACING, number=number, pleura_mm=10.0, patient="p")


POSITIONS = table_of()


def nodule_at(*index):
    return Nodule("p", tuple(GRID.to_mm(index).tolist()), 8.0)


def cut(path, shape=(8, 9, 10), volume=VOLUME, positions=POSITIONS, **changed):
    settings = {"per_class": 40, "nodules": [nodule_at(30, 55, 40)], "seed": 1, "patient": "p", **changed}
    counts = cut_patches(path, volume, positions, GRID, shape=shape, **settings)
    with h5py.File(path) as file:
        content = {name: file[name][:] for name in file if name != "positions"}
        positions = {name: file["positions"][name][:] for name in file["positions"]}
        attributes = dict(file.attrs)
    assert {name: len(array) for name, array in content.items()} == counts
    return content, positions, attributes


def reference(volume, centre, shape):
    """A patch by np.pad of the whole volume and a plain slice."""
    shape = (1, *shape) if len(shape) == 2 else shape
    wide = max(shape)
    padded = np.pad(volume, wide, constant_values=-1024)
    start = [int(c) + wide - n // 2 for c, n in zip(centre, shape, strict=True)]
    return padded[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]


@pytest.mark.parametrize("shape", [(8, 9, 10), (16, 16), (7, 7), (1, 1, 1), (70, 8, 8)])
def test_patches_are_the_slices_at_their_positions(tmp_path, shape):
    content, positions, _ = cut(tmp_path / "p.h5", shape, per_class=12)
    assert set(content) == set(positions) == {"lung", "background", "nodule"}
    for name, patches in content.items():
        assert patches.dtype == np.int16
        assert positions[name].dtype == np.int32
        assert patches.shape == (12, *shape)
        for patch, centre in zip(patches, positions[name], strict=True):
            np.testing.assert_array_equal(patch, reference(VOLUME, centre, shape).reshape(shape))


def test_centres_lie_in_the_class_they_claim(tmp_path):
    _, positions, _ = cut(tmp_path / "p.h5", per_class=500)
    assert (MASK[tuple(positions["lung"].T)] > 0).all()
    background = tuple(positions["background"].T)
    assert (MASK[background] == 0).all()
    assert not TABLE[background].any()
    # The body is known in blocks of 3 mm: a centre may lie that far outside the skin, and no further.
    _, y, x = positions["background"].T
    mm_y, mm_x = (y - 110 / 2) * 1.5, (x - 130 / 2) * 1.5
    assert ((mm_x / 89) ** 2 + (mm_y / 64) ** 2 < 1).all()
    # The trachea is inside the body: its share of the background is drawn too.
    assert (VOLUME[background] < -900).any()


def contains(centres, index, shape):
    """Whether the patches around the centres contain the voxel."""
    start = centres - np.array(shape) // 2
    return ((start <= index) & (index < start + np.array(shape))).all(axis=1)


@pytest.mark.parametrize("shape", [(30, 30, 30), (9, 16, 31), (40, 41)])
def test_lung_and_background_contain_no_nodule_and_nodule_patches_do(shape):
    indices = [(30, 55, 40), (22, 40, 90), (2, 50, 64)]
    positions, outside = choose_centres(
        POSITIONS, GRID, shape=shape, per_class=300, nodules=[nodule_at(*i) for i in indices], seed=5, patient="p"
    )
    solid = (1, *shape) if len(shape) == 2 else shape
    assert outside == 0
    for index in indices:
        assert not contains(positions["lung"], index, solid).any()
        assert not contains(positions["background"], index, solid).any()
    hits = np.stack([contains(positions["nodule"], index, solid) for index in indices])
    assert hits.any(axis=0).all()
    assert len(positions["nodule"]) == 300
    assert (hits.sum(axis=1) >= 100).all()
    for index in indices:  # one patch of each is centred on its nodule
        assert (positions["nodule"] == index).all(axis=1).any()
    assert ((positions["nodule"] >= 0) & (positions["nodule"] < GRID.shape)).all()


def test_all_allowed_voxels_can_be_drawn():
    shape = (9, 16, 31)
    index = (30, 55, 40)
    lung = np.argwhere(MASK)
    allowed = lung[~contains(lung, index, shape)]
    positions, _ = choose_centres(
        table_of(number=len(lung)),
        GRID,
        shape=shape,
        per_class=len(lung),
        nodules=[nodule_at(*index)],
        seed=0,
        patient="p",
    )
    np.testing.assert_array_equal(positions["lung"], allowed)


def test_more_nodules_than_patches():
    indices = [(10 + i, 50, 40) for i in range(9)]
    positions, _ = choose_centres(
        POSITIONS, GRID, shape=(8, 8, 8), per_class=4, nodules=[nodule_at(*i) for i in indices], seed=0, patient="p"
    )
    found = {tuple(p) for p in positions["nodule"].tolist()}
    assert len(found) == 4
    assert found <= set(indices)


def test_a_nodule_is_found_through_the_geometry(tmp_path):
    # Half a voxel to either side is the same voxel; a place outside the volume is counted, not cut.
    near = tuple(GRID.to_mm((30.45, 54.55, 40.45)).tolist())
    _, positions, attributes = cut(
        tmp_path / "p.h5", nodules=[Nodule("p", near, 5.0), nodule_at(-3, 5, 5)], per_class=1
    )
    assert positions["nodule"].tolist() == [[30, 55, 40]]
    assert attributes["nodules_outside"] == 1


def test_annotated_cohort_without_nodules_here(tmp_path):
    content, _, attributes = cut(tmp_path / "p.h5", nodules=[])
    assert content["nodule"].shape == (0, 8, 9, 10)
    assert list(attributes["classes"]) == ["lung", "background", "nodule"]
    assert len(content["lung"]) == 40


@pytest.mark.parametrize("shape", [(8, 9, 10), (16, 16)])
def test_no_lungs_gives_a_valid_file_of_empty_arrays(tmp_path, shape):
    content, positions, _ = cut(tmp_path / "p.h5", shape, positions=table_of(np.zeros_like(MASK)), nodules=None)
    assert {name: array.shape for name, array in content.items()} == {"lung": (0, *shape), "background": (0, *shape)}
    assert all(array.shape == (0, 3) for array in positions.values())


def test_the_file_says_what_it_holds(tmp_path):
    cut(tmp_path / "p.h5", per_class=3)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["patch_shape"].tolist() == [8, 9, 10]
        assert file.attrs["spacing_mm"].tolist() == list(SPACING)
        assert file.attrs["origin_mm"].tolist() == list(ORIGIN)
        assert (file.attrs["seed"], file.attrs["patient"]) == (1, "p")
        for name in file.attrs["classes"]:
            assert file[name].chunks == (1, 8, 9, 10)
            assert "centre" in file[name].attrs["meaning"]


def test_the_draw_belongs_to_seed_patient_and_class(tmp_path):
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    _, base, _ = cut(first)
    cut(second)
    assert first.read_bytes() == second.read_bytes()
    for changed in ({"seed": 2}, {"patient": "q"}):
        _, other, _ = cut(second, **changed)
        assert not np.array_equal(base["lung"], other["lung"])
        assert not np.array_equal(base["background"], other["background"])
    # Annotations far away from the lungs leave the other classes as they were.
    _, other, _ = cut(second, nodules=[nodule_at(30, 55, 40), nodule_at(1, 1, 1)])
    np.testing.assert_array_equal(base["lung"], other["lung"])


@pytest.mark.parametrize("shape", [(8,), (8, 8, 8, 8), (0, 8), (8, -1, 8)])
def test_a_wrong_patch_shape_names_the_key(tmp_path, shape):
    with pytest.raises(LungmillError, match=r"patches\.shape"):
        cut(tmp_path / "p.h5", shape)
    assert not list(tmp_path.iterdir())


def test_arrays_of_different_shape(tmp_path):
    with pytest.raises(LungmillError, match=r"p: volume .* do not belong together"):
        cut(tmp_path / "p.h5", volume=VOLUME[:-1])
    with pytest.raises(LungmillError, match="p: positions lie outside"):
        cut(tmp_path / "p.h5", positions={**POSITIONS, "lung": np.array([[0, 0, GRID.shape[2]]], np.int32)})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_crop_center_is_padding_and_slicing(data):
    dims = data.draw(st.integers(1, 4))
    array = data.draw(hnp.arrays(np.int16, hnp.array_shapes(min_dims=dims, max_dims=dims, min_side=1, max_side=6)))
    shape = data.draw(st.tuples(*[st.integers(0, 9)] * dims))
    centre = data.draw(st.one_of(st.none(), st.tuples(*[st.integers(-12, 12)] * dims)))
    got = crop_center(array, shape, centre, fill=-7)
    wide = 40
    padded = np.pad(array, wide, constant_values=-7)
    middle = [n // 2 for n in array.shape] if centre is None else centre
    start = [c + wide - n // 2 for c, n in zip(middle, shape, strict=True)]
    np.testing.assert_array_equal(got, padded[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))])
    assert got.dtype == np.int16


def test_crop_center_of_stores_and_of_masks(tmp_path):
    array = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = file.create_dataset("a", data=array)
        np.testing.assert_array_equal(crop_center(stored, (3, 4, 9), fill=0), crop_center(array, (3, 4, 9), fill=0))
    # A centre in millimetres divided by the spacing is rounded to the nearest voxel.
    np.testing.assert_array_equal(crop_center(array, (1, 1, 1), (1.4, 2.6, 3.0), fill=0), array[1:2, 3:4, 3:4])
    with pytest.raises(ValueError, match="fill=-1024 does not fit into uint8"):
        crop_center(array, (3, 3, 3))
    with pytest.raises(ValueError, match="3 axes"):
        crop_center(array, (3, 3), fill=0)
    part = crop_center(array, (3, 3, 3), fill=0)
    part[:] = 0
    assert array.any()
