"""Balls, distances, components and filling against SciPy and NumPy."""

import numpy as np
import pytest
from scipy import ndimage

from lungmill.airway import _grow
from lungmill.body import block_mean
from lungmill.morphology import bounding_box, components, dilate, erode, fill_enclosed, meet, squared_distance


@pytest.fixture
def blobs():
    return ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((30, 41, 37)), 1.5) > 0.06


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.8), (2.0, 1.9, 2.1)])
@pytest.mark.parametrize("to", [True, False])
def test_distances_are_exact_within_reach(blobs, spacing, to):
    mask = blobs & (np.arange(30) > 8)[:, None, None]
    reach = 6.0
    ours = squared_distance(mask, spacing, reach, to=to)
    true = ndimage.distance_transform_edt(mask != to, sampling=spacing) ** 2
    near = true <= reach**2
    np.testing.assert_allclose(ours[near], true[near], rtol=1e-5)
    assert (ours[~near] > reach**2).all()


def test_balls_agree_with_distance_transforms(blobs):
    spacing, radius = (2.0, 1.1, 0.9), 3.37
    np.testing.assert_array_equal(
        dilate(blobs, spacing, radius), ndimage.distance_transform_edt(~blobs, sampling=spacing) <= radius
    )
    np.testing.assert_array_equal(
        erode(blobs, spacing, radius), ndimage.distance_transform_edt(blobs, sampling=spacing) > radius
    )


def test_components_and_boxes_agree_with_scipy(blobs):
    labels, counts = components(blobs)
    expected, number = ndimage.label(blobs)
    assert len(counts) == number + 1
    pairs = np.unique(np.stack([labels[blobs], expected[blobs]]), axis=1)
    assert pairs.shape[1] == number  # one to one
    np.testing.assert_array_equal(counts, np.bincount(labels.ravel()))
    for label, box in enumerate(ndimage.find_objects(labels.view(np.int32)), start=1):
        assert bounding_box(labels == label) == box


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


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (1, 3, 2), (5, 4, 3)])
def test_block_means_agree_with_numpy(factors):
    volume = np.random.default_rng(0).integers(-1024, 3072, (11, 14, 9)).astype(np.int16)
    means = block_mean(volume, *factors)
    for k, j, i in np.ndindex(means.shape):
        box = tuple(slice(n * f, (n + 1) * f) for n, f in zip((k, j, i), factors, strict=True))
        assert means[k, j, i] == np.floor(volume[box].mean(dtype=np.float64))


def test_seeds_meet_at_the_ridge():
    cost = np.broadcast_to(np.array([0, 0, 0, 30, 90, 60, 10, 0, 0], np.int16), (3, 5, 9)).copy()
    seeds = np.zeros(cost.shape, np.int8)
    seeds[1, 2, 0], seeds[1, 2, 8] = 1, 2
    labels = meet(cost, seeds, np.ones(cost.shape, bool), 20)
    assert (labels[..., :4] == 1).all() and (labels[..., 5:] == 2).all() and labels.all()


def test_growing_refuses_what_leaks():
    hu = np.zeros((5, 30, 60), np.int16)
    hu[2, 15, 2:30] = -980  # a bronchus
    hu[2, 15, 30] = -700  # its thin wall
    hu[:, 5:25, 31:] = -860  # lung
    hu[2, 14, 4:8] = -800  # a side branch
    state = np.zeros(hu.shape, np.uint8)
    state[2, 15, 3] = 1
    _grow(hu, state, -960, -500, 10, 6, 40, 1000)
    assert (state[2, 15, 2:30] == 1).all() and (state[2, 14, 4:8] == 1).all()
    assert np.count_nonzero(state == 1) <= 28 + 4 + 40
    assert not (state[:, :, 35:] == 1).any()
