"""Which batches a DataFlow makes: compared with NumPy indexing, for every number of workers and kind of source."""

import functools
import itertools
import os
import threading

import bcolz
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from dataflow_checks import nothing_left, same, time_limit  # noqa: F401

from lungmill.errors import LungmillError
from lungmill.training.dataflow import DataFlow
from lungmill.training.stages import Branch, Keep, Stage
from lungmill.training.views import DelayedView, MultiSourceArray

COUNT = 50
IMAGES = np.random.default_rng(1).integers(-1000, 1000, (COUNT, 3, 4), dtype=np.int16)
NUMBERS = np.arange(COUNT)
WORKERS = [(0, 0), (1, 0), (4, 0), (0, 1), (1, 1), (4, 4)]


def one_epoch(data=(IMAGES, NUMBERS), batch_size=8, **settings):
    return DataFlow(list(data), batch_size, loop_forever=False, **settings)


def add_noise(batch, rng):
    return [batch[0] + rng.normal(size=batch[0].shape), batch[1]]


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
def test_in_order_without_end(nb_io_workers, nb_proc_workers):
    flow = DataFlow([IMAGES, NUMBERS], 8, nb_io_workers, nb_proc_workers, preprocessor=lambda batch: batch)
    assert len(flow) == 7
    epoch = [[IMAGES[i : i + 8], NUMBERS[i : i + 8]] for i in range(0, COUNT, 8)]
    batches = flow.flow()
    assert same(itertools.islice(batches, 17), (epoch * 3)[:17])
    batches.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_random": True},
        {"sample_random": True, "sample_with_replacement": True},
        {"sample_random": True, "sample_weights": NUMBERS % 5},
        {"sample_random": True, "sample_with_replacement": True, "sample_weights": NUMBERS + 1.0},
        {"sample_random": True, "drop_incomplete_batches": True},
    ],
    ids=lambda settings: "+".join(settings),
)
@pytest.mark.parametrize("preprocessor", [None, add_noise], ids=["plain", "noise"])
def test_the_seed_alone_decides(settings, preprocessor):
    reference = [batch for flow in [one_epoch(**settings, rng=5)] for _ in range(2) for batch in flow.flow()]
    for images, numbers in reference:
        np.testing.assert_array_equal(images, IMAGES[numbers])
    flow = one_epoch(**settings, preprocessor=preprocessor, rng=5, nb_io_workers=0)
    expected = [*flow.flow(), *flow.flow()]
    same([[numbers] for _, numbers in expected], [[numbers] for _, numbers in reference])
    for nb_io_workers, nb_proc_workers in WORKERS:
        flow = one_epoch(
            **settings, preprocessor=preprocessor, rng=5, nb_io_workers=nb_io_workers, nb_proc_workers=nb_proc_workers
        )
        assert same([*flow.flow(), *flow.flow()], expected)
    other = one_epoch(**settings, rng=6).flow()
    assert any((first[1] != second[1]).any() for first, second in zip(other, reference, strict=False))


def test_each_epoch_is_another_permutation():
    flow = DataFlow([NUMBERS], 8, sample_random=True, rng=0)
    numbers = np.concatenate([batch[0] for batch in itertools.islice(flow.flow(), 3 * len(flow))]).reshape(3, COUNT)
    for epoch, other in itertools.permutations(numbers, 2):
        np.testing.assert_array_equal(np.sort(epoch), NUMBERS)
        assert (epoch != other).any()
    separate = one_epoch([NUMBERS], sample_random=True, rng=0)
    for epoch in numbers:
        np.testing.assert_array_equal(np.concatenate([batch[0] for batch in separate.flow()]), epoch)


def test_a_flow_left_early_is_followed_by_a_new_epoch():
    whole = DataFlow([NUMBERS], 8, sample_random=True, rng=0)
    second_epoch = next(itertools.islice(whole.flow(), len(whole), None))
    left_early = DataFlow([NUMBERS], 8, sample_random=True, rng=0)
    for _ in left_early.flow():
        break
    assert same([next(left_early.flow())], [second_epoch])


def test_weights_are_proportions_with_replacement():
    weights = np.array([0, 1, 2, 3, 4.0])
    flow = DataFlow(
        [np.arange(5)], 5, 0, sample_random=True, sample_with_replacement=True, sample_weights=weights, rng=0
    )
    draws = np.concatenate([batch[0] for batch in itertools.islice(flow.flow(), 4000)])
    share = weights / weights.sum()
    spread = np.sqrt(share * (1 - share) / len(draws))
    assert (np.abs(np.bincount(draws, minlength=5) / len(draws) - share) <= 5 * spread).all()


def test_weights_order_an_epoch_without_replacement():
    weights = np.array([0, 1, 2, 3, 4.0])
    flow = DataFlow([np.arange(5)], 4, 0, sample_random=True, sample_weights=weights, rng=0)
    assert len(flow) == 1
    epochs = np.stack([batch[0] for batch in itertools.islice(flow.flow(), 4000)])
    assert (np.sort(epochs, axis=1) == [1, 2, 3, 4]).all()
    share = weights / weights.sum()
    spread = np.sqrt(share * (1 - share) / len(epochs))
    assert (np.abs(np.bincount(epochs[:, 0], minlength=5) / len(epochs) - share) <= 5 * spread).all()


def sources_of(folder):
    np.save(folder / "a.npy", IMAGES)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("a", data=IMAGES, chunks=(4, 3, 4))
    bcolz.carray(IMAGES, rootdir=str(folder / "a.bcolz"), chunklen=4, mode="w").flush()
    stored = zarr.create_array(str(folder / "a.zarr"), shape=IMAGES.shape, dtype=IMAGES.dtype, chunks=(4, 3, 4))
    stored[:] = IMAGES
    return {
        "memmap": np.load(folder / "a.npy", mmap_mode="r"),
        "h5py": h5py.File(folder / "a.h5", "r")["a"],
        "zarr": zarr.open_array(str(folder / "a.zarr"), mode="r"),
        "bcolz": bcolz.open(str(folder / "a.bcolz"), mode="r"),
        "view": DelayedView(IMAGES),
        "many": MultiSourceArray([IMAGES[:20], IMAGES[20:]]),
        "list": IMAGES.tolist(),
        "labels": pd.Series(NUMBERS, index=NUMBERS[::-1]),
    }


def test_every_kind_of_source_in_tandem(tmp_path):
    sources = sources_of(tmp_path)
    settings = {"sample_random": True, "sample_with_replacement": True, "rng": 2}
    for nb_proc_workers in (0, 2):
        flow = one_epoch(
            [NUMBERS, *sources.values()],
            7,
            nb_io_workers=3,
            nb_proc_workers=nb_proc_workers,
            preprocessor=list,
            **settings,
        )
        for _ in range(2):
            for numbers, *others in flow.flow():
                for name, found in zip(sources, others, strict=True):
                    expected = NUMBERS[numbers] if name == "labels" else IMAGES[numbers]
                    np.testing.assert_array_equal(found, expected, err_msg=name)
                    assert type(found) is np.ndarray and found.flags.writeable and found.flags.c_contiguous, name
    sources["h5py"].file.close()


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
def test_batches_belong_to_the_consumer(nb_io_workers, nb_proc_workers):
    source = IMAGES.copy()
    flow = one_epoch(
        [source], 4, nb_io_workers=nb_io_workers, nb_proc_workers=nb_proc_workers, preprocessor=lambda batch: batch
    )
    kept = []
    for (batch,) in flow.flow():
        batch += 1
        kept.append(batch)
    np.testing.assert_array_equal(np.concatenate(kept), IMAGES + 1)
    np.testing.assert_array_equal(source, IMAGES)


def everything(batch):
    """A batch of whatever shapes: growing, in place, reversed, transposed, read-only, nested, empty, no array."""
    images, numbers = batch
    images += 1
    return {
        "grown": np.repeat(images, 1 + 400 * numbers[0], axis=0),
        "in place": (images, images[1:], images[:, ::-1], images.transpose(1, 0, 2), images[::2]),
        "twice": [images, images],
        "read only": np.broadcast_to(np.float32(2.5), (3, 5)),
        "empty": images[:0],
        "dates": numbers.astype("M8[D]"),
        "objects": np.array([None, "a", (1, 2)], object),
        "words": ["a", 1.5, None, True],
    }


def leaves(thing):
    if isinstance(thing, dict):
        return [leaf for name in thing for leaf in leaves(thing[name])]
    return [leaf for part in thing for leaf in leaves(part)] if isinstance(thing, (list, tuple)) else [thing]


def test_a_preprocessor_may_return_anything():
    plain, shared = (list(one_epoch(nb_proc_workers=n, preprocessor=everything).flow()) for n in (0, 2))
    for expected, found in zip(plain, shared, strict=True):
        assert expected.keys() == found.keys() and found["words"] == expected["words"]
        for one, other in zip(leaves(expected), leaves(found), strict=True):
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)
            if isinstance(other, np.ndarray):
                assert other.dtype == one.dtype and other.flags.writeable


PIECES = [
    lambda array, rng: array,
    lambda array, rng: array[1:],
    lambda array, rng: array[::-1],
    lambda array, rng: array.T,
    lambda array, rng: np.repeat(array, 2, axis=0),
    lambda array, rng: array + 1,
    lambda array, rng: rng.integers(9, size=rng.integers(200_000)),
]


def some_pieces(batch, rng):
    return [PIECES[rng.integers(len(PIECES))](batch[rng.integers(len(batch))], rng) for _ in range(4)]


def changed_in_place(batch, rng):
    batch[0][rng.integers(len(batch[0]))] = 7
    return some_pieces(batch, rng)


def test_large_arrays_through_several_processes():
    large = np.random.default_rng(2).integers(-99, 99, (120, 3000), dtype=np.int32)

    def batches(own_workers):
        steps = [changed_in_place, *[Stage(some_pieces, nb_workers=own_workers)] * 2]
        settings = {"nb_proc_workers": own_workers or 0, "preprocessor": steps, "rng": 8}
        return DataFlow([large, large[:, 0]], 6, loop_forever=False, **settings).flow()

    assert same(batches(2), list(batches(None)))


def process_id(batch):
    return [*batch, np.full(len(batch[0]), os.getpid())]


@pytest.mark.parametrize("leading", [0, 1])
def test_stages_have_their_own_workers_and_keep_the_order(leading):
    preprocessor = [process_id, Stage(process_id, nb_workers=2), process_id, Stage(process_id, nb_workers=3)]
    flow = one_epoch(batch_size=1, nb_io_workers=2, nb_proc_workers=leading, preprocessor=preprocessor)
    batches = list(flow.flow())
    numbers, first, second, third, fourth = (np.concatenate(part) for part in list(zip(*batches, strict=True))[1:])
    np.testing.assert_array_equal(numbers, NUMBERS)
    np.testing.assert_array_equal(second, third)
    groups = [set(first), set(second), set(fourth)]
    assert len(groups[0]) == 1 and (os.getpid() in groups[0]) == (leading == 0)
    assert len(groups[1]) <= 2 and len(groups[2]) <= 3
    assert len(set.union(*groups)) == sum(map(len, groups)), "each process belongs to one stage"


def is_odd(element):
    return element[1] % 2 == 1


def as_often_as_its_number_modulo_3(element):
    image, number = element
    for copy in range(number % 3):
        yield [image + copy, number]


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
def test_filters_and_branches_reform_batches(nb_io_workers, nb_proc_workers):
    kept = [number for number in NUMBERS if number % 2]
    grown = [(number, copy) for number in kept for copy in range(number % 3)]
    expected = [np.array([IMAGES[number] + copy for number, copy in grown]), np.array([number for number, _ in grown])]
    expected = [[part[i : i + 6] for part in expected] for i in range(0, len(grown), 6)]
    workers = {"nb_io_workers": nb_io_workers, "nb_proc_workers": nb_proc_workers}
    preprocessor = [Keep(is_odd), Branch(as_often_as_its_number_modulo_3)]
    assert same(one_epoch(batch_size=6, preprocessor=preprocessor, **workers).flow(), expected)
    assert len(expected[-1][0]) < 6
    whole = one_epoch(batch_size=6, preprocessor=preprocessor, drop_incomplete_batches=True, **workers)
    assert same(whole.flow(), expected[:-1])


def test_a_batch_can_be_dropped():
    flow = one_epoch(batch_size=5, nb_proc_workers=2, preprocessor=lambda batch: batch if batch[1][0] % 10 else None)
    assert [batch[1][0] for batch in flow.flow()] == [5, 15, 25, 35, 45]


def test_an_endless_flow_that_drops_everything_is_an_error():
    flow = DataFlow([NUMBERS], 8, preprocessor=Keep(lambda element: False))
    with pytest.raises(LungmillError, match="left nothing of epoch 0"):
        next(flow.flow())
    assert list(one_epoch(preprocessor=Keep(lambda element: False)).flow()) == []


def test_random_numbers_of_a_step_are_its_own():
    draws = [functools.partial(add_noise), Stage(add_noise, nb_workers=1)]
    once = next(one_epoch(preprocessor=draws[:1], rng=1).flow())[0] - IMAGES[:8]
    twice = next(one_epoch(preprocessor=draws, rng=1).flow())[0] - IMAGES[:8]
    bound = functools.partial(add_noise, rng=np.random.default_rng(3))
    theirs = next(one_epoch(preprocessor=bound, rng=1).flow())[0] - IMAGES[:8]
    assert (twice != 2 * once).any() and (twice != once).any()
    np.testing.assert_allclose(theirs, np.random.default_rng(3).normal(size=theirs.shape), atol=1e-9)


def test_workers_do_not_repeat_each_others_global_random_numbers():
    def global_noise(batch):
        return [np.random.random(3)]  # noqa: NPY002

    runs = [np.concatenate(list(one_epoch(nb_proc_workers=n, preprocessor=global_noise, rng=1).flow())) for n in (1, 3)]
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0])) == runs[0].size


def test_consumed_in_a_thread():
    found = []
    flow = one_epoch(nb_proc_workers=2, preprocessor=add_noise, rng=1)
    consumer = threading.Thread(target=lambda: found.extend(flow.flow()))
    consumer.start()
    consumer.join()
    assert same(found, one_epoch(preprocessor=add_noise, rng=1).flow())


def test_several_flows_at_once():
    flows = [
        DataFlow([IMAGES, NUMBERS], 8, nb_proc_workers=n, sample_random=True, rng=7, preprocessor=add_noise)
        for n in (0, 1, 2)
    ]
    running = [flow.flow() for flow in flows]
    for batches in itertools.islice(zip(*running, strict=True), 10):
        assert same(batches[1:], [batches[0], batches[0]])
    again = [flows[1].flow() for _ in range(2)]
    first, second = (next(batches) for batches in again)
    assert (first[1] != second[1]).any()
    for batches in running + again:
        batches.close()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"data": IMAGES}, r"write \[array\]"),
        ({"data": []}, "list of arrays"),
        ({"data": [IMAGES, NUMBERS[:-1]]}, r"different lengths: \[50, 49\]"),
        ({"data": [np.float32(3)]}, r"data\[0\] has no length"),
        ({"data": [NUMBERS[:0]]}, "no elements"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 51, "drop_incomplete_batches": True}, "no complete batch of 51"),
        ({"nb_io_workers": -1}, "nb_io_workers is -1"),
        ({"nb_proc_workers": "2"}, "nb_proc_workers is '2'"),
        ({"nb_batches_ahead": -1}, "nb_batches_ahead"),
        ({"sample_weights": np.ones(COUNT)}, "sample_weights needs sample_random=True"),
        ({"sample_with_replacement": True}, "sample_with_replacement needs sample_random=True"),
        ({"sample_random": True, "sample_weights": np.ones(3)}, "one weight for each of 50"),
        ({"sample_random": True, "sample_weights": -NUMBERS}, "from 0"),
        ({"sample_random": True, "sample_weights": NUMBERS * 0}, "above 0"),
        ({"sample_random": True, "sample_weights": NUMBERS * np.nan}, "finite"),
        ({"rng": "a"}, "rng is 'a'"),
        ({"preprocessor": 3}, "needs a function"),
        ({"start_method": "thread"}, "start_method is 'thread'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(LungmillError, match=words):
        DataFlow(**({"data": [IMAGES], "batch_size": 8} | settings))
    with pytest.raises(LungmillError, match="nb_workers"):
        Stage(add_noise, nb_workers=0)
