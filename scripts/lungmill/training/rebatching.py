"""From preprocessed chunks to the batches that are handed out, each with the position that follows it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lungmill.training.failures import failed
from lungmill.training.sampling import Chunk


class Position(NamedTuple):
    """Where in the data the next batch begins: at element `skip` of what becomes of batch `batch` of `epoch`."""

    epoch: int
    batch: int = 0
    skip: int = 0


class AsRead:
    """Hands out a chunk's batch as it is, and nothing for a chunk that was dropped."""

    def batches(self, chunk: Chunk, last: bool) -> Iterator[tuple[object, Position]]:
        """The batches that are complete with this chunk, the `last` of its epoch or not."""
        if not chunk.dropped:
            yield chunk.batch, _after(chunk, last)


class Reformed:
    """Joins what filters left of the chunks of an epoch into batches of `batch_size` again, in order."""

    def __init__(self, batch_size: int, drop_incomplete: bool, skip: int):
        self._batch_size = batch_size
        self._drop_incomplete = drop_incomplete
        self._skip = skip
        self._waiting: list[np.ndarray] = []

    def batches(self, chunk: Chunk, last: bool) -> Iterator[tuple[list[np.ndarray], Position]]:
        """The batches that are complete with this chunk, the `last` of its epoch or not."""
        self._add(chunk)
        while self._count() >= self._batch_size:
            batch = [array[: self._batch_size] for array in self._waiting]
            self._waiting = [array[self._batch_size :] for array in self._waiting]
            yield batch, self._position(chunk, last)
        if last and self._count() and not self._drop_incomplete:
            yield self._waiting, _after(chunk, last)

    def _add(self, chunk):
        skip, self._skip = self._skip, 0
        if chunk.dropped:
            return
        arrays = [array[skip:] for array in _arrays_of(chunk)]
        if self._count():
            arrays = [np.concatenate(pair) for pair in zip(self._waiting, arrays, strict=True)]
        self._waiting = arrays

    def _count(self):
        return len(self._waiting[0]) if self._waiting else 0

    def _position(self, chunk, last):
        # Fewer elements than a batch waited before this chunk, so all that still wait are of it.
        if self._count():
            return Position(chunk.epoch, chunk.number, len(chunk.batch[0]) - self._count())
        return _after(chunk, last)


def _after(chunk, last):
    return Position(chunk.epoch + 1) if last else Position(chunk.epoch, chunk.number + 1)


def _arrays_of(chunk):
    batch = chunk.batch
    if isinstance(batch, (list, tuple)) and len({len(array) for array in batch}) == 1:
        return batch
    why = "with Keep and Branch, the last step has to return a list of arrays with equal numbers of elements"
    raise failed("joining elements to batches", chunk, why=why)
