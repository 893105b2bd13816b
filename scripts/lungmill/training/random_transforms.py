"""Random transforms of volumes: `draw` gives the transform of `volume_transforms` with its parameters, which replays.

    augment = Compose([RandomAffine(rotation_degrees=10), RandomElastic(sigma_mm=3), RandomNoise(sigma=20)])
    drawn = augment.draw(rng=2017)
    image, mask = drawn(image, mask, spacing_mm)

Calling the random transform itself does both. A range that is a number r is drawn from [-r, r] around the value that
changes nothing, or from [0, r] where only positive values have a meaning; a pair (lowest, highest) is taken as it is.
Every transform is applied with its `probability`, and left out otherwise.
"""

import math
from dataclasses import dataclass

import numpy as np

from lungmill.training.composition import AIR_HU
from lungmill.training.mapping import check_swaps
from lungmill.training.replay import Replayable, interval, new_seed, number, numbers, symmetric
from lungmill.training.volume_transforms import Affine, Blur, Elastic, Flip, Gamma, Intensity, Noise, flip_axes


class RandomTransform(Replayable):
    """Base of the random transforms: what they do is drawn first."""

    def draw(self, rng=None):
        """Draw the parameters.

        :param rng: a NumPy Generator, a seed, or None for different parameters every time
        :return: the transform with its parameters, which changes nothing where the probability left it out
        """
        rng = np.random.default_rng(rng)
        left_out = rng.random() >= self.probability
        drawn = self._draw(rng)
        return type(drawn)() if left_out else drawn

    def __call__(self, image, mask=None, spacing_mm=(1.0, 1.0, 1.0), rng=None):
        """Draw the parameters and transform a volume, and its mask; see the transform that `draw` returns."""
        return self.draw(rng)(image, mask, spacing_mm)

    def _draw(self, rng):
        raise NotImplementedError

    def _hold(self, **values):
        super()._hold(probability=number(self.probability, "probability", 0.0, 1.0), **values)


@dataclass(frozen=True, repr=False)
class RandomAffine(RandomTransform):
    """Draw an `Affine`. Ranges are one number, or three for the axes [z, y, x].

    rotation_degrees: each angle from [-r, r]. zoom: from [1 - r, 1 + r]; one number draws one factor for all axes,
    three numbers three factors. shear_degrees, translation_mm: each from [-r, r].
    """

    rotation_degrees: float | tuple[float, float, float] = 0.0
    zoom: float | tuple[float, float, float] = 0.0
    shear_degrees: float | tuple[float, float, float] = 0.0
    translation_mm: float | tuple[float, float, float] = 0.0
    probability: float = 1.0

    def __post_init__(self):
        zoom = numbers(self.zoom, "zoom", 3, 0.0, 0.99)
        self._hold(
            rotation_degrees=numbers(self.rotation_degrees, "rotation_degrees", 3, 0.0),
            zoom=zoom if np.ndim(self.zoom) else zoom[0],
            shear_degrees=numbers(self.shear_degrees, "shear_degrees", 3, 0.0, 89.0),
            translation_mm=numbers(self.translation_mm, "translation_mm", 3, 0.0),
        )

    def _draw(self, rng):
        if isinstance(self.zoom, tuple):
            zoom = tuple(1.0 + symmetric(rng, reach) for reach in self.zoom)
        else:
            zoom = (1.0 + symmetric(rng, self.zoom),) * 3
        return Affine(
            rotation_degrees=tuple(symmetric(rng, reach) for reach in self.rotation_degrees),
            zoom=zoom,
            shear_degrees=tuple(symmetric(rng, reach) for reach in self.shear_degrees),
            translation_mm=tuple(symmetric(rng, reach) for reach in self.translation_mm),
        )


@dataclass(frozen=True, repr=False)
class RandomFlip(RandomTransform):
    """Draw a `Flip`: every one of `axes` is mirrored with `probability`.

    swap_labels: labels that a flip along x exchanges in the mask, such as (1, 2) for right and left lung.
    """

    axes: tuple[int, ...] = (2,)
    swap_labels: tuple[tuple[int, int], ...] = ()
    probability: float = 0.5

    def __post_init__(self):
        self._hold(axes=flip_axes(self.axes), swap_labels=check_swaps(self.swap_labels))

    def draw(self, rng=None):
        """Draw which axes are mirrored; see `RandomTransform.draw`."""
        rng = np.random.default_rng(rng)
        return Flip(tuple(axis for axis in self.axes if rng.random() < self.probability), self.swap_labels)


@dataclass(frozen=True, repr=False)
class RandomElastic(RandomTransform):
    """Draw an `Elastic`: its `sigma_mm` from [0, sigma_mm] or a pair, and its seed; `control_mm` stays."""

    sigma_mm: float | tuple[float, float] = 0.0
    control_mm: float = 32.0
    probability: float = 1.0

    def __post_init__(self):
        self._hold(
            sigma_mm=interval(self.sigma_mm, "sigma_mm", low=0.0),
            control_mm=number(self.control_mm, "control_mm", low=1e-3),
        )

    def _draw(self, rng):
        return Elastic(float(rng.uniform(*self.sigma_mm)), self.control_mm, new_seed(rng))


@dataclass(frozen=True, repr=False)
class RandomIntensity(RandomTransform):
    """Draw an `Intensity`: its scale from [1 - scale, 1 + scale], its shift from [-shift, shift], or from pairs."""

    scale: float | tuple[float, float] = 0.0
    shift: float | tuple[float, float] = 0.0
    probability: float = 1.0

    def __post_init__(self):
        self._hold(scale=interval(self.scale, "scale", around=1.0), shift=interval(self.shift, "shift", around=0.0))

    def _draw(self, rng):
        return Intensity(float(rng.uniform(*self.scale)), float(rng.uniform(*self.shift)))


@dataclass(frozen=True, repr=False)
class RandomGamma(RandomTransform):
    """Draw a `Gamma`: its exponent log-uniformly from [1 / (1 + gamma), 1 + gamma], or from a pair."""

    gamma: float | tuple[float, float] = 0.0
    window: tuple[float, float] = (AIR_HU, 1024.0)
    probability: float = 1.0

    def __post_init__(self):
        if np.ndim(self.gamma) == 0:
            most = 1.0 + number(self.gamma, "gamma", 0.0)
            gamma = (1.0 / most, most)
        else:
            gamma = interval(self.gamma, "gamma", low=1e-3)
        self._hold(gamma=gamma, window=Gamma(window=self.window).window)

    def _draw(self, rng):
        low, high = self.gamma
        return Gamma(math.exp(rng.uniform(math.log(low), math.log(high))), self.window)


@dataclass(frozen=True, repr=False)
class RandomNoise(RandomTransform):
    """Draw a `Noise`: its `sigma` from [0, sigma] or a pair, and its seed."""

    sigma: float | tuple[float, float] = 0.0
    probability: float = 1.0

    def __post_init__(self):
        self._hold(sigma=interval(self.sigma, "sigma", low=0.0))

    def _draw(self, rng):
        return Noise(float(rng.uniform(*self.sigma)), new_seed(rng))


@dataclass(frozen=True, repr=False)
class RandomBlur(RandomTransform):
    """Draw a `Blur`: its `sigma_mm` from [0, sigma_mm] or a pair."""

    sigma_mm: float | tuple[float, float] = 0.0
    probability: float = 1.0

    def __post_init__(self):
        self._hold(sigma_mm=interval(self.sigma_mm, "sigma_mm", low=0.0))

    def _draw(self, rng):
        return Blur(float(rng.uniform(*self.sigma_mm)))
