"""Processes that run preprocessing steps on batches in shared memory."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
import traceback

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.failures import FlowError, failed
from lungmill.training.interrupts import interrupt_blocked
from lungmill.training.sampling import WORKER_GLOBALS, generator
from lungmill.training.shared_memory import Parcel, Slot, close_others
from lungmill.training.stages import Work

# Forking passes on the preprocessor as it is: closures, lambdas and functions of a notebook work without pickling.
DEFAULT_START_METHOD = "fork" if sys.platform == "linux" else "spawn"
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 2.0

# A pipe shows the end of its worker only if no process started meanwhile has inherited the worker's end of it.
_starting = threading.Lock()


class WorkerProcess:
    """A process that runs `work` on parcels in `slots`, one after another."""

    def __init__(self, work: Work, slots: list[Slot], start_method: str):
        context = multiprocessing.get_context(start_method)
        self._work = work
        self._end: FlowError | None = None
        with _starting, interrupt_blocked():
            self._connection, far_end = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(work, slots, far_end, self._connection), name=f"lungmill {work.name}", daemon=True
            )
            try:
                self._process.start()
            finally:
                far_end.close()

    def call(self, chunk, place: int, parcel: Parcel) -> Parcel | None:
        """Run the work on the parcel in slot `place`; None where the batch was dropped.

        Raises FlowError, naming `chunk`, where the work fails or the process ends; after its end, each time the same.
        """
        if self._end is not None:
            raise copy.copy(self._end)
        try:
            self._connection.send((place, parcel))
            while not self._connection.poll(SECONDS_BETWEEN_LOOKS):
                if not self._process.is_alive():
                    raise EOFError
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._end = failed(self._work.name, chunk, why=self._how_it_ended())
            raise copy.copy(self._end) from error
        if isinstance(answer, _Report):
            answer.raise_it()
        return answer

    def stop(self):
        """End the process, whatever it is doing: it has nothing to tidy up."""
        self._process.kill()

    def join(self):
        """Wait for the process after `stop`."""
        self._process.join(SECONDS_TO_END)
        self._connection.close()

    def _how_it_ended(self):
        self._process.join(SECONDS_TO_END)
        code, pid = self._process.exitcode, self._process.pid
        if code is None:
            return f"the worker process {pid} no longer answers"
        if code >= 0:
            return f"the worker process {pid} ended with exit code {code}; it may have written the cause to stderr"
        hint = " (the system kills processes so when memory runs out)" if -code == signal.SIGKILL else ""
        return f"the worker process {pid} was ended by {_name_of_signal(-code)}{hint}"


def check_picklable(works: list[Work], start_method: str):
    """Raise ArrayError where the steps cannot be sent to processes that are not forked from this one."""
    if start_method == "fork":
        return
    for work in works:
        try:
            pickle.dumps(work)
        except Exception as error:
            raise ArrayError(
                f"{work.name} cannot be sent to a worker process ({error}): define the function at the top level of a "
                "module, or use start_method='fork'"
            ) from error


class _Report:
    """An exception of a worker process on its way to the consumer."""

    def __init__(self, error: FlowError):
        error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error.__cause__ or error)))
        self._error = pickle.dumps(error)
        self._cause = None
        # What cannot be pickled, or not be made again from its pickle, is told by the note alone.
        with contextlib.suppress(Exception):
            cause = pickle.dumps(error.__cause__)
            pickle.loads(cause)
            self._cause = cause

    def raise_it(self):
        cause = None
        with contextlib.suppress(Exception):
            cause = self._cause and pickle.loads(self._cause)
        raise pickle.loads(self._error) from cause


def _serve(work, slots, connection, parents_end):
    """The life of a worker process."""
    parents_end.close()
    # Ctrl-C reaches the whole process group, and is for the consumer to handle. A handler of SIGTERM that was
    # inherited (one that saves a model, say) must not run here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    close_others(slots)
    # The consumer has gone where the pipe is broken.
    with contextlib.suppress(EOFError, OSError):
        while True:
            place, parcel = connection.recv()
            answer = _answer(work, slots[place], parcel)
            # What the preprocessor printed would be lost with the process.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                sys.stdout.flush()
            connection.send(answer)


def _answer(work, slot, parcel):
    chunk = slot.look(parcel)
    try:
        _seed_globals(work.seed, chunk)
        done = work(chunk)
        return None if done.dropped else _packed(work, slot, done)
    except FlowError as error:
        return _Report(error)


def _packed(work, slot, chunk):
    try:
        return slot.pack(chunk)
    except Exception as error:
        raise failed(f"handing on the result of {work.name}", chunk, error) from error


def _seed_globals(seed, chunk):
    """Forked workers begin with the same global random state; functions that use it would repeat each other."""
    rng = generator(seed, WORKER_GLOBALS, chunk.epoch, chunk.number)
    random.seed(int(rng.integers(2**63)))
    np.random.seed(rng.integers(2**32, size=4))  # noqa: NPY002


def _end_with(parent):
    """End this process when its parent has ended, in whatever way, and whatever the preprocessor is doing."""
    keeper = os.getppid()
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):
        while os.getppid() == keeper:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    else:
        watch = select.poll()
        watch.register(handle, select.POLLIN)
        watch.poll()
    os._exit(1)


def _name_of_signal(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
