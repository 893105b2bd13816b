"""A DataFlow resumed from its state goes on exactly where the consumer was, whatever had been read ahead."""

import itertools
import json

import numpy as np
import pytest
from dataflow_checks import nothing_left, same, time_limit  # noqa: F401

from lungmill.errors import LungmillError
from lungmill.training.dataflow import DataFlow
from lungmill.training.stages import Branch, Keep, Stage

COUNT = 30
NUMBERS = np.arange(COUNT)
BATCH = 4


def with_noise(batch, rng):
    return [*batch, rng.normal(size=len(batch[0]))]


def some_of_it(element, rng):
    return [element] * rng.integers(4)


WAYS = {
    "in order": {},
    "shuffled": {"sample_random": True},
    "with replacement": {"sample_random": True, "sample_with_replacement": True},
    "weighted": {"sample_random": True, "sample_with_replacement": True, "sample_weights": NUMBERS + 1},
    "weighted order": {"sample_random": True, "sample_weights": NUMBERS % 3},
    "complete": {"sample_random": True, "drop_incomplete_batches": True},
    "noise": {"sample_random": True, "preprocessor": with_noise},
    "batches dropped": {"sample_random": True, "preprocessor": lambda batch: batch if batch[0][0] % 3 else None},
    "filtered": {"sample_random": True, "preprocessor": [Keep(lambda element: element[0] % 3), with_noise]},
    "branched": {"sample_random": True, "preprocessor": [Branch(some_of_it), Keep(lambda element: element[0] % 5)]},
    "branched, complete": {"preprocessor": [Branch(some_of_it)], "drop_incomplete_batches": True},
}


def saved(flow):
    return json.loads(json.dumps(flow.state_dict()))


@pytest.mark.parametrize("loop_forever", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_resumes_at_every_place(way, loop_forever):
    settings = WAYS[way] | {"loop_forever": loop_forever}
    reference = DataFlow([NUMBERS], BATCH, rng=3, **settings)
    batches, states = [], [saved(reference)]

    def all_batches(flow):
        while True:
            yield from flow.flow()

    wanted = 3 * len(reference)
    for batch in itertools.islice(all_batches(reference), wanted):
        batches.append(batch)
        states.append(saved(reference))
    for place, state in enumerate(states[: 2 * len(reference)]):
        resumed = DataFlow([NUMBERS], BATCH, nb_io_workers=place % 3, rng=None, **settings)
        resumed.load_state_dict(state)
        assert saved(resumed) == state
        rest = all_batches(resumed)
        assert same(itertools.islice(rest, wanted - place), batches[place:])
        assert saved(resumed) == states[-1]
        rest.close()


def test_the_state_is_what_was_received_not_what_was_read():
    preprocessor = [Keep(lambda element: element[0] % 3), Stage(with_noise, nb_workers=2)]
    settings = {"preprocessor": preprocessor, "sample_random": True, "nb_io_workers": 3}
    expected = list(itertools.islice(DataFlow([NUMBERS], BATCH, rng=3, **settings).flow(), 15))
    resumed = DataFlow([NUMBERS], BATCH, rng=3, **settings)
    found = []
    for _ in range(5):
        state = saved(resumed)
        resumed = DataFlow([NUMBERS], BATCH, **settings)
        resumed.load_state_dict(state)
        found += itertools.islice(resumed.flow(), 3)
    assert same(found, expected)


def test_after_an_epoch_the_state_is_the_next_one():
    flow = DataFlow([NUMBERS], BATCH, loop_forever=False, sample_random=True, rng=1)
    list(flow.flow())
    resumed = DataFlow([NUMBERS], BATCH, loop_forever=False, sample_random=True)
    resumed.load_state_dict(saved(flow))
    assert same(resumed.flow(), flow.flow())
    assert saved(resumed)["epoch"] == saved(flow)["epoch"] == 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data": [NUMBERS[:-1]]}, "length was 30 and is 29"),
        ({"batch_size": 5}, "batch_size was 4 and is 5"),
        ({"sample_random": False}, "sample_random was True and is False"),
        ({"sample_with_replacement": True}, "sample_with_replacement was False and is True"),
        ({"sample_weights": NUMBERS}, "sample_weights was None"),
        ({"drop_incomplete_batches": True}, "drop_incomplete_batches was False and is True"),
    ],
)
def test_a_state_of_something_else_is_refused(change, words):
    settings = {"data": [NUMBERS], "batch_size": BATCH, "sample_random": True, "rng": 1}
    state = saved(DataFlow(**settings))
    other = DataFlow(**(settings | change))
    before = saved(other)
    with pytest.raises(LungmillError, match=words):
        other.load_state_dict(state)
    assert saved(other) == before


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"epoch": -1}, {"batch": 8}, {"skip": "1"}, {"seed": None}, {"settings": 3}, {"more": 1}]
)
def test_a_damaged_state_is_refused(change):
    flow = DataFlow([NUMBERS], BATCH)
    with pytest.raises(LungmillError, match="state"):
        flow.load_state_dict(saved(flow) | change)
    with pytest.raises(LungmillError, match="state"):
        flow.load_state_dict(None)
