"""Slice geometry against highdicom-like first principles: dot products of positions and directions."""

import numpy as np
import pytest
from dicom_files import AXIAL, stack
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lungmill.dicom.geometry import check_steps, slice_geometry, unit_directions
from lungmill.errors import DicomError


def axial(positions):
    return slice_geometry(positions, AXIAL, (1, 1), 8, 8)[0]


def codes(warnings):
    return [warning["code"] for warning in warnings]


@given(st.integers(0, 2**32 - 1))
def test_any_rotation_gives_back_order_and_steps(seed):
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng).as_matrix()
    steps = rng.uniform(0.5, 5, 9)
    along = np.cumsum([0, *steps])
    positions = along[:, None] * rotation[:, 2] + rng.normal(0, 100, 3)
    shuffled = rng.permutation(10)
    geometry, order = slice_geometry(positions[shuffled], rotation[:, :2].T.ravel(), (1, 1), 4, 4)
    np.testing.assert_array_equal(shuffled[order], np.arange(10))
    np.testing.assert_allclose(geometry.steps_mm, steps, atol=1e-9)
    np.testing.assert_allclose(geometry.normal, rotation[:, 2], atol=1e-9)
    assert geometry.tilt_degrees == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("degrees", [-25, -1, 5, 18.5])
def test_tilt_is_the_angle_between_feed_and_normal(degrees):
    angle = np.radians(degrees)
    orientation = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    geometry, _ = slice_geometry(stack((0, 0, 0), (0, 0, 3), 12), orientation, (1, 1), 8, 8)
    assert geometry.tilt_degrees == pytest.approx(abs(degrees), abs=1e-6)
    assert codes(check_steps(geometry, 2.5)) == ["gantry_tilt"]


def test_orientation_names():
    for orientation, name in (
        (AXIAL, "axial"),
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
    ):
        assert slice_geometry([(0, 0, 0)], orientation, (1, 1), 8, 8)[0].orientation == name


def test_steps_and_warnings():
    even = stack((0, 0, 0), (0, 0, 2), 12)
    assert check_steps(axial(even), 2.5) == []
    assert codes(check_steps(axial(even[:5] + even[6:]), 2.5)) == ["missing_slices"]
    uneven = [(0, 0, z) for z in np.cumsum([0, 2, 2, 2.5, 2, 3, 2, 2])]
    assert codes(check_steps(axial(uneven), 2.5)) == ["irregular_spacing"]


def test_gaps_beyond_the_limit_are_rejected():
    even = stack((0, 0, 0), (0, 0, 2), 12)
    with pytest.raises(DicomError, match="missing_slices") as error:
        check_steps(axial(even[:5] + even[7:]), 2.5)
    assert "6.00 mm" in error.value.detail
    assert codes(check_steps(axial(even[:5] + even[7:]), 3.5)) == ["missing_slices"]
    with pytest.raises(DicomError):
        check_steps(axial(even[:5] + even[6:]), 1.5)


def test_slices_at_one_place_are_no_volume():
    with pytest.raises(DicomError, match="inconsistent_geometry"):
        check_steps(axial([(0, 0, 0)] * 4), 2.5)


def test_slices_that_move_sideways_are_no_volume():
    with pytest.raises(DicomError, match="inconsistent_geometry"):
        check_steps(axial(stack((0, 0, 0), (5, 0, 2), 6)), 2.5)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0)])
def test_directions_that_are_none(orientation):
    with pytest.raises(DicomError, match="inconsistent_geometry"):
        unit_directions(orientation)
