"""What every augmentation shares: parameters checked and held as plain numbers, so that it prints and replays."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from lungmill.errors import LungmillError


class Replayable:
    """Base of the frozen dataclasses that are transforms: they print as the call that makes them, and go to JSON."""

    _kinds: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Replayable._kinds[cls.__name__] = cls

    def __repr__(self):
        fields = dataclasses.fields(self)
        given = [field.name for field in fields if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    def as_dict(self):
        """Return the parameters with the name under "transform", ready for JSON; `transform_from_dict` reads them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"transform": type(self).__name__} | {name: _plain(value) for name, value in values.items()}

    def _hold(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _plain(value):
    if isinstance(value, Replayable):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def transform_from_dict(parameters):
    """Make the transform again that `as_dict` described.

    :raises LungmillError: there is no such transform, or it has no such parameters
    """
    values = dict(parameters)
    name = values.pop("transform", None)
    kind = Replayable._kinds.get(name)
    if kind is None:
        raise LungmillError(f"transform {name!r} is none of {', '.join(sorted(Replayable._kinds))}")
    if "transforms" in values:
        values["transforms"] = [transform_from_dict(item) for item in values["transforms"]]
    unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise LungmillError(f"{name} has no parameter {', '.join(sorted(unknown))}")
    return kind(**values)


def number(value, what, low=-math.inf, high=math.inf):
    """Return a finite number in [low, high] as a float."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise LungmillError(f"{what}={value!r} is not a number") from None
    if not (math.isfinite(result) and low <= result <= high):
        limits = "" if low == -math.inf and high == math.inf else f" between {low:g} and {high:g}"
        raise LungmillError(f"{what}={value!r}: give a finite number{limits}")
    return result + 0.0  # no negative zeros: they would be printed


def whole(value, what, low=0):
    """Return a whole number of at least `low` as an int."""
    if isinstance(value, bool) or value != value or value != int(value) or value < low:
        raise LungmillError(f"{what}={value!r}: give a whole number of at least {low}")
    return int(value)


def numbers(values, what, count, low=-math.inf, high=math.inf):
    """Return `count` numbers, or one number `count` times, as a tuple of floats."""
    values = [values] * count if np.ndim(values) == 0 else list(values)
    if len(values) != count:
        raise LungmillError(f"{what}={values!r}: give one number or {count} of them")
    return tuple(number(value, what, low, high) for value in values)


def interval(value, what, low=-math.inf, high=math.inf, around=None):
    """Return (lowest, highest) of a range: a pair as it is, a number r as around - r to around + r.

    Without `around` a number r stands for 0 to r.
    """
    if np.ndim(value) == 0:
        reach = number(value, what, 0.0)
        pair = (0.0, reach) if around is None else (around - reach, around + reach)
    else:
        pair = numbers(value, what, 2)
    if not low <= pair[0] <= pair[1] <= high:
        raise LungmillError(f"{what}={value!r} reaches from {pair[0]:g} to {pair[1]:g}: stay in [{low:g}, {high:g}]")
    return pair


def symmetric(rng, reach):
    """Draw from [-reach, reach]; a plain float, and exactly 0 where the reach is 0."""
    return float(rng.uniform(-reach, reach)) if reach else 0.0


def new_seed(rng):
    """Draw a seed that is short enough to read."""
    return int(rng.integers(2**32))


def rotation(degrees):
    """Cosine and sine of an angle, exact at multiples of 90 degrees."""
    quarter, rest = divmod(degrees, 90.0)
    cosine, sine = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarter) % 4):
        cosine, sine = -sine, cosine
    return cosine, sine
