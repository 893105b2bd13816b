"""One transform of two-dimensional images: zoom, shear, rotation, shift, flips, warp and crop in one interpolation."""

import math
from dataclasses import dataclass

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.mapping import FILL_MODES, UNFOLDED_2D, check_image, check_mask, check_swaps, map_arrays
from lungmill.training.replay import Replayable, number, numbers, rotation, whole

LARGEST_SHEAR = 89.0  # degrees
SMALLEST_ZOOM = 1e-3
IDENTITY = np.eye(3, 4)


@dataclass(frozen=True, repr=False)
class ImageTransform(Replayable):
    """One transform of two-dimensional images; the defaults change nothing.

    Applied in this order, in one interpolation: zoom, shear and rotation about the centre, shift, flips, warp, crop.

    rotation_degrees: counter-clockwise as displayed. shear_degrees: angle by which vertical lines lean; what is lower
    moves to the right. zoom: (vertical, horizontal), over 1 enlarges. shift: (down, right) as fractions of height
    and width. flip: (vertical, horizontal). warp_sigma: standard deviation of the displacements of the control points,
    as a fraction of the height and width; 0 is no warp. warp_grid_size: control points per axis, from corner to corner.
    warp_seed: of the displacements. crop_size: (height, width) of the result, None for all of it. crop_position: where
    it is cut, (0, 0) the upper left and (1, 1) the lower right corner. intensity_shift: added to all of x. fill_mode,
    cval_x, cval_y, swap_labels: as in `image_random_transform`.
    """

    rotation_degrees: float = 0.0
    shear_degrees: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    flip: tuple[bool, bool] = (False, False)
    warp_sigma: float = 0.0
    warp_grid_size: int = 3
    warp_seed: int = 0
    crop_size: tuple[int, int] | None = None
    crop_position: tuple[float, float] = (0.5, 0.5)
    intensity_shift: float = 0.0
    fill_mode: str = "nearest"
    cval_x: float = 0.0
    cval_y: float = 0.0
    swap_labels: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.fill_mode not in FILL_MODES:
            raise LungmillError(f"fill_mode={self.fill_mode!r} is none of {', '.join(FILL_MODES)}")
        crop = self.crop_size
        if crop is not None:
            if np.shape(crop) != (2,):
                raise LungmillError(f"crop_size={crop!r}: give (height, width) in pixels, or None")
            crop = tuple(whole(n, "crop_size", low=1) for n in crop)
        self._hold(
            rotation_degrees=number(self.rotation_degrees, "rotation_degrees"),
            shear_degrees=number(self.shear_degrees, "shear_degrees", -LARGEST_SHEAR, LARGEST_SHEAR),
            zoom=numbers(self.zoom, "zoom", 2, low=SMALLEST_ZOOM),
            shift=numbers(self.shift, "shift", 2),
            flip=tuple(bool(flipped) for flipped in self.flip),
            warp_sigma=number(self.warp_sigma, "warp_sigma", low=0.0),
            warp_grid_size=whole(self.warp_grid_size, "warp_grid_size", low=2),
            warp_seed=whole(self.warp_seed, "warp_seed"),
            crop_size=crop,
            crop_position=numbers(self.crop_position, "crop_position", 2, 0.0, 1.0),
            intensity_shift=number(self.intensity_shift, "intensity_shift"),
            cval_x=number(self.cval_x, "cval_x"),
            cval_y=number(self.cval_y, "cval_y"),
            swap_labels=check_swaps(self.swap_labels),
        )

    def __call__(self, x, y=None, channel_axis=0):
        """Transform an image, and the mask of the same height and width in the same way.

        :param x: (channels, height, width), or as `channel_axis` says, or (height, width); integers, float32 or float64
        :param y: None, or a mask with or without channels
        :param channel_axis: of arrays with three axes
        :return: the transformed x, or (x, y); new arrays of the same dtypes
        :raises LungmillError: shapes, sizes or dtypes that do not fit
        """
        x = check_image(x)
        x_axis, planes = _image_planes(x, channel_axis, "x")
        out, out_planes = empty_like(x, self.output_shape(planes.shape[2:]), x_axis)
        if y is None:
            self.apply(planes, None, out_planes, None)
            return out
        y = check_mask(y)
        y_axis, y_planes = _image_planes(y, channel_axis, "y")
        out_y, out_y_planes = empty_like(y, out_planes.shape[2:], y_axis)
        self.apply(planes, y_planes, out_planes, out_y_planes)
        return out, out_y

    def output_shape(self, shape):
        """(height, width) of what comes of an image of `shape` (height, width)."""
        height, width = self.crop_size or shape
        if height > shape[0] or width > shape[1]:
            raise LungmillError(f"crop_size={self.crop_size} is larger than the image, {tuple(shape)}")
        return height, width

    def matrix(self, shape):
        """Float64 (2, 3): from pixels (row, column) of the uncropped result to those of an image of `shape`."""
        cosine, sine = rotation(self.rotation_degrees)
        lean = math.tan(math.radians(self.shear_degrees))
        inverse = ((cosine, sine), (-lean * cosine - sine, cosine - lean * sine))
        centres = [(n - 1) / 2 for n in shape]
        signs = [-1.0 if flipped else 1.0 for flipped in self.flip]
        axes = range(2)
        # a pixel p of the result is, before the flip, sign * p + first; relative to the centre before the shift:
        firsts = [n - 1 if flipped else 0 for n, flipped in zip(shape, self.flip, strict=True)]
        starts = [firsts[a] - centres[a] - self.shift[a] * shape[a] for a in axes]
        linear = [[inverse[r][a] / self.zoom[r] for a in axes] for r in axes]
        offsets = [linear[r][0] * starts[0] + linear[r][1] * starts[1] + centres[r] for r in axes]
        return np.array([[linear[r][0] * signs[0], linear[r][1] * signs[1], offsets[r]] for r in axes])

    def control_points(self):
        """Displacements (2, n, n) of the warp's control points, down and right, as fractions of height and width.

        They are held to what never folds the image (0.48 of the distance between control points).
        """
        n = self.warp_grid_size
        normal = np.random.default_rng(self.warp_seed).standard_normal((2, n, n), dtype=np.float32)
        return np.clip(self.warp_sigma * normal, -UNFOLDED_2D / (n - 1), UNFOLDED_2D / (n - 1))

    def apply(self, x, y, out, out_y):
        """Transform (channels, 1, height, width) views into others."""
        shape = x.shape[2:]
        if y is not None and y.shape[2:] != shape:
            raise LungmillError(f"x has height and width {shape}, y has {y.shape[2:]}: they must be the same")
        matrices = np.zeros((2, 3, 4))
        matrices[0] = matrices[1] = IDENTITY
        matrices[1, 1:, 1:] = self.matrix(shape)
        elastic = ()
        if self.warp_sigma:
            extent = [max(n - 1, 1) for n in shape]
            n = self.warp_grid_size
            control = np.zeros((3, 1, n, n), dtype=np.float32)
            np.multiply(self.control_points(), np.reshape(extent, (2, 1, 1)), out=control[1:, 0], casting="same_kind")
            elastic = [(control, (1.0, (n - 1) / extent[0], (n - 1) / extent[1]), (0.0, 0.0, 0.0))]
        places = [n - m + 1 for n, m in zip(shape, out.shape[2:], strict=True)]
        start = [max(math.ceil(at * n) - 1, 0) for at, n in zip(self.crop_position, places, strict=True)]
        map_arrays(
            x,
            y,
            out,
            out_y,
            start=[0, *start],
            matrices=matrices if elastic else matrices[1:],
            elastic=elastic,
            fill_mode=self.fill_mode,
            cval_x=self.cval_x,
            cval_y=self.cval_y,
            shift=self.intensity_shift,
            swaps=self.swap_labels if self.flip[1] else (),
            in_plane=True,
        )


def _image_planes(array, channel_axis, what):
    """`planes_of` of one image: two axes, or three where one is the channels'."""
    if array.ndim == 2:
        channel_axis = None
    elif array.ndim != 3 or channel_axis is None:
        raise LungmillError(f"{what} has shape {array.shape}: give (height, width), or three axes and a channel_axis")
    return channel_axis, planes_of(array, channel_axis, what)


def planes_of(array, channel_axis, what):
    """A view (..., channels, 1, height, width) of an array with its channels at `channel_axis`, or without any."""
    if array.ndim < 2 + (channel_axis is not None):
        raise LungmillError(f"{what} has shape {array.shape}: too few axes for images with channel_axis={channel_axis}")
    if channel_axis is None:
        return array[..., None, None, :, :]
    if not -array.ndim <= channel_axis < array.ndim:
        raise LungmillError(f"channel_axis={channel_axis}: {what} has {array.ndim} axes")
    return np.moveaxis(array, channel_axis, -3)[..., None, :, :]


def empty_like(array, size, channel_axis):
    """An array for the result, axes as in `array` but height and width of `size`, and its `planes_of`."""
    axes = list(range(array.ndim))
    if channel_axis is not None:
        del axes[channel_axis]
    shape = list(array.shape)
    shape[axes[-2]], shape[axes[-1]] = size
    out = np.empty(shape, dtype=array.dtype)
    return out, planes_of(out, channel_axis, "")
