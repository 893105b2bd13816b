"""Closing, widening, drawing and measuring of masks against SciPy and NumPy, on made-up blocks."""

import numpy as np
import pytest
from scipy import ndimage

from lungmill.bits import dilate
from lungmill.body import _describe_components
from lungmill.components import nearest_side
from lungmill.dents import in_closing
from lungmill.mask_statistics import describe_mask
from lungmill.regions import _take_over, close_lungs, project_labels, surroundings
from lungmill.runs import components

LEFT, RIGHT = 2, 1


def smooth(shape, seed, sigma=2.0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (field / field.std()).astype(np.float32)


def two_lungs(shape=(31, 44, 60)):
    """Two rough ellipsoids, a gap of a few blocks between them."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    sides = np.zeros(shape, np.uint8)
    rough = 0.08 * smooth(shape, 1)
    for label, centre in ((RIGHT, -0.4), (LEFT, 0.4)):
        sides[(z / 0.7) ** 2 + (y / 0.6) ** 2 + ((x - centre) / 0.33) ** 2 + rough < 1] = label
    return sides


def test_lungs_are_widened_to_what_is_nearer():
    sides = np.zeros((9, 12, 20), np.uint8)
    sides[3:6, 4:8, 3:9], sides[3:6, 4:9, 10:15] = RIGHT, LEFT  # a block between them
    sides[4, 8, 6], sides[4, 3, 12] = LEFT, RIGHT
    spacing = (2.5, 2.0, 1.8)
    reach = 1.01 * 2.0
    right, left = (ndimage.distance_transform_edt(sides != label, sampling=spacing) for label in (RIGHT, LEFT))
    expected = np.where(np.minimum(right, left) <= reach, np.where(right <= left, RIGHT, LEFT), 0)
    np.testing.assert_array_equal(nearest_side(sides, spacing), expected)


@pytest.mark.parametrize("deeper", [0.0, 1.3])
def test_closings_agree_with_distance_transforms(deeper):
    mask, spacing, radius = smooth((14, 30, 33), 3) > 0.4, (2.1, 1.0, 0.9), 4.2
    beyond = [(7, 7)] * 3
    padded = np.pad(mask, beyond)
    near = ndimage.distance_transform_edt(~padded, sampling=spacing) <= radius
    expected = ndimage.distance_transform_edt(near, sampling=spacing) > radius + deeper
    inside = tuple(slice(7, -7) for _ in range(3))
    np.testing.assert_array_equal(in_closing(mask, spacing, radius, beyond, deeper), expected[inside])


def test_depth_is_taken_over_where_it_is_larger():
    shape, low = (7, 8, 9), (2, 1, 3)
    box = tuple(slice(n, n + size) for n, size in zip(low, shape, strict=True))
    rng = np.random.default_rng(6)
    inner = (20 * smooth(shape, 2)).astype(np.float32)
    shallow, recovered, lung = (rng.random(shape) < 0.5 for _ in range(3))
    sides = rng.integers(0, 3, (12, 12, 14)).astype(np.uint8)
    rejected = rng.random(sides.shape) < 0.2
    side, depth = rng.integers(0, 3, sides.shape).astype(np.uint8), (20 * smooth(sides.shape, 8)).astype(np.float32)
    change = (2.0, 1.5)
    new = inner - np.float32(2.0) * ~shallow + np.float32(1.5) * (shallow & recovered)
    new[((sides[box] != 0) & (sides[box] != LEFT)) | (rejected[box] & ~lung)] = -100
    expected_depth, expected_side = depth.copy(), side.copy()
    expected_depth[box] = np.maximum(depth[box], new)
    expected_side[box][(new > depth[box]) & (new > -50)] = LEFT
    _take_over(inner, shallow, recovered, lung, np.uint8(LEFT), low, change, sides, rejected, side, depth)
    np.testing.assert_array_equal(depth, expected_depth)
    np.testing.assert_array_equal(side, expected_side)


@pytest.mark.parametrize("closing_mm", [0.0, 9.0])
def test_a_box_around_the_lungs_is_wide_enough(closing_mm):
    """Cut to it, the closing gives what it gives on the whole, and beyond it there is no lung."""
    sides = np.pad(two_lungs(), ((0, 40), (37, 21), (19, 33)))  # the lungs lie near the lower end
    hu = np.where(sides > 0, -850, 40).astype(np.int16)
    spacing = (2.2, 2.0, 1.9)
    box = surroundings(sides, spacing, closing_mm)
    assert all(part.start % 2 == 0 for part in box)
    assert sides[box].size < 0.6 * sides.size
    _, whole = close_lungs(sides, hu, spacing, closing_mm)
    side, depth = close_lungs(sides[box].copy(), hu[box].copy(), spacing, closing_mm)
    np.testing.assert_array_equal(depth, whole[box])
    assert set(np.unique(side[depth > 0])) == {RIGHT, LEFT}
    outside = np.ones(sides.shape, bool)
    outside[box] = False
    assert (whole[outside] <= 0).all()


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (1, 3, 2)])
def test_the_border_is_drawn_where_interpolation_puts_it(factors):
    coarse, low = (9, 10, 14), (1, 0, 2)
    # The last blocks are cut by the end of the volume.
    shape = tuple((first + n) * f - (f > 1) for first, n, f in zip(low, coarse, factors, strict=True))
    rng = np.random.default_rng(2)
    volume = rng.integers(-1000, 200, shape).astype(np.int16)
    depth = 4 * smooth(coarse, 5, 1.0)
    sides = np.where(np.arange(14) < 7, RIGHT, LEFT).astype(np.uint8)
    air = np.where(rng.random(coarse) < 0.5, sides, 0).astype(np.uint8)
    solid = np.where(rng.random(coarse) < 0.8, sides[::-1], 0).astype(np.uint8)
    air[4], solid[4, 5] = 0, 0
    sure_mm = 5.0
    out = np.zeros(shape, np.uint8)
    project_labels(volume, -400, air, solid, depth, sure_mm, factors, low, out)

    index = np.indices(shape)
    fine = [n - first * f for n, first, f in zip(index, low, factors, strict=True)]
    block = [n // f for n, f in zip(fine, factors, strict=True)]
    inside = np.all([n >= 0 for n in fine], axis=0)
    block = tuple(np.where(inside, n, 0) for n in block)
    place = [(n - 0.5 * (f - 1)) / f for n, f in zip(fine, factors, strict=True)]
    between = ndimage.map_coordinates(depth.astype(float), place, order=1, mode="nearest")
    agree = (air[block] == solid[block]) | (air[block] == 0)
    sure = (depth[block] > sure_mm) & (solid[block] > 0) & agree
    expected = np.where((volume < -400) & (air[block] > 0), air[block], np.where(between > 0, solid[block], 0))
    expected = np.where(inside, np.where(sure, solid[block], expected), 0)
    clear = np.abs(between) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(out[clear], expected[clear])


@pytest.mark.parametrize("within", [None, (slice(3, 20), slice(2, 30), slice(1, 41))])
def test_masks_are_measured_as_numpy_does(within):
    mask = np.zeros((25, 33, 41), np.uint8)
    mask[4:20, 5:30, 3:17] = np.where(smooth((16, 25, 14), 1) > 0, RIGHT, 0)
    mask[3:18, 2:25, 22:41] = np.where(smooth((15, 23, 19), 2) > 0.3, LEFT, 0)
    found = describe_mask(mask, (2.0, 0.7, 0.9), within=within)
    for name, label in (("right", RIGHT), ("left", LEFT)):
        per_slice = (mask == label).sum(axis=(1, 2)) * 0.7 * 0.9
        np.testing.assert_allclose(found["area_mm2"][name], per_slice, atol=0.051)
        assert found["volume_ml"][name] == pytest.approx(per_slice.sum() * 2.0 / 1000, abs=0.051)
    assert found["bounding_box"] == [[int(n.min()), int(n.max()) + 1] for n in np.nonzero(mask)]
    cut_cm2 = np.count_nonzero(mask[:, :, -1]) * 2.0 * 0.7 / 100
    (touching,) = [flag["detail"] for flag in found["flags"] if flag["code"] == "touches_border"]
    assert touching.endswith(f": {cut_cm2:.0f} cm2 at the left end") and cut_cm2 > 2


def test_components_are_described_as_scipy_does():
    rng = np.random.default_rng(7)
    air = rng.random((6, 11, 13)) < 0.3
    padding = dilate(rng.random(air.shape) < 0.004, (1.0, 1.0, 1.0), 1.0)
    air &= ~padding
    hu = rng.integers(-1024, 3000, air.shape).astype(np.int16)
    sides = rng.integers(0, 5, (3, 6, 7)).astype(np.uint8)
    found = components(air)
    sums, seen, beside = _describe_components(
        found.rows, found.start, found.stop, found.label, len(found.counts), hu, sides, padding
    )
    labels, number = ndimage.label(air)
    index = np.arange(1, number + 1)
    fine = np.repeat(np.repeat(np.repeat(sides, 2, axis=0), 2, axis=1), 2, axis=2)[:6, :11, :13]
    np.testing.assert_array_equal(sums[1:], ndimage.sum_labels(hu.astype(np.int64), labels, index))
    np.testing.assert_array_equal(seen[1:], ndimage.sum_labels(fine >= 3, labels, index))
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    near = ndimage.binary_dilation(padding, cross)
    np.testing.assert_array_equal(beside[1:], ndimage.maximum(near, labels, index) > 0)
