"""Batches from data larger than memory, read in threads, preprocessed in processes, the same for any number of them."""

import multiprocessing
import operator
import warnings
from collections.abc import Iterator
from dataclasses import replace

from lungmill.errors import LungmillError
from lungmill.training.errors import ArrayError
from lungmill.training.pipeline import Line
from lungmill.training.rebatching import AsRead, Position, Reformed
from lungmill.training.sampling import Sampling, seed_from
from lungmill.training.stages import steps_of, works_of
from lungmill.training.tandem import TandemReader
from lungmill.training.workers import DEFAULT_START_METHOD, check_picklable

STATE_FORMAT = 1
BATCHES_AHEAD_PER_WORKER = 2


class DataFlow:
    """Batches of elements of several arrays, read in tandem.

    The order and the content of batches depend on `rng` alone, whatever the number of workers.

    Parameters
    ----------
    data : list of arrays of equal length: anything with a length that can be indexed with an array of integers
        (NumPy arrays and memmaps, h5py, zarr, bcolz, DelayedView, MultiSourceArray), and lists and pandas columns.
    batch_size : elements in a batch. The last one of an epoch may be smaller.
    nb_io_workers : threads that read; with 0 the caller reads.
    nb_proc_workers : processes that run the preprocessor; with 0 it runs where the data are read.
    loop_forever : whether one epoch follows another without end.
    sample_random : whether the elements come in random order, another one in each epoch.
    sample_with_replacement : whether each element is drawn from all of them; an epoch has as many draws as elements.
    sample_weights : a number from 0 for each element. With replacement, the probability of being drawn is
        proportional to it. Without, every element of weight above 0 comes once in an epoch, heavier ones sooner.
    drop_incomplete_batches : whether the last batch of an epoch is left out if it is smaller.
    preprocessor : a function from batch to batch (a list of arrays, one of each source, as is the default), or a
        list of functions, `Stage`, `Keep` and `Branch`. With `Keep` and `Branch` among them, the elements they leave
        are joined into batches of `batch_size` again.
    rng : an integer, a NumPy generator that a seed is drawn from, or None for another seed each time.
    nb_batches_ahead : batches that may be worked on or wait while the consumer has one: the bound of the memory used.
        By default 2 for each thread and process.
    start_method : how processes are started: "fork" (default on Linux), "forkserver" or "spawn". Only "fork" takes
        functions that cannot be pickled; the others are for preprocessors that use OpenMP (torch on the CPU).

    Raises
    ------
    ArrayError : parameters that do not fit together, or arrays of different lengths.
    """

    def __init__(
        self,
        data,
        batch_size,
        nb_io_workers=1,
        nb_proc_workers=0,
        loop_forever=True,
        sample_random=False,
        sample_with_replacement=False,
        sample_weights=None,
        drop_incomplete_batches=False,
        preprocessor=None,
        rng=None,
        *,
        nb_batches_ahead=None,
        start_method=DEFAULT_START_METHOD,
    ):
        self._reader = TandemReader(data)
        self._batch_size = _count("batch_size", batch_size, least=1)
        self._nb_io_workers = _count("nb_io_workers", nb_io_workers)
        self._nb_proc_workers = _count("nb_proc_workers", nb_proc_workers)
        self._loop_forever = loop_forever
        self._drop_incomplete = drop_incomplete_batches
        self._steps = steps_of(preprocessor)
        self._reforms = any(step.takes_elements for step in self._steps)
        self._sampling = Sampling(
            len(self._reader),
            self._batch_size,
            sample_random,
            sample_with_replacement,
            sample_weights,
            # A filter decides how many elements there are: what is incomplete shows after it.
            drop_incomplete_batches and not self._reforms,
        )
        self._seed = seed_from(rng)
        self._nb_batches_ahead = None if nb_batches_ahead is None else _count("nb_batches_ahead", nb_batches_ahead)
        if start_method not in multiprocessing.get_all_start_methods():
            known = ", ".join(multiprocessing.get_all_start_methods())
            raise ArrayError(f"start_method is {start_method!r}: this system has {known}")
        self._start_method = start_method
        self._last_epoch = 0
        # Where the next flow begins, if it is not the epoch after the last one; and where the consumer is.
        self._next: Position | None = Position(0)
        self._position = Position(0)

    def __len__(self):
        """Batches in an epoch, as read: `Keep` and `Branch` change how many come out."""
        return len(self._sampling)

    def flow(self) -> Iterator:
        """Yield batches: of one epoch, or without end if `loop_forever`.

        Each call begins the epoch after the last one begun, the first call after `load_state_dict` at that state.
        The arrays are the consumer's own. Threads and processes end with the generator: when it is exhausted, closed
        or no longer referred to.

        Raises FlowError where reading or preprocessing fails or a worker process ends.
        """
        start, seed = self._begin(), self._seed
        shaper = self._shaper(start.skip)
        some = start != Position(start.epoch)
        with self._line(seed) as line:
            for chunk in line.pass_along(self._chunks(start, seed)):
                last = chunk.number + 1 == len(self)
                for batch, position in shaper.batches(chunk, last):
                    some = True
                    self._last_epoch = max(self._last_epoch, chunk.epoch)
                    self._position = position
                    yield batch
                if not last:
                    continue
                if self._loop_forever and not some:
                    raise LungmillError(
                        f"the preprocessor left nothing of epoch {chunk.epoch}: it would go on for ever"
                    )
                self._position = Position(chunk.epoch + 1)
                shaper, some = self._shaper(), False

    def state_dict(self) -> dict:
        """The position after the last batch that was handed out, as plain JSON values.

        What has been read ahead does not count. After `load_state_dict`, it is the position given there until a batch
        of a new flow is handed out.
        """
        settings = self._sampling.settings() | {"drop_incomplete_batches": bool(self._drop_incomplete)}
        position = self._position if self._next is None else self._next
        return {"format": STATE_FORMAT, "seed": self._seed, **position._asdict(), "settings": settings}

    def load_state_dict(self, state: dict):
        """Let the next `flow()` go on where `state` was taken, with its seed.

        Raises ArrayError, and changes nothing, where the state is of other data or settings.
        """
        mine = self.state_dict()
        if not _is_state(state) or state.keys() != mine.keys() or state["format"] != STATE_FORMAT:
            raise ArrayError("this is no state of a DataFlow of this version: give what state_dict() returned")
        theirs = state["settings"]
        other = [
            f"{name} was {theirs.get(name)!r} and is {value!r}"
            for name, value in mine["settings"].items()
            if theirs.get(name) != value
        ]
        if other:
            raise ArrayError(f"the state does not fit this DataFlow: {', '.join(other)}")
        position = Position(*(state[name] for name in Position._fields))
        if position.batch >= len(self):
            raise ArrayError(f"the state is at batch {position.batch}, and an epoch has {len(self)}")
        self._seed = state["seed"]
        self._next = position
        self._last_epoch = position.epoch

    def _begin(self):
        """The position that a new flow begins at, which becomes the current one."""
        if self._next is None:
            self._last_epoch += 1
            self._next = Position(self._last_epoch)
        self._position, self._next = self._next, None
        return self._position

    def _chunks(self, start, seed):
        yield from self._sampling.chunks(seed, start.epoch, start.batch)
        epoch = start.epoch
        while self._loop_forever:
            epoch += 1
            yield from self._sampling.chunks(seed, epoch)

    def _shaper(self, skip=0):
        return Reformed(self._batch_size, self._drop_incomplete, skip) if self._reforms else AsRead()

    def _line(self, seed):
        works = works_of(self._steps, seed, self._nb_proc_workers)
        if len(works) > 1 and multiprocessing.current_process().daemon:
            warnings.warn(
                "DataFlow is used in a process that may not start processes (a worker of a DataLoader?): "
                "the preprocessor runs in this process, with the same results",
                RuntimeWarning,
                stacklevel=3,
            )
            works = works_of([replace(step, nb_workers=None) for step in self._steps], seed, 0)
        check_picklable(works[1:], self._start_method)
        ahead = self._nb_batches_ahead
        if ahead is None:
            ahead = BATCHES_AHEAD_PER_WORKER * (self._nb_io_workers + sum(work.nb_workers for work in works))
        return Line(self._reader.read, works, self._nb_io_workers, ahead, self._start_method)


def _is_state(state):
    """Whether this has the shape of a state: whole numbers from 0, and settings."""
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        return False
    numbers = [state.get(name) for name in ("format", "seed", *Position._fields)]
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def _count(name, value, least=0):
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < least:
        raise ArrayError(f"{name} is {value!r}: give an integer from {least}")
    return count
