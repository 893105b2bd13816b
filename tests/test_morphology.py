"""Distances, boxes, block means and growing against SciPy and NumPy."""

import numpy as np
import pytest
from scipy import ndimage

from lungmill.airway import _grow
from lungmill.body import block_mean, enclosing_sides
from lungmill.components import percentiles
from lungmill.morphology import bounding_box, meet, squared_distance


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


def test_boxes_agree_with_scipy(blobs):
    labels, number = ndimage.label(blobs)
    for label, box in zip(range(1, number + 1), ndimage.find_objects(labels), strict=True):
        assert bounding_box(labels == label) == box
        wider = tuple(
            slice(max(0, cut.start - 2), min(n, cut.stop + 2)) for cut, n in zip(box, blobs.shape, strict=True)
        )
        assert bounding_box(labels == label, (2, 2, 2)) == wider
    assert bounding_box(np.zeros((2, 3, 4), bool)) is None


def test_percentiles_agree_with_numpy():
    rng = np.random.default_rng(4)
    hu = rng.integers(-32768, 32768, (9, 10, 11)).astype(np.int16)
    mask = rng.random((4, 5, 6)) < 0.5
    box = (slice(3, 7), slice(2, 7), slice(5, 11))
    shares = (0, 1, 20, 50, 98, 100)
    np.testing.assert_allclose(percentiles(hu, mask, box, shares), np.percentile(hu[box][mask], shares), rtol=1e-12)
    np.testing.assert_allclose(percentiles(hu, hu > 7, None, shares), np.percentile(hu[hu > 7], shares), rtol=1e-12)
    one = np.zeros(hu.shape, bool)
    one[2, 3, 4] = True
    assert percentiles(hu, one, None, (5,)) == [hu[2, 3, 4]]


def test_sides_are_where_a_wall_is_seen():
    wall = np.random.default_rng(9).random((3, 7, 8)) < 0.1
    sides = enclosing_sides(wall)
    for z, y, x in np.ndindex(wall.shape):
        views = (wall[z, : y + 1, x], wall[z, y:, x], wall[z, y, : x + 1], wall[z, y, x:])
        assert sides[z, y, x] == sum(view.any() for view in views)


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


@pytest.mark.parametrize("step", [1, 20])
def test_meeting_agrees_with_a_plain_flood(step):
    """Level by level, and within a level in the order in which voxels were reached, each looking in six directions."""
    rng = np.random.default_rng(12)
    mask = rng.random((7, 8, 9)) < 0.8
    cost = (ndimage.gaussian_filter(rng.standard_normal(mask.shape), 1) * 300).astype(np.int16)
    seeds = np.where(mask & (rng.random(mask.shape) < 0.02), rng.integers(1, 3, mask.shape), 0).astype(np.int8)
    expected = seeds.copy()
    queue = [tuple(voxel) for voxel in np.argwhere(seeds)]
    level = cost[mask & (seeds == 0)].min()
    while level <= cost[mask].max():
        level += step
        for voxel in queue:  # grows while it is walked through
            for axis, by in ((0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)):
                to = tuple(place + by * (n == axis) for n, place in enumerate(voxel))
                if all(0 <= n < size for n, size in zip(to, mask.shape, strict=True)) and (
                    mask[to] and not expected[to] and cost[to] < level
                ):
                    expected[to] = expected[voxel]
                    queue.append(to)
    labels = meet(cost, seeds, mask, step)
    assert (labels == 1).any() and (labels == 2).any()
    np.testing.assert_array_equal(labels, expected)


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
