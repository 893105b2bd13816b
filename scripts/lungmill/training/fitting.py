"""What fits what: shapes of elements and chunks, values and dtypes, arguments."""

import math

import numpy as np

from lungmill.training.errors import ArrayError

# A chunk holds about this much, unless one element alone is larger or a batch smaller.
CHUNK_BYTES = 2**20
SMALL_CHUNK_BYTES = 2**16


def chunk_shape(element_shape, dtype, batch_size, length=None):
    """Shape of a chunk of about 1 MB: whole elements, such that blocks of `batch_size` end where a chunk ends.

    A chunk is a part of a block, or some blocks where these are below 64 KB; elements above 2 MB are cut along their
    longest axes. Without that rule a block's last chunk would be written twice.
    """
    element_bytes = max(1, math.prod(element_shape) * np.dtype(dtype).itemsize)
    most = max(1, CHUNK_BYTES // element_bytes)
    if batch_size > most:
        rows = max(n for n in range(1, most + 1) if batch_size % n == 0)
    else:
        rows = batch_size * max(1, SMALL_CHUNK_BYTES // element_bytes // batch_size)
    if length:
        rows = min(rows, length)
    edges = list(element_shape)
    while rows == 1 and math.prod(edges) * np.dtype(dtype).itemsize > 2 * CHUNK_BYTES:
        longest = edges.index(max(edges))
        edges[longest] = -(-edges[longest] // 2)
    return (rows, *(max(1, edge) for edge in edges))


def converted(data, dtype, name):
    """The data in another dtype; ArrayError where a value would become another one."""
    if np.can_cast(data.dtype, dtype, "safe") or data.size == 0:
        return data.astype(dtype)
    if np.can_cast(data.dtype, dtype, "same_kind") or (data.dtype.kind, dtype.kind) == ("i", "u"):
        with np.errstate(over="ignore"):
            result = data.astype(dtype)
        rounded = data.dtype.kind in "fc"
        same = np.isfinite(result) | ~np.isfinite(data) if rounded else result == data
        if np.all(same):
            return result
        value = data[~same].flat[0]
        raise ArrayError(f"{name}: the value {value} does not fit into {dtype}: scale the data or choose another dtype")
    raise ArrayError(
        f"{name}: {data.dtype} does not fit into {dtype}: round and convert the data first if that is meant"
    )


def element_shape(shape):
    return (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)


def whole_number(name, value, least):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArrayError(f"{name}={value!r} is not a whole number from {least} on")
    return int(value)


def settings_of(kwargs, *ours):
    kwargs = dict(kwargs or {})
    for name in ours:
        if name in kwargs:
            raise ArrayError(f"kwargs: {name!r} follows from the other parameters: leave it out")
    return kwargs


def check_elements(array, shape, dtype, name):
    """Raise ArrayError unless the array holds elements of this shape and dtype."""
    if tuple(array.shape[1:]) != shape or np.dtype(array.dtype) != dtype:
        raise ArrayError(
            f"{name} holds elements of {np.dtype(array.dtype)}{tuple(array.shape[1:])}, so {dtype}{shape} cannot be "
            "written to it: write to another array, or elements like those"
        )
