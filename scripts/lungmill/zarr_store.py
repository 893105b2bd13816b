"""One patient as a Zarr v3 group of two arrays, each one shard, written a layer of chunks at a time.

Written by hand because zarr-python holds a whole shard, so the whole volume, in memory. What it writes is plain Zarr v3
(https://zarr-specs.readthedocs.io/en/latest/v3) and is read by zarr alone, with the package pcodec for images that are
stored by it.
"""

import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from lungmill.files import json_text
from lungmill.version import __version__

FILES = ("zarr.json", "image/zarr.json", "image/c/0/0/0", "mask/zarr.json", "mask/c/0/0/0")

FILL = {"image": -1024, "mask": 0}  # what a chunk without anything in it stands for: air, and no lung

# Of Blosc for masks. On the lungs of a real chest at 1 mm, 43 MB: 81, 68 and 62 kB in 0.03, 0.05 and 0.25 s at the
# levels 3, 5 and 8; zstd without bitshuffle needs 108 kB for the time of level 5.
MASK_LEVEL = 5

LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


class Blosc:
    """zstd after a transposition of bits. Part of Zarr v3, so every reader knows it.

    Its own threads write the blocks of a chunk in the order in which they finish. Blosc uses none outside the main
    thread, so the bytes are the same on every run where `encode` is called from a pool.
    """

    axes = (0, 1, 2)  # the order in which the voxels of a chunk are encoded, the last running fastest
    best_level = 3  # below, files of int16 images get larger; above, they take three times as long for 3 % of the size

    def __init__(self, dtype, level):
        from numcodecs import blosc

        self.typesize = np.dtype(dtype).itemsize
        self.level = level
        self.encode = blosc.Blosc("zstd", clevel=level, shuffle=blosc.BITSHUFFLE).encode

    def metadata(self):
        configuration = {
            "typesize": self.typesize,
            "cname": "zstd",
            "clevel": self.level,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        little_endian = LITTLE_ENDIAN if self.typesize > 1 else {"name": "bytes"}
        return [little_endian, {"name": "blosc", "configuration": configuration}]


class Pcodec:
    """Differences along z, and for each chunk the code that suits how they are distributed (https://pcodec.org).

    A scan's slices lie further apart than the voxels of the output, so that neighbours in z are interpolated from the
    same few slices: the second differences along z are smaller than those along any other axis. Where slices are as
    near as voxels or the volume is not resampled, it is the first differences. Readers need not know which: a chunk
    says it itself.
    """

    axes = (1, 2, 0)
    best_level = 8  # 5, 6 and 7: 2, 0.8 and 0.3 % larger; 9: 0.1 % smaller, for nearly the same time

    def __init__(self, dtype, level):
        del dtype
        self.level = level

    def encode(self, block):
        from lungmill.pcodec_kernels import encode

        return encode(block, self.level)

    def metadata(self):
        configuration = {"level": self.level, "mode_spec": "classic", "delta_encoding_order": 2}
        return [
            {"name": "transpose", "configuration": {"order": list(self.axes)}},
            {"name": "numcodecs.pcodec", "configuration": configuration},
        ]


class Planes:
    """Each plane predicted from those before it, as `lungmill.plane_codec` says; reading needs lungmill as well."""

    axes = (0, 1, 2)
    best_level = 3  # 5: 1 % smaller, for half as much time again

    def __init__(self, dtype, level):
        del dtype
        self.level = level

    def encode(self, block):
        from lungmill.plane_kernels import encode_block

        return encode_block(block, self.level)

    def metadata(self):
        return [{"name": "lungmill.planes", "configuration": {"level": self.level}}]


CODECS = {"pcodec": Pcodec, "blosc": Blosc, "planes": Planes}


def write_zarr(path, arrays, attributes, codec, level, chunks, threads, zipped=False):
    """Write the group `path` with the arrays "image", by the codec of that name and at that level, and "mask".

    chunks: the shape of a chunk of each. zipped: make one file of it, which zarr's ZipStore reads.
    """
    level = CODECS[codec].best_level if level is None else level
    with (_zip if zipped else _folder)(path) as create:
        for name, array in arrays.items():
            coder = CODECS[codec](array.dtype, level) if name == "image" else Blosc(array.dtype, MASK_LEVEL)
            with create(f"{name}/c/0/0/0") as file:
                _write_shard(file, array, chunks[name], coder, FILL[name], threads)
            with create(f"{name}/zarr.json") as file:
                file.write(json_text(_array_metadata(name, array, chunks[name], coder)).encode())
        ome = _ome_metadata(arrays, attributes["spacing_mm"], attributes["origin_mm"])
        with create("zarr.json") as file:
            file.write(json_text(group_metadata({**attributes, "ome": ome})).encode())


@contextmanager
def _folder(path):
    """A function that opens a new file of the folder `path`."""

    def create(name):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        return (path / name).open("wb")

    yield create


@contextmanager
def _zip(path):
    """The same of a zip file, which compresses nothing itself; a member opened by its name gets the date 1980-01-01."""
    with zipfile.ZipFile(path, "w") as archive:
        yield lambda name: archive.open(name, "w", force_zip64=True)


def _write_shard(file, array, chunk, coder, fill, threads):
    """Write the whole array as one shard: the chunks in C order, then where each lies and how long it is, then CRC32C.

    Layout of the codec "sharding_indexed", https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
    A chunk that holds nothing but `fill` is left out, which its entry in the index says by two times 2**64 - 1.
    """
    from numcodecs import CRC32C

    counts = [math.ceil(n / edge) for n, edge in zip(array.shape, chunk, strict=True)]

    def encode(corner):
        """Compress one chunk."""
        window = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(corner, chunk, strict=True))
        part = array[window]
        if part[0, 0, 0] == fill and (part == fill).all():
            return None
        return coder.encode(_whole_chunk(part, chunk, coder.axes))

    index = np.full((*counts, 2), np.iinfo(np.uint64).max, "<u8")
    offset = 0
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for z in range(counts[0]):  # a layer at a time, so that no more than a layer waits to be written
            corners = [(z, y, x) for y in range(counts[1]) for x in range(counts[2])]
            for corner, encoded in zip(corners, pool.map(encode, corners), strict=True):
                if encoded is not None:
                    file.write(encoded)
                    index[corner] = offset, len(encoded)
                    offset += len(encoded)
    file.write(CRC32C(location="end").encode(index))


def _whole_chunk(part, chunk, axes):
    """The voxels in the order of `axes`, the last plane of each repeated up to the chunk's full shape.

    Readers never look at what lies beyond the array's far faces; a repeated plane costs fewer bits than a jump to air.
    """
    whole = np.empty([chunk[axis] for axis in axes], part.dtype.newbyteorder("<"))
    block = whole.transpose(np.argsort(axes))
    z, y, x = part.shape
    block[:z, :y, :x] = part
    block[:z, :y, x:] = block[:z, :y, x - 1 : x]
    block[:z, y:] = block[:z, y - 1 : y]
    block[z:] = block[z - 1 : z]
    return whole


def _array_metadata(name, array, chunk, coder):
    shard = [math.ceil(n / edge) * edge for n, edge in zip(array.shape, chunk, strict=True)]
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": coder.metadata(),
        "index_codecs": [LITTLE_ENDIAN, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": str(array.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": FILL[name],
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["z", "y", "x"],
        "attributes": {},
    }


def group_metadata(attributes):
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def cohort_metadata():
    return group_metadata({"lungmill": __version__})


def _ome_metadata(names, spacing_mm, origin_mm):
    """OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5): image and mask, each a pyramid of one level."""
    transformations = [
        {"type": "scale", "scale": spacing_mm},
        {"type": "translation", "translation": origin_mm},
    ]
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    return {
        "version": "0.5",
        "multiscales": [
            {"name": name, "axes": axes, "datasets": [{"path": name, "coordinateTransformations": transformations}]}
            for name in names
        ],
    }
