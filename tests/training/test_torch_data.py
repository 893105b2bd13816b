import pickle

import numpy as np
import pytest
from patch_cohort import limit, make_cohort

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from lungmill.cohort import open_cohort  # noqa: E402
from lungmill.training.dataflow import DataFlow  # noqa: E402
from lungmill.training.errors import ArrayError  # noqa: E402
from lungmill.training.patch_source import PatchSource  # noqa: E402
from lungmill.training.stages import Keep  # noqa: E402
from lungmill.training.torch_data import ArrayDataset, FlowDataset, PatchDataset, _share_out  # noqa: E402
from lungmill.training.views import DelayedView  # noqa: E402

SECONDS = 60


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return open_cohort(make_cohort(tmp_path_factory.mktemp("torch") / "results", ["npy", "zarr"], annotated=False))


@pytest.fixture
def source(cohort):
    return PatchSource(cohort, (6, 7, 8), length=50)


def loader(dataset, **options):
    """A DataLoader that does not wait for ever for its workers."""
    return DataLoader(dataset, timeout=SECONDS if options.get("num_workers") else 0, **options)


def add_one(batch):
    image, label = batch
    return [image + 1, label]


def test_elements_are_tensors_of_the_arrays_dtype(source):
    dataset = ArrayDataset(source.images, source.masks, source.labels)
    image, mask, label = dataset[3]
    assert len(dataset) == 50
    assert (image.dtype, mask.dtype, type(label)) == (torch.int16, torch.uint8, int)
    np.testing.assert_array_equal(image.numpy(), source.images[3])
    np.testing.assert_array_equal(mask.numpy(), source.masks[3])
    assert label == source.labels[3]
    assert torch.equal(ArrayDataset(source.images)[-1], torch.from_numpy(source.images[49]))
    with pytest.raises(IndexError):
        dataset[50]
    with pytest.raises(ArrayError, match=r"lengths \[50, 49\]"):
        ArrayDataset(source.images, source.labels[1:])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_gives_the_same_batches_for_any_number_of_workers(source, workers):
    arrays = [source.images, source.labels, DelayedView(np.arange(50))]
    dataset = ArrayDataset(*arrays, transform=lambda image, *others: (image * 2, *others))
    generator = torch.Generator().manual_seed(1)
    seen = []
    for image, label, number in loader(dataset, batch_size=8, shuffle=True, generator=generator, num_workers=workers):
        np.testing.assert_array_equal(image, 2 * source.images[number.numpy()])
        np.testing.assert_array_equal(label, source.labels[number.numpy()])
        seen += number.tolist()
    assert seen == torch.randperm(50, generator=_after_loader_seed(1)).tolist()


def _after_loader_seed(seed):
    """The generator as a DataLoader leaves it to its sampler: one number is drawn for the workers before."""
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}])
def test_patches_of_each_epoch(source, options):
    dataset = PatchDataset(source, masks=True)
    batches = loader(dataset, batch_size=16, **options)
    for epoch in (0, 1, 3):
        dataset.set_epoch(epoch)
        images, masks, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        expected = source.epoch(epoch)
        np.testing.assert_array_equal(images, expected.images[:])
        np.testing.assert_array_equal(masks, expected.masks[:])
        np.testing.assert_array_equal(labels, expected.labels)


def test_a_batch_is_one_read(source, monkeypatch):
    reads = []
    read = PatchSource._read
    monkeypatch.setattr(PatchSource, "_read", lambda *arguments: reads.append(1) or read(*arguments))
    batch = next(iter(loader(PatchDataset(source), batch_size=10)))
    assert len(batch[0]) == 10 and len(reads) == 1


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_out_the_batches_of_a_flow(source, random, workers):
    def flow():
        arrays = [source.images, source.labels]
        return DataFlow(arrays, 8, loop_forever=False, sample_random=random, preprocessor=add_one, rng=5)

    expected = list(flow().flow())
    dataset = FlowDataset(flow())
    assert len(dataset) == len(expected) == 7
    for _ in range(2):  # every iteration is the same epoch
        for batches in (list(dataset), list(loader(dataset, batch_size=None, num_workers=workers))):
            assert len(batches) == len(expected)
            for batch, reference in zip(batches, expected, strict=True):
                assert all(torch.is_tensor(array) for array in batch)
                for array, other in zip(batch, reference, strict=True):
                    np.testing.assert_array_equal(array.numpy(), other)


def test_epochs_of_a_flow(source):
    flow = DataFlow([source.images, source.labels], 8, loop_forever=False, sample_random=True, rng=5)
    dataset = FlowDataset(DataFlow([source.images, source.labels], 8, loop_forever=False, sample_random=True, rng=5))
    batches = loader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for batch, reference in zip(batches, flow.flow(), strict=True):
            np.testing.assert_array_equal(batch[0].numpy(), reference[0])


def test_a_flow_that_loops_goes_on_over_the_end_of_the_epoch(source):
    def flow():
        return DataFlow([source.images, source.labels], 8, sample_random=True, rng=5)

    dataset = FlowDataset(flow())
    batches = iter(loader(dataset, batch_size=None, num_workers=2))
    with limit(SECONDS):
        for _, batch, reference in zip(range(20), batches, flow().flow(), strict=False):
            np.testing.assert_array_equal(batch[0].numpy(), reference[0])
    del batches
    with pytest.raises(TypeError, match="no length"):
        len(dataset)


def test_an_error_in_a_worker_reaches_the_loop(source):
    def fail(batch):
        raise KeyError("no such thing")

    dataset = FlowDataset(DataFlow([source.images], 8, preprocessor=fail))
    with pytest.raises(Exception, match="no such thing"):
        list(loader(dataset, batch_size=None, num_workers=1))


def test_a_filter_needs_one_worker(source):
    def flow():
        return DataFlow([source.images, source.labels], 8, loop_forever=False, preprocessor=Keep(_is_one))

    expected = [batch[0] for batch in flow().flow()]
    dataset = FlowDataset(flow())
    for workers in (0, 1):
        got = [batch[0].numpy() for batch in loader(dataset, batch_size=None, num_workers=workers)]
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ArrayError, match="num_workers=0 or 1"):  # in the worker; torch takes 5 s each to end those
        _share_out(flow(), 1, 2)
    with pytest.raises(ArrayError, match="is no DataFlow"):
        FlowDataset(source)


def _is_one(element):
    return element[1] == 1


def test_datasets_travel_to_workers_that_are_spawned(source):
    dataset = pickle.loads(pickle.dumps(ArrayDataset(source.images, source.labels)))
    np.testing.assert_array_equal(dataset[4][0], source.images[4])
    assert len(pickle.dumps(PatchDataset(source))) < 20000
