import numpy as np
import pytest
from patch_cohort import CHUNK, PATIENTS, make_cohort, mask_of, volume_of

pytest.importorskip("dask.array")

from lungmill.cohort import open_cohort
from lungmill.training.dask_data import dask_image, dask_mask, dask_patches
from lungmill.training.patch_source import PatchSource
from lungmill.training.sliding_window import SlidingWindows
from lungmill.training.views import DelayedView


@pytest.fixture(scope="module", params=["zarr", "npy"])
def cohort(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask") / "results"
    return open_cohort(make_cohort(folder, ["npy", request.param], annotated=False))


def test_image_and_mask_by_the_chunks_of_the_store(cohort):
    for name in PATIENTS:
        image, mask = dask_image(cohort[name]), dask_mask(cohort[name])
        assert (image.dtype, mask.dtype) == (np.int16, np.uint8)
        assert image.chunksize == (tuple(min(CHUNK, n) for n in image.shape) if _in_zarr(cohort) else image.shape)
        np.testing.assert_array_equal(image.compute(scheduler="threads"), volume_of(name))
        lung = image[mask > 0]
        np.testing.assert_array_equal(lung.compute(scheduler="sync"), volume_of(name)[mask_of(name) > 0])
        np.testing.assert_array_equal(image[3:9, ::2, -5:].compute(scheduler="sync"), volume_of(name)[3:9, ::2, -5:])


def _in_zarr(cohort):
    return "zarr" in cohort["anna"].paths


def test_chunks_and_names(cohort):
    patient = cohort["anna"]
    assert dask_image(patient, 10).chunksize == (10, 10, 10)
    assert dask_image(patient, (30, 8, 8)).numblocks == (1, 6, 7)
    assert dask_image(patient).name == dask_image(cohort["anna"]).name
    assert len({dask_image(patient).name, dask_mask(patient).name, dask_image(cohort["bert"]).name}) == 3


def test_only_the_chunks_that_are_needed_are_read(cohort, monkeypatch):
    read = []
    getitem = DelayedView.__getitem__
    monkeypatch.setattr(DelayedView, "__getitem__", lambda view, index: read.append(index) or getitem(view, index))
    image = dask_image(cohort["anna"], CHUNK)
    assert not read
    image[:5, :5, :40].compute(scheduler="sync")
    assert len(read) == 3


def test_another_process_computes(cohort):
    image = dask_image(cohort["dora"])
    assert int(image.astype(np.int64).sum().compute(scheduler="processes", num_workers=1)) == int(
        volume_of("dora").astype(np.int64).sum()
    )


def test_patches_and_windows(cohort):
    source = PatchSource(cohort, (6, 7, 8), length=50)
    patches = dask_patches(source.images, chunks=20)
    assert patches.chunks[0] == (20, 20, 10) and patches.shape == (50, 6, 7, 8)
    np.testing.assert_array_equal(patches[[3, 45, 4]].compute(scheduler="sync"), source.images[[3, 45, 4]])
    windows = SlidingWindows(cohort["anna"].image, (16, 20, 20))
    means = dask_patches(windows).mean(axis=(1, 2, 3)).compute(scheduler="threads")
    np.testing.assert_allclose(means, [window.mean() for window in windows], rtol=1e-6)
    plain = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(dask_patches(plain, chunks=4).compute(scheduler="sync"), plain)
