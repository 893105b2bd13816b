import itertools

import numpy as np
import pytest
from patch_cohort import limit, make_cohort

pytest.importorskip("batchgenerators")

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.transforms.spatial_transforms import MirrorTransform

from lungmill.cohort import open_cohort
from lungmill.training.batchgenerators_data import PatchLoader
from lungmill.training.errors import ArrayError
from lungmill.training.patch_source import PatchSource

SECONDS = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    results = make_cohort(tmp_path_factory.mktemp("bg") / "results", ["npy", "zarr"], annotated=False)
    return PatchSource(open_cohort(results), (6, 7, 8), length=50)


def batches_of(loader, processes, number=None):
    """The batches that a MultiThreadedAugmenter makes with some processes."""
    with limit(SECONDS):
        augmenter = MultiThreadedAugmenter(loader, None, processes, seeds=list(range(processes)))
        try:
            return list(augmenter if number is None else itertools.islice(augmenter, number))
        finally:
            augmenter._finish()


def test_batches_are_as_the_transforms_want_them(source):
    batch = next(PatchLoader(source, 8))
    assert set(batch) == {"data", "seg", "class", "keys"}
    assert batch["data"].shape == batch["seg"].shape == (8, 1, 6, 7, 8)
    assert batch["data"].dtype == batch["seg"].dtype == np.float32
    np.testing.assert_array_equal(batch["data"][:, 0], source.images[:8])
    np.testing.assert_array_equal(batch["seg"][:, 0], source.masks[:8])
    np.testing.assert_array_equal(batch["class"], source.labels[:8])
    assert "seg" not in next(PatchLoader(source, 8, masks=False))
    mirrored = next(SingleThreadedAugmenter(PatchLoader(source, 8), MirrorTransform(axes=(2,), p_per_sample=1)))
    flipped = 0
    for got, seg, image, mask in zip(
        mirrored["data"][:, 0], mirrored["seg"][:, 0], source.images[:8], source.masks[:8], strict=True
    ):
        if (got == image).all():
            np.testing.assert_array_equal(seg, mask)
        else:
            np.testing.assert_array_equal(got, image[..., ::-1])
            np.testing.assert_array_equal(seg, mask[..., ::-1])
            flipped += 1
    assert flipped


@pytest.mark.parametrize("incomplete", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_has_each_patch_once_for_any_number_of_processes(source, processes, incomplete):
    batches = batches_of(PatchLoader(source, 8, processes, return_incomplete=incomplete), processes)
    keys = np.concatenate([batch["keys"] for batch in batches])
    np.testing.assert_array_equal(keys, np.arange(50 if incomplete else 48))
    for batch in batches:
        np.testing.assert_array_equal(batch["data"][:, 0], source.images[batch["keys"]])


@pytest.mark.parametrize("processes", [1, 2])
def test_endless_batches_go_from_epoch_to_epoch(source, processes):
    batches = batches_of(PatchLoader(source, 8, processes, infinite=True), processes, 15)
    expected = [(epoch, first) for epoch in range(3) for first in range(0, 48, 8)]
    for batch, (epoch, first) in zip(batches, expected, strict=False):
        np.testing.assert_array_equal(batch["data"][:, 0], source.epoch(epoch).images[first : first + 8])


def test_shuffling_depends_on_the_seed(source):
    first, again, other = (
        np.concatenate([batch["keys"] for batch in PatchLoader(source, 10, seed_for_shuffle=seed, shuffle=True)])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert sorted(first) == sorted(other) == list(range(50))
    assert (first != other).any()


def test_other_arrays(source):
    arrays = {"data": source.images, "case": np.arange(50)}
    batch = next(PatchLoader(arrays, 5, infinite=True))
    np.testing.assert_array_equal(batch["data"][:, 0], source.images[batch["case"]])
    np.testing.assert_array_equal(batch["case"], batch["keys"])
    with pytest.raises(ArrayError, match='"data" among them'):
        PatchLoader({"seg": source.masks}, 5)
    with pytest.raises(ArrayError, match="lengths"):
        PatchLoader({"data": source.images, "x": np.arange(3)}, 5)
    with pytest.raises(ArrayError, match="no batch of 51"):
        PatchLoader(source, 51, infinite=True)
