"""Random transforms of images: parameters are drawn first, then one interpolation does all of them.

    transform = draw_image_transform(rotation_range=15, zoom_range=0.1, rng=2017)
    x, y = transform(x, y)  # prints as the call that makes it again; the same on every image

`image_random_transform` does both steps. For volumes see `volume_transforms`.
"""

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.image_transform import LARGEST_SHEAR, SMALLEST_ZOOM, ImageTransform, empty_like, planes_of
from lungmill.training.mapping import check_image, check_mask, check_swaps
from lungmill.training.replay import interval, number


def draw_image_transform(
    rotation_range=0.0,
    width_shift_range=0.0,
    height_shift_range=0.0,
    shear_range=0.0,
    zoom_range=0.0,
    intensity_shift_range=0.0,
    fill_mode="nearest",
    cval_x=0.0,
    cval_y=0.0,
    horizontal_flip=False,
    vertical_flip=False,
    spline_warp=False,
    warp_sigma=0.1,
    warp_grid_size=3,
    crop_size=None,
    rng=None,
    swap_labels=None,
):
    """Draw the `ImageTransform` that `image_random_transform` would apply; the parameters are explained there.

    Every call takes the same count of random numbers, so switching one range on leaves the others' draws as they were.
    """
    u = np.random.default_rng(rng).random(12).tolist()

    def between(what, value, at, low=-np.inf, high=np.inf, around=0.0):
        first, last = interval(value, what, low, high, around)
        return first + (last - first) * u[at]

    def within(what, reach, at, high=np.inf):
        return number(reach, what, 0.0, high) * (2 * u[at] - 1)

    return ImageTransform(
        rotation_degrees=within("rotation_range", rotation_range, 0),
        shift=(within("height_shift_range", height_shift_range, 1), within("width_shift_range", width_shift_range, 2)),
        shear_degrees=within("shear_range", shear_range, 3, LARGEST_SHEAR),
        zoom=[between("zoom_range", zoom_range, at, SMALLEST_ZOOM, around=1.0) for at in (4, 5)],
        intensity_shift=within("intensity_shift_range", intensity_shift_range, 6),
        flip=(vertical_flip and u[7] < 0.5, horizontal_flip and u[8] < 0.5),
        warp_sigma=warp_sigma if spline_warp else 0.0,
        warp_grid_size=warp_grid_size,
        warp_seed=int(u[9] * 2**32) if spline_warp else 0,
        crop_size=crop_size,
        crop_position=(u[10], u[11]) if crop_size else (0.5, 0.5),
        fill_mode=fill_mode,
        cval_x=cval_x,
        cval_y=cval_y,
        swap_labels=check_swaps(swap_labels),
    )


def image_random_transform(
    x,
    y=None,
    rotation_range=0.0,
    width_shift_range=0.0,
    height_shift_range=0.0,
    shear_range=0.0,
    zoom_range=0.0,
    intensity_shift_range=0.0,
    fill_mode="nearest",
    cval_x=0.0,
    cval_y=0.0,
    horizontal_flip=False,
    vertical_flip=False,
    spline_warp=False,
    warp_sigma=0.1,
    warp_grid_size=3,
    crop_size=None,
    channel_axis=0,
    rng=None,
    swap_labels=None,
):
    """Transform an image at random, and its mask in the same way, with a single interpolation.

    x is interpolated linearly (in float32) and keeps its dtype, integers rounded; y takes the nearest pixel, so it
    keeps its dtype and holds no label that was not there (but `cval_y`).

    :param x: (channels, height, width), or as `channel_axis` says, or (height, width); integers, float32 or float64
    :param y: None, or a mask of the same height and width, with or without channels
    :param rotation_range: degrees; the image is turned about its centre by up to this, either way
    :param width_shift_range: largest shift to the right or left, as a fraction of the width
    :param height_shift_range: largest shift up or down, as a fraction of the height
    :param shear_range: degrees; vertical lines lean by up to this, either way
    :param zoom_range: r for factors in [1 - r, 1 + r], or (lowest, highest); over 1 enlarges. One factor is drawn for
        the height and one for the width
    :param intensity_shift_range: one number in [-range, range] is added to the whole image, all channels and what is
        filled in; nothing is clipped
    :param fill_mode: beyond the edges: `nearest` (the edge's pixel), `constant` (`cval_x`, `cval_y` from the centres of
        the outermost pixels on), `reflect` (d c b a | a b c d | d c b a) or `wrap` (a b c d | a b c d)
    :param cval_x: what stands outside x where fill_mode is `constant`
    :param cval_y: the same for y
    :param horizontal_flip: mirror right and left in half of the cases
    :param vertical_flip: mirror up and down in half of the cases
    :param spline_warp: displace by a random cubic B-spline field
    :param warp_sigma: standard deviation of the control points' displacements, as a fraction of height and width. They
        are held to what never folds the image (0.48 of the distance between control points)
    :param warp_grid_size: control points per axis, from corner to corner, at least 2
    :param crop_size: (height, width): only this part is made, at a random place within the transformed image
    :param channel_axis: of arrays with three axes
    :param rng: a NumPy Generator, a seed, or None for a different result every time
    :param swap_labels: labels that a horizontal flip exchanges in y, e.g. (1, 2) for right and left lung; or several
        such pairs
    :return: the transformed x, or (x, y); new arrays
    :raises LungmillError: a range that is negative, infinite or NaN, an unknown fill_mode, a crop larger than the
        image, x and y of different size
    """
    transform = draw_image_transform(
        rotation_range, width_shift_range, height_shift_range, shear_range, zoom_range, intensity_shift_range,
        fill_mode, cval_x, cval_y, horizontal_flip, vertical_flip, spline_warp, warp_sigma, warp_grid_size, crop_size,
        rng, swap_labels,
    )  # fmt: skip
    return transform(x, y, channel_axis)


def image_stack_random_transform(x, *args, y=None, channel_axis=1, **kwargs):
    """Transform every image of a stack by its own random transform, and its mask in the same way.

    :param x: images along the leading axes, height and width last, channels at `channel_axis`: (n, channels, height,
        width) by default; with `channel_axis=None` there are no channels, (n, height, width)
    :param y: None, or masks of the same stack and size, with or without channels
    :param channel_axis: of x, and of y where y has as many axes
    :param args: what `image_random_transform` takes after y
    :param kwargs: the same by name. One `rng` serves all images: the same seed gives the same stack
    :return: the transformed x, or (x, y); new arrays
    :raises LungmillError: as `image_random_transform`
    """
    rng = np.random.default_rng(kwargs.pop("rng", None))
    x = check_image(x)
    images = planes_of(x, channel_axis, "x")
    y_axis = None
    if y is not None:
        y = check_mask(y)
        y_axis = channel_axis if y.ndim == x.ndim else None
        masks = planes_of(y, y_axis, "y")
        if masks.shape[:-4] != images.shape[:-4]:
            raise LungmillError(f"x is a stack of {images.shape[:-4]} images, y one of {masks.shape[:-4]}")
    out = out_y = out_masks = None
    for index in np.ndindex(images.shape[:-4]):
        transform = draw_image_transform(*args, rng=rng, **kwargs)
        if out is None:
            size = transform.output_shape(images.shape[-2:])
            out, out_images = empty_like(x, size, channel_axis)
            if y is not None:
                out_y, out_masks = empty_like(y, size, y_axis)
        if y is None:
            transform.apply(images[index], None, out_images[index], None)
        else:
            transform.apply(images[index], masks[index], out_images[index], out_masks[index])
    return out if y is None else (out, out_y)
