"""Arguments that the sources of patches have in common, checked; each function raises ArrayError with one line."""

import numpy as np

from lungmill.training.errors import ArrayError


def patch_shape(shape, shape_mm=None, spacing_mm=None, name="shape"):
    """Edges of a patch in voxels, two or three; `spacing_mm` [z, y, x] only matters for `shape_mm`."""
    if (shape is None) == (shape_mm is None):
        raise ArrayError("give either shape, in voxels, or shape_mm")
    given, what = (shape, name) if shape_mm is None else (shape_mm, "shape_mm")
    numbers = np.asarray(given)
    if numbers.shape not in ((2,), (3,)) or numbers.dtype.kind not in ("iu" if shape_mm is None else "iuf"):
        raise ArrayError(f"{what}={given!r} is not three numbers [z, y, x], or two [y, x]")
    if shape_mm is not None:
        numbers = np.rint(numbers / np.array(spacing_mm)[-len(numbers) :]).astype(int)
    if numbers.min() < 1:
        raise ArrayError(f"{what}={given!r} is less than a voxel")
    return tuple(numbers.tolist())


def class_names(classes, positions):
    """The names of classes as a tuple: different ones, and all that have positions of their own among them."""
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    if not names or len(set(names)) < len(names):
        raise ArrayError(f"classes={classes!r}: give different names, one at least")
    unused = set(positions or {}) - set(names)
    if unused:
        raise ArrayError(f"positions has {', '.join(sorted(unused))}, which is not one of {', '.join(names)}")
    return names


def fitting_int16(fill):
    """The value that fills what lies beyond the volume."""
    if not np.iinfo(np.int16).min <= fill <= np.iinfo(np.int16).max or fill != int(fill):
        raise ArrayError(f"fill={fill!r} is no int16")
    return int(fill)
