"""Transforms of volumes [z, y, x] with all parameters given: they print as the call that makes them and replay exactly.

Their random counterparts (`random_transforms`) draw them; `Compose` (`composition`) chains either. The defaults change
nothing. Lengths are in mm and follow `spacing_mm`, intensities are in the image's unit (HU).
"""

import math
from dataclasses import dataclass

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.blurring import blur_in_place
from lungmill.training.composition import AIR_HU, Filter, Pointwise, Spatial
from lungmill.training.mapping import UNFOLDED_3D, check_swaps
from lungmill.training.replay import number, numbers, rotation, whole

# Rotation about each axis of [z, y, x] turns the first of these axes towards the second (right-handed in x, y, z).
TURNS = ((2, 1), (0, 2), (1, 0))


@dataclass(frozen=True, repr=False)
class Affine(Spatial):
    """Zoom, shear and rotation about the volume's centre, then a translation; in mm, whatever the spacing.

    rotation_degrees: about the z, y and x axis, carried out about x first and z last. About z, x turns towards y (from
    the patient's left to the back); about y, z towards x; about x, y towards z. zoom: along z, y, x, over 1 enlarges.
    shear_degrees: by how much (y leans with z, x with z, x with y). translation_mm: along z, y, x.
    """

    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shear_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        self._hold(
            rotation_degrees=numbers(self.rotation_degrees, "rotation_degrees", 3),
            zoom=numbers(self.zoom, "zoom", 3, low=1e-3),
            shear_degrees=numbers(self.shear_degrees, "shear_degrees", 3, -89.0, 89.0),
            translation_mm=numbers(self.translation_mm, "translation_mm", 3),
        )

    def matrix_mm(self):
        """Float64 (3, 3): where a vector [z, y, x] in mm from the centre is moved to, before the translation."""
        turn = np.eye(3)
        for axis in (2, 1, 0):
            first, second = TURNS[axis]
            cosine, sine = rotation(self.rotation_degrees[axis])
            step = np.eye(3)
            step[first, first] = step[second, second] = cosine
            step[second, first], step[first, second] = sine, -sine
            turn = step @ turn
        yz, xz, xy = (math.tan(math.radians(angle)) for angle in self.shear_degrees)
        shear = np.array([[1.0, 0.0, 0.0], [yz, 1.0, 0.0], [xz, xy, 1.0]])
        return turn @ shear @ np.diag(self.zoom)

    def _links(self, shape, spacing):
        centre = (np.array(shape) - 1) / 2
        spacing = np.array(spacing)
        linear = np.linalg.inv(self.matrix_mm()) * (spacing / spacing[:, None])
        return [np.column_stack([linear, centre - linear @ (centre + np.array(self.translation_mm) / spacing)])]


@dataclass(frozen=True, repr=False)
class Flip(Spatial):
    """Mirror along some axes (0, 1, 2 for z, y, x).

    swap_labels: labels that a flip along x exchanges in the mask, such as (1, 2) for right and left lung, or several
    such pairs: the lung on the image's left is then the right one again.
    """

    axes: tuple[int, ...] = ()
    swap_labels: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        self._hold(axes=flip_axes(self.axes), swap_labels=check_swaps(self.swap_labels))

    def swaps(self):
        return self.swap_labels if 2 in self.axes else ()

    def _links(self, shape, spacing):
        link = np.eye(3, 4)
        for axis in self.axes:
            link[axis, axis], link[axis, 3] = -1.0, shape[axis] - 1
        return [link]


@dataclass(frozen=True, repr=False)
class Elastic(Spatial):
    """Displace by a random cubic B-spline field.

    sigma_mm: standard deviation of the control points' displacements along each axis; they are held to what never folds
    the volume (0.4 of `control_mm`). control_mm: distance between control points. seed: of the displacements.
    """

    sigma_mm: float = 0.0
    control_mm: float = 32.0
    seed: int = 0

    def __post_init__(self):
        self._hold(
            sigma_mm=number(self.sigma_mm, "sigma_mm", low=0.0),
            control_mm=number(self.control_mm, "control_mm", low=1e-3),
            seed=whole(self.seed, "seed"),
        )

    def control_points(self, shape, spacing_mm=(1.0, 1.0, 1.0)):
        """Displacements (3, nz, ny, nx) in mm of the control points that a volume needs, float32.

        The middle one stands in the volume's centre, the others every `control_mm` along the axes.
        """
        reaches = [(n - 1) / 2 * mm / self.control_mm for n, mm in zip(shape, spacing_mm, strict=True)]
        counts = [2 * (int(reach) + 2) + 1 for reach in reaches]
        normal = np.random.default_rng(self.seed).standard_normal((3, *counts), dtype=np.float32)
        limit = UNFOLDED_3D * self.control_mm
        return np.clip(normal * np.float32(self.sigma_mm), -limit, limit, dtype=np.float32)

    def _links(self, shape, spacing):
        if not self.sigma_mm:
            return []
        control = self.control_points(shape, spacing)
        scale = np.array(spacing) / self.control_mm
        origin = (np.array(control.shape[1:]) - 1) / 2 - (np.array(shape) - 1) / 2 * scale
        return [(control / np.reshape(spacing, (3, 1, 1, 1)), scale, origin)]


@dataclass(frozen=True, repr=False)
class Intensity(Pointwise):
    """scale * image + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self):
        self._hold(scale=number(self.scale, "scale"), shift=number(self.shift, "shift"))

    def _change(self):
        def change(slab):
            slab *= np.float32(self.scale)
            slab += np.float32(self.shift)

        return change


@dataclass(frozen=True, repr=False)
class Gamma(Pointwise):
    """low + (high - low) * ((image - low) / (high - low)) ** gamma within `window` = (low, high); the rest stays."""

    gamma: float = 1.0
    window: tuple[float, float] = (AIR_HU, 1024.0)

    def __post_init__(self):
        window = numbers(self.window, "window", 2)
        if window[0] >= window[1]:
            raise LungmillError(f"window={self.window!r}: the first number must be below the second")
        self._hold(gamma=number(self.gamma, "gamma", low=1e-3), window=window)

    def _change(self):
        low, high = (np.float32(end) for end in self.window)

        def change(slab):
            held = np.clip(slab, low, high)
            slab -= held
            held = (held - low) / (high - low)
            slab += low + (high - low) * held ** np.float32(self.gamma)

        return change


@dataclass(frozen=True, repr=False)
class Noise(Pointwise):
    """Add Gaussian noise of standard deviation `sigma`, independent in every voxel, drawn from `seed`."""

    sigma: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self._hold(sigma=number(self.sigma, "sigma", low=0.0), seed=whole(self.seed, "seed"))

    def _change(self):
        rng = np.random.default_rng(self.seed)

        def change(slab):
            noise = rng.standard_normal(slab.shape, dtype=np.float32)
            noise *= np.float32(self.sigma)
            slab += noise

        return change


@dataclass(frozen=True, repr=False)
class Blur(Filter):
    """Blur with a Gaussian of standard deviation `sigma_mm`, the same in mm along every axis; edges are continued."""

    sigma_mm: float = 0.0

    def __post_init__(self):
        self._hold(sigma_mm=number(self.sigma_mm, "sigma_mm", low=0.0))

    def _filter(self, values, spacing):
        blur_in_place(values, [self.sigma_mm / mm for mm in spacing])


def flip_axes(axes):
    """Return axes of a volume as a sorted tuple."""
    axes = tuple(sorted({int(axis) for axis in np.atleast_1d(np.asarray(axes, dtype=int))}))
    if not set(axes) <= {0, 1, 2}:
        raise LungmillError(f"axes={axes!r}: give some of 0, 1, 2 for z, y, x")
    return axes
