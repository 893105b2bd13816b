"""Which elements make up which batch: a function of the seed, the epoch and the number of the batch alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lungmill.training.errors import ArrayError

# Streams of random numbers that never meet, although they come from one seed.
ORDER, PREPROCESSING, WORKER_GLOBALS = range(3)


@dataclass
class Chunk:
    """The elements of one batch on their way; `batch` is None while unread, and where all of them were dropped."""

    epoch: int
    number: int
    indices: np.ndarray
    batch: object = None

    @property
    def dropped(self) -> bool:
        return self.batch is None


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The generator that belongs to this place, whoever asks for it and whenever."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def seed_from(rng) -> int:
    """A seed below 2**63: drawn from the operating system for None, from a NumPy generator, or the integer itself."""
    if rng is None:
        return int(np.random.default_rng().integers(2**63))
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if isinstance(rng, np.random.RandomState):
        return int(rng.randint(2**63, dtype=np.uint64))
    if isinstance(rng, (int, np.integer)) and rng >= 0:
        return int(rng)
    raise ArrayError(f"rng is {rng!r}: give an integer from 0, a numpy.random.Generator, a RandomState or None")


class Sampling:
    """Epochs of `length` elements cut into batches, shuffled, drawn with replacement or weighted as told."""

    def __init__(self, length, batch_size, random, with_replacement, weights, drop_incomplete):
        if (with_replacement or weights is not None) and not random:
            given = "sample_weights" if weights is not None else "sample_with_replacement"
            raise ArrayError(f"{given} needs sample_random=True: without it the elements come in their own order")
        self.length = length
        self.batch_size = batch_size
        self.random = bool(random)
        self.with_replacement = bool(with_replacement)
        self.drop_incomplete = bool(drop_incomplete)
        self.weights = None if weights is None else _checked_weights(weights, length)
        if length == 0:
            raise ArrayError("data has no elements: there is nothing to make batches of")
        if len(self) == 0:
            raise ArrayError(
                f"an epoch of {self.epoch_length} elements has no complete batch of {batch_size}: "
                "use a smaller batch_size, or drop_incomplete_batches=False"
            )

    @property
    def epoch_length(self) -> int:
        """Elements drawn in an epoch: all, but without replacement those of weight 0 are left out."""
        if self.weights is None or self.with_replacement:
            return self.length
        return int(np.count_nonzero(self.weights))

    def __len__(self) -> int:
        whole, rest = divmod(self.epoch_length, self.batch_size)
        return whole + (rest > 0 and not self.drop_incomplete)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of the elements of an epoch, in the order in which they are drawn."""
        if not self.random:
            return np.arange(self.length)
        rng = generator(seed, ORDER, epoch)
        if self.with_replacement:
            share = None if self.weights is None else self.weights / self.weights.sum()
            return rng.choice(self.length, self.length, p=share)
        if self.weights is None:
            return rng.permutation(self.length)
        return self._weighted_order(rng)

    def _weighted_order(self, rng):
        # Each element waits an exponential time of rate `weight`; the order of arrival is that of drawing one element
        # after another with probabilities in proportion to the weights of those left (Efraimidis and Spirakis 2006).
        drawable = np.flatnonzero(self.weights)
        waits = rng.standard_exponential(len(drawable)) / self.weights[drawable]
        return drawable[np.argsort(waits, kind="stable")]

    def chunks(self, seed: int, epoch: int, first: int = 0) -> Iterator[Chunk]:
        """The batches of an epoch, still unread, from number `first`."""
        order = self.order(seed, epoch)
        for number in range(first, len(self)):
            yield Chunk(epoch, number, order[number * self.batch_size : (number + 1) * self.batch_size])

    def settings(self) -> dict:
        """What must be the same for a saved position to mean the same elements, as plain JSON values."""
        digest = None if self.weights is None else hashlib.sha256(self.weights.tobytes()).hexdigest()[:16]
        return {
            "length": self.length,
            "batch_size": self.batch_size,
            "sample_random": self.random,
            "sample_with_replacement": self.with_replacement,
            "sample_weights": digest,
        }


def _checked_weights(weights, length):
    weights = np.array(weights, dtype=np.float64)
    if weights.shape != (length,):
        raise ArrayError(f"sample_weights has shape {weights.shape}: give one weight for each of {length} elements")
    if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise ArrayError("sample_weights must be finite numbers from 0, at least one of them above 0")
    return weights
