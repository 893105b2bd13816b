"""The table of sampling positions: classes, fairness, what a file holds."""

import numpy as np
import pytest
from body_phantom import BODY, MASK, SPACING, TABLE, VOLUME
from scipy import ndimage

from lungmill.errors import LungmillError
from lungmill.positions import body_mask, read_positions, sampling_positions, write_positions


def table_of(volume=VOLUME, mask=MASK, **changed):
    return sampling_positions(volume, mask, SPACING, **{"number": 500, "pleura_mm": 10.0, "patient": "p", **changed})


def test_positions_lie_in_the_class_they_claim():
    table = table_of(number=3000)
    assert list(table) == ["lung", "pleura", "background"]
    for voxels in table.values():
        assert voxels.dtype == np.int32 and voxels.shape == (3000, 3)
        np.testing.assert_array_equal(voxels, np.unique(voxels, axis=0))
    assert MASK[tuple(table["lung"].T)].all() and MASK[tuple(table["pleura"].T)].all()
    assert not MASK[tuple(table["background"].T)].any() and not TABLE[tuple(table["background"].T)].any()


@pytest.mark.parametrize("pleura_mm", [6.0, 15.0])
def test_the_pleura_is_as_near_to_the_surface_as_asked(pleura_mm):
    depth = ndimage.distance_transform_edt(MASK, sampling=SPACING)
    found = depth[tuple(table_of(number=3000, pleura_mm=pleura_mm)["pleura"].T)]
    assert found.max() <= pleura_mm + 4.0  # to the nearest block of 4 mm
    assert np.mean(found <= pleura_mm) > 0.85
    # As many of the voxels that are surely near enough are drawn as of the others that may be.
    everything = depth[(depth > 0) & (depth <= pleura_mm)]
    assert abs(np.median(found) - np.median(everything)) < 1.0


def test_ends_of_the_volume_are_no_pleura():
    mask = np.ones((40, 60, 60), np.uint8)
    volume = np.full(mask.shape, -850, np.int16)
    table = sampling_positions(volume, mask, (1, 1, 1), number=9, pleura_mm=5, patient="p")
    assert len(table["lung"]) == 9 and len(table["pleura"]) == 0
    mask[:, :, 50:] = 0
    table = sampling_positions(volume, mask, (1, 1, 1), number=99, pleura_mm=5, patient="p")
    assert len(table["pleura"]) == 99 and (table["pleura"][:, 2] >= 40).all()


def test_voxels_are_drawn_evenly_and_once():
    lung = table_of(number=4000)["lung"]
    assert len(np.unique(lung, axis=0)) == 4000
    # Each label gets its share of draws, to within five standard deviations.
    share = np.count_nonzero(MASK == 1) / np.count_nonzero(MASK)
    drawn = np.mean(MASK[tuple(lung.T)] == 1)
    assert abs(drawn - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    mean_z = np.nonzero(MASK)[0].mean()
    assert abs(lung[:, 0].mean() - mean_z) < 5 * np.nonzero(MASK)[0].std() / 4000**0.5


def test_the_draw_belongs_to_patient_and_class():
    one, again, other = table_of(), table_of(), table_of(patient="q")
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        assert not np.array_equal(one[name], other[name])


def test_a_class_with_few_voxels_gives_them_all():
    few = np.zeros_like(MASK)
    few[30, 50:53, 40:44] = 1
    np.testing.assert_array_equal(table_of(mask=few)["lung"], np.argwhere(few))


def test_without_lungs_or_body_there_is_nothing_to_sample():
    empty = table_of(mask=np.zeros_like(MASK))
    assert {name: voxels.shape for name, voxels in empty.items()} == dict.fromkeys(empty, (0, 3)) and len(empty) == 3
    air = table_of(volume=np.full_like(VOLUME, -1000))
    assert len(air["background"]) == 0 and len(air["lung"]) == 500


def test_the_file_gives_the_table_back_in_the_same_bytes(tmp_path):
    table = table_of()
    for name in ("a.npz", "b.npz"):
        write_positions(tmp_path / name, table)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {k: v.tolist() for k, v in table.items()}
    assert {name: voxels.tolist() for name, voxels in read_positions(tmp_path / "a.npz").items()} == {
        k: v.tolist() for k, v in table.items()
    }


def test_volume_and_mask_of_different_shape():
    with pytest.raises(LungmillError, match=r"p: volume .* do not belong together"):
        table_of(mask=MASK[:-1])


def test_body_is_the_body():
    found = body_mask(VOLUME, SPACING)
    planes = np.stack([found.plane(z) for z in range(len(VOLUME))])
    assert planes.shape == VOLUME.shape
    overlap = 2 * np.count_nonzero(planes & BODY) / (np.count_nonzero(planes) + np.count_nonzero(BODY))
    assert overlap > 0.95
    assert not (planes & TABLE).any()
    assert planes[MASK > 0].all()
