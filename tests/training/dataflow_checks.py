"""What the tests of the data flow share: a limit that makes a hang a failure, and a look at what is left behind."""

import gc
import multiprocessing
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

SECONDS = 60


@pytest.fixture(autouse=True)
def time_limit():
    """A test that takes longer fails, wherever it waits."""

    def give_up(*_):
        raise TimeoutError(f"still not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_left(time_limit):
    """After the test there is no thread, no process and no shared memory that was not there."""
    before = named_memory("self")
    yield
    wait_until(lambda: not any(thread.name.startswith("lungmill") for thread in threading.enumerate()))
    assert multiprocessing.active_children() == []
    if open_slots("self"):
        # The traceback of an exception holds the arrays of its frames, in a cycle with them.
        gc.collect()
    assert open_slots("self") == []
    assert named_memory("self") == before


def named_memory(process):
    """Files of /dev/shm that a process has mapped: these outlive the processes unless somebody removes them."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return sorted({line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line})


def open_slots(process):
    """The shared memory of data flows that a process has open."""
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if "memfd:lungmill" in target:
            found.append(target)
    return found


def processes_of_session(session):
    """Living processes of a session, from /proc: the descendants of a program started with a session of its own."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, its_session = fields[0], int(fields[3])
        if its_session == session and state not in "ZX":
            found.append(int(entry.name))
    return found


def wait_until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.02)


def same(batches, others):
    """Both are the same sequence of lists of equal arrays."""
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert len(batch) == len(other)
        for array, expected in zip(batch, other, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
    return True
