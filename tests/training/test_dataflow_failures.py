"""What goes wrong surfaces in the consumer, with the element and the traceback; nothing hangs and nothing is left."""

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback

import numpy as np
import pytest
import zarr
from dataflow_checks import nothing_left, open_slots, same, time_limit, wait_until  # noqa: F401
from dataflow_program import worker_dies

from lungmill.errors import LungmillError
from lungmill.training.dataflow import DataFlow
from lungmill.training.failures import FlowError
from lungmill.training.stages import Branch, Keep, Stage

NUMBERS = np.arange(200)
WORKERS = [(0, 0), (1, 0), (3, 0), (0, 2), (2, 2)]


class OddError(Exception):
    """Cannot be made again from its pickle."""

    def __init__(self, code, place):
        super().__init__(f"{code} at {place}")


class UnreadableAt:
    """An array that cannot read one of its elements."""

    def __init__(self, index):
        self.index = index

    def __len__(self):
        return len(NUMBERS)

    def __getitem__(self, indices):
        if self.index in indices:
            raise OSError("bad sector")
        return NUMBERS[indices]


def fails_at_37(batch):
    if 37 in batch[0]:
        raise ValueError("no 37 please")
    return batch


def consume(flow):
    """Batches until the flow fails, and the error."""
    batches = []
    with pytest.raises(FlowError) as caught:
        for batch in flow.flow():
            batches.append(batch)
    return batches, caught.value


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
def test_reading_fails_with_the_element(nb_io_workers, nb_proc_workers):
    data = [NUMBERS, UnreadableAt(37)]
    flow = DataFlow(
        data, 8, nb_io_workers, nb_proc_workers, sample_random=True, rng=4, preprocessor=lambda batch: batch
    )
    order = np.concatenate(
        [batch[0] for batch in DataFlow([NUMBERS], 8, 0, rng=4, sample_random=True, loop_forever=False).flow()]
    )
    batches, error = consume(flow)
    place = int(np.flatnonzero(order == 37)[0]) // 8
    assert len(batches) == place, "every batch before it has come"
    assert (error.index, error.epoch, error.batch) == (37, 0, place)
    assert error.indices == order[place * 8 : place * 8 + 8].tolist()
    assert isinstance(error.__cause__, OSError)
    assert "reading data[1] failed at element 37" in str(error) and "bad sector" in str(error)
    assert "__getitem__" in "".join(traceback.format_exception(error))


def test_a_damaged_chunk_is_named(tmp_path):
    store = zarr.create_array(str(tmp_path / "a.zarr"), shape=(40, 5), chunks=(4, 5), dtype="i4")
    store[:] = 7
    chunk = next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file() and "c/5/" in str(path))
    chunk.write_bytes(b"no chunk")
    _, error = consume(DataFlow([zarr.open_array(str(tmp_path / "a.zarr"), mode="r")], 8))
    assert (error.index, error.batch) == (20, 2)


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
def test_a_preprocessor_fails_with_traceback_and_indices(nb_io_workers, nb_proc_workers):
    batches, error = consume(DataFlow([NUMBERS], 8, nb_io_workers, nb_proc_workers, preprocessor=fails_at_37))
    assert same(batches, [[NUMBERS[i : i + 8]] for i in range(0, 32, 8)])
    assert (error.index, error.epoch, error.batch, error.indices) == (None, 0, 4, list(range(32, 40)))
    assert isinstance(error.__cause__, ValueError) and str(error.__cause__) == "no 37 please"
    assert "stage fails_at_37 failed at batch 4 of epoch 0" in str(error) and "\n" not in str(error)
    shown = "".join(traceback.format_exception(error))
    assert 'raise ValueError("no 37 please")' in shown and "in fails_at_37" in shown


@pytest.mark.parametrize("nb_proc_workers", [0, 2])
@pytest.mark.parametrize("step", [Keep, Branch])
def test_a_function_of_elements_fails_with_the_element(step, nb_proc_workers):
    def picky(element):
        if element[0] == 37:
            raise KeyError("37")
        return [element]

    _, error = consume(DataFlow([NUMBERS], 8, 1, nb_proc_workers, preprocessor=[step(picky)]))
    assert (error.index, error.batch) == (37, 4) and isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize("nb_proc_workers", [0, 2])
def test_a_later_stage_names_the_elements_that_are_left(nb_proc_workers):
    steps = [Keep(lambda element: element[0] % 4 == 1), fails_at_37]
    _, error = consume(DataFlow([NUMBERS], 8, 1, nb_proc_workers, preprocessor=steps))
    assert (error.batch, error.indices) == (4, [33, 37])


def raises_odd_error(batch):
    raise OddError(3, "here")


def exits(batch):
    sys.exit("bye")


def returns_what_cannot_be_pickled(batch):
    return [lambda: None]


def returns_too_few(batch):
    return [batch[0][:-1]]


@pytest.mark.parametrize(
    "preprocessor, words",
    [
        (raises_odd_error, "OddError: 3 at here"),
        (exits, "SystemExit: bye"),
        ([Stage(returns_what_cannot_be_pickled, nb_workers=1)], "handing on the result of stage returns_what"),
        ([returns_too_few, Keep(lambda element: True)], "the step before returned something else"),
        ([Keep(lambda element: True), lambda batch: {"a": 1}], "the last step has to return a list of arrays"),
        (lambda: None, "takes 0 positional arguments"),
    ],
)
@pytest.mark.parametrize("nb_proc_workers", [0, 1])
def test_other_ways_to_fail(preprocessor, words, nb_proc_workers):
    batches, error = consume(DataFlow([NUMBERS], 8, 1, nb_proc_workers, preprocessor=preprocessor))
    assert batches == [] and words in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "how, words", [(signal.SIGKILL, "SIGKILL (the system kills"), (signal.SIGUSR1, "SIGUSR1"), (0, "exit code 7")]
)
def test_a_worker_that_dies(how, words):
    batches, error = consume(DataFlow([NUMBERS], 8, 1, 2, preprocessor=worker_dies(how)))
    assert len(batches) == 3
    assert words in str(error) and error.batch == 3 and error.indices == list(range(24, 32))


def test_a_worker_killed_while_it_waits():
    flow = DataFlow([NUMBERS], 8, 1, 2, preprocessor=lambda batch: batch)
    batches = flow.flow()
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(FlowError, match="SIGKILL"):
        for _ in batches:
            pass


def endless(nb_io_workers=2, nb_proc_workers=2):
    return DataFlow([NUMBERS], 8, nb_io_workers, nb_proc_workers, preprocessor=lambda batch: batch).flow()


def nobody_is_left():
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("lungmill")]
    return not names and not multiprocessing.active_children() and not open_slots("self")


def leave_by_break():
    for _ in endless():
        break


def leave_by_close():
    batches = endless()
    next(batches)
    batches.close()
    batches.close()


def leave_by_forgetting_a_cycle():
    batches = endless()
    holder = {"batches": batches}
    holder["self"] = holder
    next(batches)
    del batches, holder
    gc.collect()


def leave_by_an_exception():
    with pytest.raises(ZeroDivisionError):
        for batch in endless():
            batch[0][0] = 1 // 0


def leave_before_the_first_batch():
    batches = endless()
    del batches


@pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_close, leave_by_forgetting_a_cycle, leave_by_an_exception, leave_before_the_first_batch],
)
def test_leaving_early_leaves_nothing(leave):
    leave()
    # The garbage collector may have come by in a thread of the flow, which then is the last to end.
    wait_until(nobody_is_left)


def test_leaving_does_not_wait_for_a_busy_worker():
    def busy_later(batch):
        if batch[0][0] >= 16:
            time.sleep(600)
        return batch

    batches = DataFlow([NUMBERS], 8, 1, 2, preprocessor=busy_later).flow()
    assert [batch[0][0] for batch in itertools.islice(batches, 2)] == [0, 8]
    batches.close()
    assert nobody_is_left()


class Counting:
    """An array that counts how often it was read."""

    reads = 0

    def __len__(self):
        return len(NUMBERS)

    def __getitem__(self, indices):
        self.reads += 1
        return NUMBERS[indices]


@pytest.mark.parametrize("nb_io_workers, nb_proc_workers", WORKERS)
@pytest.mark.parametrize("ahead", [0, 3])
def test_what_is_read_ahead_is_bounded(nb_io_workers, nb_proc_workers, ahead):
    source = Counting()
    flow = DataFlow(
        [source], 4, nb_io_workers, nb_proc_workers, preprocessor=lambda batch: batch, nb_batches_ahead=ahead
    )
    batches = flow.flow()
    for received in (1, 2, 3):
        next(batches)
        wait_until(lambda: source.reads >= received + ahead)  # noqa: B023
        time.sleep(0.02)
        assert source.reads == received + ahead
    batches.close()


def daemons_work(connection):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = [batch[0] for batch in itertools.islice(rng_flow(nb_proc_workers=2).flow(), 20)]
    connection.send((batches, [str(warning.message) for warning in caught if warning.category is RuntimeWarning]))


def rng_flow(**settings):
    def noise(batch, rng):
        return [batch[0] + rng.normal(size=len(batch[0]))]

    return DataFlow(
        [NUMBERS], 8, preprocessor=[noise, Stage(noise, nb_workers=1)], rng=1, sample_random=True, **settings
    )


def test_in_a_process_that_may_not_have_children():
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    process = context.Process(target=daemons_work, args=(far,), daemon=True)
    process.start()
    far.close()
    batches, messages = near.recv()
    process.join()
    expected = rng_flow(nb_proc_workers=1).flow()
    for batch in batches:
        np.testing.assert_array_equal(batch, next(expected)[0])
    expected.close()
    assert len(messages) == 1 and "may not start processes" in messages[0]


def test_a_flow_does_not_go_on_in_a_forked_process():
    batches = endless()
    next(batches)
    pid = os.fork()
    if pid == 0:
        try:
            next(batches)
        except LungmillError as error:
            # Closing the copy must leave the workers of the parent alone.
            batches.close()
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(list(itertools.islice(batches, 60))) == 60
    batches.close()
