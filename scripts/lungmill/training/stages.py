"""The steps between reading a batch and handing it out: functions of batches, filters and branches of elements."""

import functools
import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lungmill.training.errors import ArrayError
from lungmill.training.failures import FlowError, failed
from lungmill.training.sampling import PREPROCESSING, Chunk, generator


@dataclass(frozen=True)
class Stage:
    """`function(batch)` returns the batch that takes its place, or None to drop it.

    The function of this and of the other steps gets a `numpy.random.Generator` of its own if it has a parameter named
    `rng`. It may change the arrays it is given, and has to copy what it wants to keep after it has returned.

    With `nb_workers`, that many processes of its own run the step. Without, it stays with the workers of the step
    before it; the first steps have `nb_proc_workers` of the DataFlow.
    """

    function: Callable
    nb_workers: int | None = None
    takes_elements = False

    def __post_init__(self):
        if not callable(self.function):
            raise ArrayError(f"{type(self).__name__} needs a function, not {self.function!r}")
        if self.nb_workers is not None and not (isinstance(self.nb_workers, numbers.Integral) and self.nb_workers >= 1):
            raise ArrayError(f"nb_workers of {self.name} is {self.nb_workers!r}: give 1 or more, or None")

    @property
    def name(self) -> str:
        function = getattr(self.function, "func", self.function)
        words = getattr(function, "__qualname__", type(function).__name__).replace("<locals>.", "")
        return f"{type(self).__name__.lower()} {words}"

    def apply(self, chunk: Chunk, function: Callable) -> Chunk:
        return replace(chunk, batch=function(chunk.batch))


class Keep(Stage):
    """Keeps the elements for which `function(element)` is true; an element is a list with its part of each array."""

    takes_elements = True

    def apply(self, chunk, function):
        arrays = _arrays_of(chunk)
        kept = np.array([bool(answer) for answer in _of_each(self, chunk, arrays, function)], bool)
        if kept.all():
            return chunk
        batch = [array[kept] for array in arrays] if kept.any() else None
        return replace(chunk, indices=chunk.indices[kept], batch=batch)


class Branch(Stage):
    """Puts the elements that `function(element)` yields or lists, none, one or several, in the place of the element."""

    takes_elements = True

    def apply(self, chunk, function):
        arrays = _arrays_of(chunk)
        grown = list(_of_each(self, chunk, arrays, lambda element: [list(each) for each in function(element)]))
        indices = np.repeat(chunk.indices, [len(elements) for elements in grown])
        columns = zip(*(element for elements in grown for element in elements), strict=True)
        batch = [np.stack(column) for column in columns]
        return replace(chunk, indices=indices, batch=batch or None)


def _arrays_of(chunk):
    batch = chunk.batch
    if not isinstance(batch, (list, tuple)) or any(len(array) != len(chunk.indices) for array in batch):
        raise TypeError(
            "Keep and Branch take the elements of a list of arrays with an element for each index in the batch; "
            "the step before returned something else"
        )
    return [np.asarray(array) for array in batch]


def _of_each(step, chunk, arrays, function):
    for place, index in enumerate(chunk.indices):
        try:
            yield function([array[place] for array in arrays])
        except Exception as error:
            raise failed(step.name, chunk, error, index=index) from error


def steps_of(preprocessor) -> list[Stage]:
    """The steps that the `preprocessor` of a DataFlow stands for: None, a function, a Stage, or a list of these."""
    if preprocessor is None:
        return []
    several = preprocessor if isinstance(preprocessor, (list, tuple)) else [preprocessor]
    return [step if isinstance(step, Stage) else Stage(step) for step in several]


@dataclass
class Work:
    """Steps that follow one another in the same worker, each with its place among all steps, and their seed."""

    steps: list[tuple[int, Stage]]
    seed: int
    nb_workers: int = 0

    @property
    def name(self) -> str:
        return ", ".join(step.name for _, step in self.steps)

    def __call__(self, chunk: Chunk) -> Chunk:
        for place, step in self.steps:
            if chunk.dropped:
                break
            try:
                chunk = step.apply(chunk, self._with_rng(step.function, place, chunk))
            except (FlowError, KeyboardInterrupt):
                raise
            except BaseException as error:
                raise failed(step.name, chunk, error) from error
        return chunk

    def _with_rng(self, function, place, chunk):
        if not takes_rng(function):
            return function
        rng = generator(self.seed, PREPROCESSING, chunk.epoch, chunk.number, place)
        return functools.partial(function, rng=rng)


def takes_rng(function: Callable) -> bool:
    """Whether a generator can be given to `function` as `rng`, and nobody has bound one to it already."""
    if isinstance(function, functools.partial) and "rng" in function.keywords:
        return False
    try:
        parameter = inspect.signature(function).parameters.get("rng")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def works_of(steps: list[Stage], seed: int, nb_proc_workers: int) -> list[Work]:
    """The steps grouped by the workers that run them; the first group, maybe empty, runs where the data are read."""
    works = [Work([], seed)]
    for place, step in enumerate(steps):
        nb_workers = step.nb_workers or (nb_proc_workers if place == 0 else 0)
        if nb_workers:
            works.append(Work([], seed, nb_workers))
        works[-1].steps.append((place, step))
    return works
