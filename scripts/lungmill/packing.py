"""Compressed stores of one patient's image and mask: Zarr v3, bcolz, HDF5 and npz, each readable without lungmill.

Every format gives the arrays back by the same idiom, for "image" as for "mask":

    zarr.open_group(path)["image"][:]    bcolz.open(path)["image"][:]
    h5py.File(path)["image"][:]          numpy.load(path)["image"]

and carries `spacing_mm` and `origin_mm` ([z, y, x], LPS) and the version of lungmill: as attributes, or as small arrays
beside the two in an npz.
"""

import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lungmill.errors import ConfigError, LungmillError
from lungmill.files import replacing, write_json
from lungmill.version import __version__

# What a zarr patient consists of, whatever the size of the volume: one shard per array.
ZARR_FILES = ("zarr.json", "image/zarr.json", "image/c/0/0/0", "mask/zarr.json", "mask/c/0/0/0")

SUFFIX = {"zarr": "", "bcolz": ".bcolz", "hdf5": ".h5", "npz": ".npz"}

# Measured on a real chest at 1 mm, (331, 330, 330), 72 MB of int16, one thread: the next level up costs 1.5 to 3 times
# the time for at most 3 % of the size, except zarr's: below 3, Blosc's bitshuffle with zstd gives larger files.
LEVEL = {"zarr": 3, "bcolz": 3, "hdf5": 3, "npz": 1}

# zarr and hdf5: near to the patches that training reads. bcolz: whole slices, of which the first number counts.
CHUNK = {"zarr": (64, 64, 64), "bcolz": (16, 0, 0), "hdf5": (64, 64, 64), "npz": (0, 0, 0)}

FILL = {"image": -1024, "mask": 0}  # what a chunk without anything in it stands for: air, and no lung


def pack(path, image, mask, grid, *, format, metadata=None, level=None, chunk=None, threads=1):
    """Write image and mask of one patient to `path` in one of the formats "zarr", "bcolz", "hdf5" and "npz".

    image: int16 HU and mask: uint8 labels, both [z, y, x] of `grid.shape`; memory-mapped files are read a slab at a
    time. metadata: attributes to write besides the geometry, values that JSON can hold. level: of the compressor (zstd
    for zarr and bcolz, 1 to 9; deflate for hdf5 and npz, 0 to 9); None takes `LEVEL[format]`. chunk: edge of a chunk in
    voxels, a number or [z, y, x]; None takes `CHUNK[format]`. bcolz cuts along z only, and npz not at all. threads: at
    most as many compress (zarr uses them; the others use one); the bytes do not depend on it.

    The store takes its name when it is complete, and the same input gives the same bytes. Raises LungmillError when
    image, mask and grid do not belong together, ConfigError on an unknown format.
    """
    if format not in WRITERS:
        raise ConfigError(f"pack.formats: {format!r} is not one of {', '.join(WRITERS)}")
    for name, array, dtype in (("image", image, np.int16), ("mask", mask, np.uint8)):
        if array.dtype != dtype or tuple(array.shape) != tuple(grid.shape):
            raise LungmillError(
                f"{path}: the {name} is {array.dtype}{tuple(array.shape)}, expected {np.dtype(dtype)}"
                f"{tuple(grid.shape)}: remake volume and mask of this patient"
            )
    attributes = {
        **(metadata or {}),
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "lungmill": __version__,
    }
    level = LEVEL[format] if level is None else level
    chunk = _chunk_shape(CHUNK[format] if chunk is None else chunk, grid.shape)
    with replacing(path) as temporary:
        WRITERS[format](temporary, {"image": image, "mask": mask}, attributes, level, chunk, threads)


def create_cohort_group(path):
    """Write the `zarr.json` that makes the folder `path` a Zarr v3 group; the patients in it are left alone."""
    write_json(Path(path) / "zarr.json", _group_metadata({"lungmill": __version__}))


def _chunk_shape(chunk, shape):
    """Three edges, none longer than the volume's; 0 stands for the whole axis."""
    edges = (chunk,) * 3 if np.ndim(chunk) == 0 else tuple(chunk)
    return tuple(max(1, min(int(edge) or n, n)) for edge, n in zip(edges, shape, strict=True))


def _flat(value):
    """A value that an HDF5 attribute or a NumPy array can hold: anything nested becomes JSON text."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (bool, int, float)) for v in value):
        return list(value)
    return json.dumps(value)


# --- zarr -----------------------------------------------------------------------------------------------------------


def _write_zarr(path, arrays, attributes, level, chunk, threads):
    """A Zarr v3 group. Written by hand because zarr-python holds a whole shard, so the whole volume, in memory."""
    for name, array in arrays.items():
        metadata = _array_metadata(name, array, chunk, level)
        folder = path / name
        (folder / "c" / "0" / "0").mkdir(parents=True)
        _write_shard(folder / "c" / "0" / "0" / "0", array, chunk, level, FILL[name], threads)
        write_json(folder / "zarr.json", metadata)
    ome = _ome_metadata(arrays, attributes["spacing_mm"], attributes["origin_mm"])
    write_json(path / "zarr.json", _group_metadata({**attributes, "ome": ome}))


def _write_shard(path, array, chunk, level, fill, threads):
    """Write the whole array as one shard: the chunks in C order, then where each lies and how long it is, then CRC32C.

    Layout of the codec "sharding_indexed", https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
    A chunk that holds nothing but `fill` is left out, which its entry in the index says by two times 2**64 - 1.
    """
    from numcodecs import CRC32C, Blosc

    blosc = Blosc("zstd", clevel=level, shuffle=Blosc.BITSHUFFLE)
    counts = [math.ceil(n / edge) for n, edge in zip(array.shape, chunk, strict=True)]

    def encode(corner):
        """Compress one chunk, filled up to its full shape at the array's far faces."""
        window = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(corner, chunk, strict=True))
        part = array[window]
        if (part == fill).all():
            return None
        block = np.full(chunk, fill, array.dtype.newbyteorder("<"))
        block[tuple(slice(n) for n in part.shape)] = part
        return blosc.encode(block)

    index = np.full((*counts, 2), np.iinfo(np.uint64).max, "<u8")
    offset = 0
    # Blosc's own threads write the blocks of a chunk in the order in which they finish. It uses none outside the main
    # thread, so every chunk is compressed by one thread of the pool, and the chunks are written in order.
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=threads) as pool:
        for z in range(counts[0]):  # a layer at a time, so that no more than a layer waits to be written
            corners = [(z, y, x) for y in range(counts[1]) for x in range(counts[2])]
            for corner, encoded in zip(corners, pool.map(encode, corners), strict=True):
                if encoded is not None:
                    file.write(encoded)
                    index[corner] = offset, len(encoded)
                    offset += len(encoded)
        file.write(CRC32C(location="end").encode(index))


def _array_metadata(name, array, chunk, level):
    shard = [math.ceil(n / edge) * edge for n, edge in zip(array.shape, chunk, strict=True)]
    blosc = {
        "typesize": array.dtype.itemsize,
        "cname": "zstd",
        "clevel": level,
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [
            little_endian if array.dtype.itemsize > 1 else {"name": "bytes"},
            {"name": "blosc", "configuration": blosc},
        ],
        "index_codecs": [little_endian, {"name": "crc32c"}],
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


def _group_metadata(attributes):
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


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


# --- the others -----------------------------------------------------------------------------------------------------


def _write_bcolz(path, arrays, attributes, level, chunk, threads):
    """A bcolz table on disk, of two columns; a row is a slice, a chunk is some slices."""
    try:
        import bcolz
    except ModuleNotFoundError as error:
        raise LungmillError(
            "pack.formats: bcolz needs the package bcolz-zipline; Python 3.13 and later need a C compiler to build it"
        ) from error

    del threads  # more than one would write the blocks of a chunk in the order in which they finish
    before = bcolz.set_nthreads(1)
    try:
        table = bcolz.ctable(
            columns=list(arrays.values()),
            names=list(arrays),
            rootdir=str(path),
            mode="w",
            chunklen=chunk[0],
            cparams=bcolz.cparams(clevel=level, cname="zstd", shuffle=bcolz.BITSHUFFLE),
        )
        for name, value in attributes.items():
            table.attrs[name] = value
        table.flush()
    finally:
        bcolz.set_nthreads(before)


def _write_hdf5(path, arrays, attributes, level, chunk, threads):
    """HDF5 with the filters that every build of the library has: shuffle and deflate."""
    import h5py

    del threads  # HDF5 filters in the calling thread
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=chunk,
                shuffle=True,
                compression="gzip",
                compression_opts=level,
                fillvalue=FILL[name],
                track_times=False,
            )
            for z in range(0, array.shape[0], chunk[0]):
                dataset[z : z + chunk[0]] = array[z : z + chunk[0]]
        for name, value in attributes.items():
            file.attrs[name] = _flat(value)


def _write_npz(path, arrays, attributes, level, chunk, threads):
    """What `numpy.savez_compressed` writes, at a level of choice: its own, 6, takes 3 times as long for 2 % less."""
    del chunk, threads  # one stream of deflate
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, value in {**arrays, **{key: np.asarray(_flat(item)) for key, item in attributes.items()}}.items():
            # A member opened by its name gets the date 1980-01-01. write_array passes 16 MB at a time.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)


WRITERS = {"zarr": _write_zarr, "bcolz": _write_bcolz, "hdf5": _write_hdf5, "npz": _write_npz}
