import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lungmill.annotations import Nodule
from lungmill.errors import LungmillError
from lungmill.grid import Grid
from lungmill.patches import body_mask, crop_center, cut_patches, sample_positions

SPACING = (2.0, 1.5, 1.5)
ORIGIN = (-100.0, 50.0, -75.0)


def phantom(shape=(60, 110, 130), spacing=SPACING, origin=ORIGIN):
    """An elliptic body in air, two ellipsoids of lung in it, a trachea between them, and a thin table that it lies on.

    Returns volume, mask, grid, the body, and what of the table is clear of the body.
    """
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    z, y, x = ((axis * mm - n * mm / 2) for axis, mm, n in zip((z, y, x), spacing, shape, strict=True))
    body = np.broadcast_to((x / 85) ** 2 + (y / 60) ** 2 < 1, shape)
    volume = np.where(body, 40.0, -1000.0)
    mask = np.zeros(shape, np.uint8)
    for label, middle in ((1, -38), (2, 38)):
        mask[(z / 45) ** 2 + (y / 40) ** 2 + ((x - middle) / 30) ** 2 < 1] = label
    volume[mask > 0] = -850
    trachea = np.broadcast_to((x / 6) ** 2 + (y / 6) ** 2 < 1, shape) & (mask == 0)
    volume[trachea] = -1000
    table = np.broadcast_to((y > 58) & (y < 62) & (abs(x) < 85), shape)
    volume[table] = 100
    table = table & (abs(x) > 45)
    volume += rng.normal(0, 25, shape)
    grid = Grid(shape, spacing, origin)
    return volume.round().astype(np.int16), mask, grid, body, table


VOLUME, MASK, GRID, BODY, TABLE = phantom()


def nodule_at(*index):
    return Nodule("p", tuple(GRID.to_mm(index).tolist()), 8.0)


def cut(path, shape=(8, 9, 10), volume=VOLUME, mask=MASK, **changed):
    settings = {"per_class": 40, "nodules": [nodule_at(30, 55, 40)], "seed": 1, "patient": "p", **changed}
    counts = cut_patches(path, volume, mask, GRID, shape=shape, **settings)
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


def test_voxels_are_drawn_evenly_and_once():
    positions, _ = sample_positions(VOLUME, MASK, GRID, shape=(1, 1), per_class=4000, nodules=None, seed=0, patient="p")
    lung = positions["lung"]
    assert len(np.unique(lung, axis=0)) == 4000
    # Each label gets its share of draws, to within five standard deviations.
    share = np.count_nonzero(MASK == 1) / np.count_nonzero(MASK)
    drawn = np.mean(MASK[tuple(lung.T)] == 1)
    assert abs(drawn - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    mean_z = np.nonzero(MASK)[0].mean()
    assert abs(lung[:, 0].mean() - mean_z) < 5 * np.nonzero(MASK)[0].std() / 4000**0.5
    assert "nodule" not in positions


def contains(centres, index, shape):
    """Whether the patches around the centres contain the voxel."""
    start = centres - np.array(shape) // 2
    return ((start <= index) & (index < start + np.array(shape))).all(axis=1)


@pytest.mark.parametrize("shape", [(30, 30, 30), (9, 16, 31), (40, 41)])
def test_lung_and_background_contain_no_nodule_and_nodule_patches_do(shape):
    indices = [(30, 55, 40), (22, 40, 90), (2, 50, 64)]
    positions, outside = sample_positions(
        VOLUME, MASK, GRID, shape=shape, per_class=300, nodules=[nodule_at(*i) for i in indices], seed=5, patient="p"
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
    positions, _ = sample_positions(
        VOLUME, MASK, GRID, shape=shape, per_class=len(lung), nodules=[nodule_at(*index)], seed=0, patient="p"
    )
    np.testing.assert_array_equal(positions["lung"], allowed)


def test_more_nodules_than_patches():
    indices = [(10 + i, 50, 40) for i in range(9)]
    positions, _ = sample_positions(
        VOLUME, MASK, GRID, shape=(8, 8, 8), per_class=4, nodules=[nodule_at(*i) for i in indices], seed=0, patient="p"
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
    content, positions, _ = cut(tmp_path / "p.h5", shape, mask=np.zeros_like(MASK), nodules=None)
    assert {name: array.shape for name, array in content.items()} == {"lung": (0, *shape), "background": (0, *shape)}
    assert all(array.shape == (0, 3) for array in positions.values())


def test_no_body_gives_no_background():
    air = np.full_like(VOLUME, -1000)
    positions, _ = sample_positions(air, MASK, GRID, shape=(4, 4), per_class=5, nodules=None, seed=0, patient="p")
    assert len(positions["background"]) == 0
    assert len(positions["lung"]) == 5


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
        cut(tmp_path / "p.h5", mask=MASK[:-1])


def test_body_is_the_body():
    found = body_mask(VOLUME, SPACING)
    planes = np.stack([found.plane(z) for z in range(len(VOLUME))])
    assert planes.shape == VOLUME.shape
    overlap = 2 * np.count_nonzero(planes & BODY) / (np.count_nonzero(planes) + np.count_nonzero(BODY))
    assert overlap > 0.95
    assert not (planes & TABLE).any()
    assert planes[MASK > 0].all()


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
