"""Reading what `lungmill.zarr_store` wrote, chunk by chunk, without zarr's machinery around each of them.

zarr 3 takes 0.6 ms of CPU for a chunk besides decoding it, half of the time of a patch of 64^3. The stores stay plain
Zarr: this is a shorter way to the same numbers, for loops that read many patches.
"""

import json
import math
import operator
import os
from pathlib import Path

import numpy as np

from lungmill.errors import LungmillError

ABSENT = np.iinfo(np.uint64).max  # offset of a chunk that holds nothing but the fill value
SHARD = "c/0/0/0"


class ShardReader:
    """One array of a store, indexed by integers and slices like a NumPy array, read from the file at each access.

    Has `shape`, `dtype`, `ndim` and `chunks` like an array of zarr. Threads may share one; a copy in another process
    opens the file itself.
    """

    def __init__(self, path):
        """path: the folder of the array, such as `cohort.zarr/patient/image`.

        Raises LungmillError where it is not an array of one shard by one of lungmill's codecs.
        """
        self.path = Path(path)
        metadata = json.loads((self.path / "zarr.json").read_text(encoding="utf-8"))
        try:
            (sharding,) = metadata["codecs"]
            self.chunks = tuple(sharding["configuration"]["chunk_shape"])
            codecs = {codec["name"]: codec.get("configuration", {}) for codec in sharding["configuration"]["codecs"]}
            self._decode = DECODERS[next(name for name in reversed(codecs))]
            self.shape, self.dtype = tuple(metadata["shape"]), np.dtype(metadata["data_type"])
        except (KeyError, TypeError, ValueError) as error:
            raise LungmillError(f"{self.path} is no array that lungmill wrote: open it with zarr") from error
        self._axes = tuple(codecs.get("transpose", {}).get("order", range(self.ndim)))
        self._fill = metadata["fill_value"]
        self._file = None

    @property
    def ndim(self):
        return len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __array__(self, dtype=None, copy=None):
        del copy  # every access is one
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getstate__(self):
        return {**self.__dict__, "_file": None}

    def __getitem__(self, key):
        spans, rest = _spans(key, self.shape)
        out = np.empty([stop - start for start, stop in spans], self.dtype)
        if out.size:
            self._read(spans, out)
        return out[rest]

    def _read(self, spans, out):
        file = self._file = self._file or _OpenShard(self.path / SHARD, self.shape, self.chunks)
        back = np.argsort(self._axes)
        scratch = np.empty(math.prod(self.chunks), self.dtype)
        stored_shape = [self.chunks[axis] for axis in self._axes]
        first = [start // edge for (start, _), edge in zip(spans, self.chunks, strict=True)]
        counts = [(stop - 1) // edge + 1 - i for (_, stop), edge, i in zip(spans, self.chunks, first, strict=True)]
        for step in np.ndindex(*counts):
            target, source = [], []
            corner = tuple(i + k for i, k in zip(first, step, strict=True))
            for i, edge, (start, stop) in zip(corner, self.chunks, spans, strict=True):
                low, high = max(i * edge, start), min((i + 1) * edge, stop)
                target.append(slice(low - start, high - start))
                source.append(slice(low - i * edge, high - i * edge))
            encoded = file.chunk(corner)
            if encoded is None:
                out[tuple(target)] = self._fill
            else:
                block = self._decode(encoded, stored_shape, scratch).transpose(back)
                out[tuple(target)] = block[tuple(source)]


class _OpenShard:
    """The file of a shard and its index."""

    def __init__(self, path, shape, chunks):
        from numcodecs import CRC32C

        counts = [math.ceil(n / edge) for n, edge in zip(shape, chunks, strict=True)]
        size = 16 * math.prod(counts) + 4
        self.path = path
        self.file = path.open("rb", buffering=0)
        self.file.seek(-size, os.SEEK_END)
        try:
            index = CRC32C(location="end").decode(self.file.read(size))
        except RuntimeError as error:
            raise LungmillError(f"{path} is damaged: delete it and run snakemake again") from error
        self.index = np.frombuffer(index, "<u8").reshape(*counts, 2)

    def chunk(self, corner):
        """The bytes of one chunk, or None where it is left out."""
        offset, size = self.index[corner]
        return None if offset == ABSENT else os.pread(self.file.fileno(), int(size), int(offset))


def _spans(key, shape):
    """(start, stop) to read of each axis, and the index that makes of them what was asked for."""
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = (*keys[:at], *[slice(None)] * (len(shape) - len(keys) + 1), *keys[at + 1 :])
    if len(keys) > len(shape):
        raise IndexError(f"{len(keys)} indices for {len(shape)} axes")
    keys = (*keys, *[slice(None)] * (len(shape) - len(keys)))
    spans, rest = [], []
    for item, n in zip(keys, shape, strict=True):
        if isinstance(item, slice):
            wanted = range(*item.indices(n))
            low, high = (min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1) if wanted else (0, 0)
            rest.append(slice(None, None, wanted.step))
        else:
            low = operator.index(item)
            low += n if low < 0 else 0
            if not 0 <= low < n:
                raise IndexError(f"index {item} is out of bounds for an axis of {n}")
            high = low + 1
            rest.append(0)
        spans.append((low, high))
    return spans, tuple(rest)


def _decode_pcodec(encoded, shape, scratch):
    from pcodec import standalone

    standalone.simple_decompress_into(encoded, scratch)
    return scratch.reshape(shape)


def _decode_blosc(encoded, shape, scratch):
    from numcodecs import blosc

    blosc.decompress(encoded, scratch)
    return scratch.reshape(shape)


def _decode_planes(encoded, shape, scratch):
    from lungmill.plane_kernels import decode_block

    del scratch
    return decode_block(encoded, tuple(shape))


DECODERS = {"numcodecs.pcodec": _decode_pcodec, "blosc": _decode_blosc, "lungmill.planes": _decode_planes}
