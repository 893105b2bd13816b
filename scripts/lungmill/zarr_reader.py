"""Reading what `lungmill.zarr_store` wrote, chunk by chunk, without zarr's machinery around each of them.

zarr 3 takes 0.6 ms of CPU for a chunk besides decoding it, half of the time of a patch of 64^3. The stores stay plain
Zarr: this is a shorter way to the same numbers. Nothing is kept of what has been read.
"""

import itertools
import json
import math
import operator
import os
import zipfile
from pathlib import Path

import numpy as np

from lungmill.errors import LungmillError

ABSENT = 2**64 - 1  # offset and length, in a shard's index, of a chunk that holds nothing but the fill value


def open_array(store, name):
    """The array "image" or "mask" of a patient's zarr store, a folder or a .zip, as a ShardReader.

    None where its zarr.json says that it is not one shard by one of lungmill's codecs: zarr opens it then.
    """
    store = Path(store)
    if store.suffix != ".zip":
        metadata = (store / name / "zarr.json").read_text(encoding="utf-8")
        path, start, length = store / name / "c" / "0" / "0" / "0", 0, None
    else:
        path = store
        with zipfile.ZipFile(store) as archive:
            metadata = archive.read(f"{name}/zarr.json")
            member = archive.getinfo(f"{name}/c/0/0/0")
            if member.compress_type != zipfile.ZIP_STORED:
                return None
            start, length = _content_start(archive.fp, member), member.file_size
    metadata = json.loads(metadata)
    try:
        layout = _layout(metadata)
    except (KeyError, TypeError, ValueError):
        return None
    return layout and ShardReader(path, *layout, start=start, length=length)


def open_zarr(store, mode="r"):
    """The same store by zarr itself, as a group; zarr's warning that pcodec is not in its standard is kept back."""
    import warnings

    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        place = zarr.storage.ZipStore(store, mode=mode) if Path(store).suffix == ".zip" else store
        return zarr.open_group(place, mode=mode)


def _content_start(file, member):
    """Where a member's bytes begin: behind its own header, 30 bytes, its name and an extra field."""
    file.seek(member.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra


def _layout(metadata):
    """Shape, chunk, dtype, fill value, order of axes and decoder; None where the array is of another kind."""
    [sharding] = metadata["codecs"]
    inside = sharding["configuration"]
    shape, chunk = tuple(metadata["shape"]), tuple(inside["chunk_shape"])
    shard = [math.ceil(n / edge) * edge for n, edge in zip(shape, chunk, strict=True)]
    names = [codec["name"] for codec in inside["codecs"]]
    settings = {codec["name"]: codec.get("configuration", {}) for codec in inside["codecs"]}
    ours = (
        sharding["name"] == "sharding_indexed"
        and metadata["chunk_grid"]["configuration"]["chunk_shape"] == shard
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and metadata["data_type"] in ("int16", "uint8")
        and names in CODECS
        and settings.get("bytes", {}).get("endian", "little") == "little"
        and [codec["name"] for codec in inside["index_codecs"]] == ["bytes", "crc32c"]
        and inside["index_location"] == "end"
    )
    axes = tuple(settings.get("transpose", {}).get("order", range(len(shape))))
    return (shape, chunk, np.dtype(metadata["data_type"]), metadata["fill_value"], axes, names[-1]) if ours else None


class ShardReader:
    """One array of a store, indexed by integers and slices like a NumPy array, read from the file at each access.

    Has `shape`, `dtype`, `ndim` and `chunks` like an array of zarr; `read` fills a box of voxels without a copy more.
    Threads may share one, and so may processes that are forked; a pickled one opens the file again. Errors are
    LungmillError and name the file.
    """

    def __init__(self, path, shape, chunks, dtype, fill_value, axes, codec, *, start=0, length=None):
        """See `open_array`. start, length: where the shard lies in the file; None: to its end."""
        self._made_of = (path, shape, chunks, dtype, fill_value, axes, codec), {"start": start, "length": length}
        self.path, self.shape, self.chunks, self.dtype = Path(path), shape, chunks, dtype
        self._fill, self._decode = fill_value, DECODERS[codec]
        self._encoded_shape, self._back = [chunks[axis] for axis in axes], np.argsort(axes)
        self._start = start
        self._file = self.path.open("rb", buffering=0)
        self._length = self._file.seek(0, os.SEEK_END) if length is None else length
        self._index = self._read_index()

    def __reduce__(self):
        positional, keywords = self._made_of
        return _reopen, (positional, keywords)

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()

    def __repr__(self):
        return f"<ShardReader {self.path} {self.dtype} {self.shape}>"

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize

    def __len__(self):
        return self.shape[0]

    def __array__(self, dtype=None, copy=None):
        del copy  # every access is one
        return self[...].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key):
        spans, rest = _spans(key, self.shape)
        out = np.empty([stop - start for start, stop in spans], self.dtype)
        if out.size:
            self.read(out, [start for start, _ in spans])
        return out[rest]

    def read(self, out, start):
        """Fill `out` with the box of its shape that begins at the voxel `start` and lies inside the array."""
        scratch = np.empty(math.prod(self.chunks), self.dtype)
        parts = [_chunks_along(*along) for along in zip(start, out.shape, self.chunks, strict=True)]
        for along_z, along_y, along_x in itertools.product(*parts):
            number, of_chunk, of_box = zip(along_z, along_y, along_x, strict=True)
            offset, length = self._index[number].tolist()
            if offset == ABSENT:
                out[of_box] = self._fill
                continue
            out[of_box] = self._decode_chunk(self._pread(length, offset), scratch)[of_chunk]

    def _decode_chunk(self, encoded, scratch):
        try:
            return self._decode(encoded, self._encoded_shape, scratch).transpose(self._back)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from error

    def _read_index(self):
        from numcodecs import CRC32C

        counts = [math.ceil(n / edge) for n, edge in zip(self.shape, self.chunks, strict=True)]
        size = 16 * math.prod(counts) + 4
        try:
            index = CRC32C(location="end").decode(self._pread(size, self._length - size))
        except (RuntimeError, OSError) as error:
            raise self._damaged(error) from error
        return np.frombuffer(index, "<u8").reshape(*counts, 2)

    def _pread(self, length, offset):
        data = os.pread(self._file.fileno(), length, self._start + offset)
        if len(data) < length:
            raise self._damaged("it ends too early")
        return data

    def _damaged(self, why):
        return LungmillError(f"{self.path} is damaged ({why}): delete the patient's store and run again")


def _reopen(positional, keywords):
    return ShardReader(*positional, **keywords)


def _chunks_along(start, size, edge):
    """For each chunk that [start, start + size) crosses: its number, the slice of it and the slice of the box."""
    for number in range(start // edge, (start + size - 1) // edge + 1):
        low, high = max(start, number * edge), min(start + size, (number + 1) * edge)
        yield number, slice(low - number * edge, high - number * edge), slice(low - start, high - start)


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
            try:
                low = operator.index(item)
            except TypeError:
                raise IndexError("stores are indexed by integers and slices; read what you need first") from None
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


# The codecs of a chunk, as zarr.json names them, and what undoes the last of them.
CODECS = (["bytes", "blosc"], ["transpose", "numcodecs.pcodec"], ["lungmill.planes"])
DECODERS = {"numcodecs.pcodec": _decode_pcodec, "blosc": _decode_blosc, "lungmill.planes": _decode_planes}
