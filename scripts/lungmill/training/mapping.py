"""Arrays in and out of the one pass of `warping`: views without copies, fill modes, data types, label swaps."""

from functools import cache, lru_cache

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.warping import CONSTANT, NEAREST, REFLECT, WRAP, exchange, warp

FILL_MODES = {"nearest": NEAREST, "constant": CONSTANT, "reflect": REFLECT, "wrap": WRAP}
# The largest coefficients, in distances between control points, with which a cubic B-spline warp never folds, in two
# and in three dimensions: Choi and Lee, Graphical Models 62 (2000), 411-427.
UNFOLDED_2D, UNFOLDED_3D = 0.48, 0.40
OFF_DIAGONAL = 1 - np.eye(3)
_NO_WARP = np.empty(0, np.float32), np.empty((0, 3, 3))
_NO_MASK = np.empty((0, 1, 1, 1), np.uint8)


def check_image(image, what="x"):
    """Return `image` as an array that the kernels read: integers or float32/64 in native byte order."""
    image = np.asarray(image)
    if image.dtype.kind not in "iuf" or image.dtype == np.float16:
        raise LungmillError(f"{what} has dtype {image.dtype}: give integers, float32 or float64")
    if not image.size:
        raise LungmillError(f"{what} has shape {image.shape}: there is nothing to transform")
    return _readable(image)


def check_mask(mask, what="y"):
    """Return `mask` as an array of numbers or booleans in native byte order."""
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biuf" or mask.dtype.itemsize > 8:
        raise LungmillError(f"{what} has dtype {mask.dtype}: give a mask of numbers or booleans")
    return _readable(mask)


def _readable(array):
    if not array.dtype.isnative or not (array.flags.c_contiguous or _has_usual_steps(array)):
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array


def _has_usual_steps(array):
    """Whether the strides are whole elements, and fit into the int32 with which the kernels multiply."""
    return not any(step % array.itemsize or abs(step) >= array.itemsize << 31 for step in array.strides)


def check_swaps(pairs):
    """Return pairs of labels, ((a, b), ...), from one pair (a, b), several, or None."""
    try:
        numbers = np.asarray([] if pairs is None else pairs).reshape(-1, 2)
    except ValueError:
        raise LungmillError(f"swap_labels={pairs!r} is not a pair of labels such as (1, 2), or several pairs") from None
    return tuple((a, b) for a, b in numbers.tolist())


def map_arrays(
    image, mask, out, out_mask, *, start, matrices, elastic=(), fill_mode="nearest", cval_x=0.0, cval_y=0, shift=0.0,
    swaps=(), in_plane=False,
):  # fmt: skip
    """Interpolate `image` (channels, z, y, x) linearly into `out` and take the nearest of `mask` into `out_mask`.

    out, out_mask: of the shape of the result, any strides; `out` is rounded where it holds integers. start: [z, y, x]
    of the result's first pixel in the frame that the matrices map from. matrices, elastic: a chain from that frame to
    the source's pixels, see `warp`; `elastic` holds (control points (3, nz, ny, nx) in pixels, control points per
    pixel, lattice position of pixel 0). swaps: pairs of labels. in_plane: images of one plane that no
    coordinate leaves. A mask of None is left out.
    """
    if mask is None:
        mask = out_mask = _NO_MASK
    unsigned = f"u{mask.itemsize}"
    mask_fill, swapped = _labels(cval_y, tuple(swaps), mask.dtype)
    controls, lattices = _NO_WARP
    if elastic:
        controls = np.concatenate([control.ravel() for control, _, _ in elastic]).astype(np.float32)
        lattices = np.array([(control.shape[1:], scale, origin) for control, scale, origin in elastic], np.float64)
    straight = bool(elastic) and not np.any(matrices[0][:, :3] * OFF_DIAGONAL)
    image_flat, image_start, image_strides = _flat(image)
    mask_flat, mask_start, mask_strides = _flat(mask.view(unsigned))
    out_flat, _, out_strides = _flat(out, writeable=True)
    out_mask_flat, _, out_mask_strides = _flat(out_mask.view(unsigned), writeable=True)
    warp(
        image_flat,
        image_start,
        np.array([image.shape, image_strides, out_strides]),
        mask_flat,
        mask_start,
        np.array([mask.shape, mask_strides, out_mask_strides]),
        in_plane,
        FILL_MODES[fill_mode],
        np.array([start, out.shape[1:]]),
        np.ascontiguousarray(matrices),
        controls,
        lattices,
        straight,
        float(cval_x),
        np.float32(shift),
        _limits(out.dtype),
        mask_fill,
        swapped,
        out_flat,
        out_mask_flat,
    )


def swap_in_place(mask, pairs):
    """Exchange pairs of labels in a C-ordered mask."""
    _, swaps = _labels(0, tuple(pairs), mask.dtype)
    exchange(mask.view(f"u{mask.itemsize}").reshape(-1), swaps)


def round_into(out, values):
    """Write float32 `values` to `out`, rounded and held to its range where it holds integers; changes `values`."""
    if out.dtype.kind in "iu":
        np.rint(values, out=values)
        np.clip(values, *_limits(out.dtype), out=values)
    np.copyto(out, values, casting="unsafe")


@cache
def _limits(dtype):
    """What a result is held to, float32 (2,): the range of an integer type."""
    if dtype.kind == "f":
        return np.array([-np.inf, np.inf], dtype=np.float32)
    high = np.float32(np.iinfo(dtype).max)
    if int(high) > np.iinfo(dtype).max:
        high = np.nextafter(high, np.float32(0))
    return np.array([np.iinfo(dtype).min, high], dtype=np.float32)


@lru_cache(maxsize=256)
def _labels(fill, pairs, dtype):
    """The mask's fill and the pairs to exchange as unsigned integers of the same bytes."""
    values = [fill, *(label for pair in pairs for label in pair)]
    with np.errstate(all="ignore"):
        labels = np.array(values).astype(dtype)
    if labels.tolist() != values:
        raise LungmillError(f"cval_y={fill!r}, swap_labels={pairs!r}: not all fit into a mask of {dtype}")
    labels = labels.view(f"u{dtype.itemsize}")
    return labels[0], labels[1:].reshape(-1, 2)


def _flat(array, writeable=False):
    """A 1-D view of the memory under `array`, the index of its first element in it and its strides in elements."""
    itemsize = array.itemsize
    strides = [step // itemsize for step in array.strides]
    if array.flags.c_contiguous:
        flat, start = array.reshape(-1), 0
        flat.flags.writeable = writeable
        return flat, start, strides
    ends = [(n - 1) * step for n, step in zip(array.shape, strides, strict=True)]
    start = -sum(end for end in ends if end < 0)
    lowest = array[tuple(slice(-1, None) if step < 0 else slice(None) for step in strides)]
    span = sum(abs(end) for end in ends) + 1
    return np.lib.stride_tricks.as_strided(lowest, (span,), (itemsize,), writeable=writeable), start, strides
