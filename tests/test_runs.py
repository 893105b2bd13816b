"""Components kept as runs against scipy.ndimage.label."""

import numpy as np
import pytest
from scipy import ndimage

from lungmill.runs import components, largest_component

IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def noise(shape, share=0.4):
    """Near the threshold of percolation components wind, and many meet late."""
    return np.random.default_rng(3).random(shape) < share


MASKS = [
    noise((20, 30, 37)),
    noise((7, 11, 64), 0.3),
    noise((6, 9, 193), 0.35),
    noise((1, 40, 50), 0.55),
    noise((9, 1, 70), 0.5),
    np.zeros((3, 4, 5), bool),
    np.ones((3, 4, 128), bool),
    np.ascontiguousarray(noise((12, 10, 90)))[:, ::2, 5:80],
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.shape} {mask.mean():.2f}")
@pytest.mark.parametrize("in_plane", [False, True])
def test_components_are_those_of_scipy(mask, in_plane):
    found = components(mask, in_plane=in_plane)
    labels, number = ndimage.label(mask, IN_PLANE if in_plane else None)
    assert len(found) == number
    np.testing.assert_array_equal(found.counts[1:], np.bincount(labels.ravel(), minlength=number + 1)[1:])
    assert found.counts[0] == 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        assert found.box(label) == box
    # Labels are many, painted values are bytes.
    high, low = (found.paint(part).astype(int) for part in np.divmod(np.arange(number + 1), 256))
    np.testing.assert_array_equal(256 * high + low, labels)


def test_parts_columns_and_labels_of_voxels():
    mask = noise((14, 19, 70), 0.33)
    found = components(mask)
    labels, _ = ndimage.label(mask)
    box = (slice(2, 9), slice(5, 19), slice(40, 70))
    for label in np.argsort(found.counts)[-5:]:
        part = labels == label
        np.testing.assert_array_equal(found.part(label), part[found.box(label)])
        np.testing.assert_array_equal(found.part(label, box), part[box])
        np.testing.assert_array_equal(found.columns(label), part.sum(axis=(0, 1)))
    keep = np.arange(len(found.counts)) % 3 == 1
    np.testing.assert_array_equal(found.paint(keep), keep[labels])
    assert found.paint(keep).dtype == bool
    for voxel in np.argwhere(np.ones(mask.shape, bool))[::37]:
        assert found.at(voxel) == labels[tuple(voxel)]


def test_the_largest_component_and_none():
    mask = noise((10, 12, 40), 0.25)
    labels, _ = ndimage.label(mask)
    np.testing.assert_array_equal(largest_component(mask), labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))
    assert not largest_component(np.zeros((3, 4, 5), bool)).any()
