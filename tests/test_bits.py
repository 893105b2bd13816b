"""Balls, openings and filling on packed bits against SciPy's distance transforms and hole filling."""

import numpy as np
import pytest
from scipy import ndimage

from lungmill.bits import dilate, erode, fill_enclosed, opened, pack, unpack


def blobs(shape, seed=5, share=0.06):
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5) > share


# A row of less than a word, of whole words, and of more; a single slice, row and column.
SHAPES = [(30, 41, 37), (12, 20, 64), (11, 13, 130), (1, 40, 70), (20, 1, 65), (9, 8, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_and_back(shape):
    mask = blobs(shape)
    words = pack(mask)
    assert words.dtype == np.uint64 and words.shape == (*shape[:2], -(-shape[2] // 64))
    np.testing.assert_array_equal(unpack(words, shape[2]), mask)
    z, y, x = np.argwhere(mask)[-1].tolist()
    assert int(words[z, y, x // 64]) >> (x % 64) & 1
    assert sum(int(word).bit_count() for word in words.ravel()) == mask.sum()  # nothing beyond the rows' ends


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("spacing", "radius"), [((2.0, 1.1, 0.9), 3.37), ((2.0, 2.0, 2.0), 2.02), ((5.0, 0.7, 0.8), 9)]
)
def test_balls_agree_with_distance_transforms(shape, spacing, radius):
    mask = blobs(shape)
    mask[0, 0, 0], mask[-1, -1, -1] = True, False  # both occur, or there is no distance
    wider = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius
    np.testing.assert_array_equal(dilate(mask, spacing, radius), wider)
    narrower = ndimage.distance_transform_edt(mask, sampling=spacing) > radius
    np.testing.assert_array_equal(erode(mask, spacing, radius), narrower)
    inside = (
        mask & (ndimage.distance_transform_edt(~narrower, sampling=spacing) <= radius) if narrower.any() else narrower
    )
    np.testing.assert_array_equal(opened(mask, spacing, radius), inside)


def test_a_ball_holds_what_lies_exactly_at_its_radius():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    z, y, x = np.ogrid[-4:5, -4:5, -4:5]
    np.testing.assert_array_equal(dilate(mask, (1.0, 1.0, 1.0), 3.0), z**2 + y**2 + x**2 <= 9)


def enclosed_in_planes(mask, axis):
    planes = [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, axis, 0)]
    return np.moveaxis(np.stack(planes), 0, axis) & ~mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [-0.02, 0.0, 0.06])
def test_filling_agrees_with_scipy_plane_by_plane(shape, share):
    """Shares of True voxels at which holes are winding: both are near the threshold of percolation."""
    mask = expected = blobs(shape, 7, share)
    for needed in (2, 3):
        votes = sum(enclosed_in_planes(expected, axis).astype(int) for axis in range(3))
        expected = expected | (votes >= needed)
    np.testing.assert_array_equal(fill_enclosed(mask), expected)


def test_filling_follows_a_way_out_that_winds():
    spiral = np.zeros((5, 80, 80), bool)
    for ring in range(0, 40, 4):  # walls, each with a gap at the other end
        spiral[:, ring : 80 - ring, ring : 80 - ring] ^= True
        spiral[:, ring + 1 : 79 - ring, ring + 1 : 79 - ring] ^= True
        spiral[:, ring if ring % 8 else 79 - ring, 39:41] = False
    votes = sum(enclosed_in_planes(spiral, axis).astype(int) for axis in range(3))
    once = spiral | (votes >= 2)
    votes = sum(enclosed_in_planes(once, axis).astype(int) for axis in range(3))
    np.testing.assert_array_equal(fill_enclosed(spiral), once | (votes == 3))


def test_filling_takes_two_of_three_families_of_planes():
    wall = np.zeros((20, 20, 20), bool)
    wall[4:16, 4:16, 4:16] = True
    wall[6:14, 6:14, 6:14] = False  # a cavity
    assert fill_enclosed(wall)[4:16, 4:16, 4:16].all()
    wall[10, 10, 14:16] = False  # a way out, along x: a hole no more in 3-D, nor in the two planes that it lies in
    expected = np.zeros(wall.shape, bool)
    expected[4:16, 4:16, 4:16] = True
    expected[10, 10, 6:16] = False
    np.testing.assert_array_equal(ndimage.binary_fill_holes(wall), wall)
    np.testing.assert_array_equal(fill_enclosed(wall), expected)
    tunnel = np.zeros((20, 20, 20), bool)
    tunnel[:, 4:16, 4:16] = True
    tunnel[:, 6:14, 6:14] = False  # enclosed in axial planes only
    np.testing.assert_array_equal(fill_enclosed(tunnel), tunnel)
