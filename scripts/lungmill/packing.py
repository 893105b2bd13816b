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
from pathlib import Path

import numpy as np

from lungmill.errors import ConfigError, LungmillError
from lungmill.files import replacing, write_json
from lungmill.version import __version__
from lungmill.zarr_store import CODECS, FILES, FILL, cohort_metadata, write_zarr

ZARR_FILES = FILES  # what a zarr patient consists of, whatever the size of the volume

SUFFIX = {"zarr": "", "zarr_zip": ".zarr.zip", "bcolz": ".bcolz", "hdf5": ".h5", "npz": ".npz"}

# Measured on a real chest at 1 mm, (331, 330, 330), 72 MB of int16, one thread: the next level up costs 1.5 to 3 times
# the time for at most 3 % of the size. Those of zarr stand with its codecs.
LEVEL = {"bcolz": 3, "hdf5": 3, "npz": 1}

# zarr and hdf5: near to the patches that training reads. bcolz: whole slices, of which the first number counts.
# In zarr those of an image become shorter until they divide the volume evenly, so that little of the last ones lies
# beyond it; those of a mask stay, since bitshuffle finds more in rows of whole bytes.
CHUNK = {"zarr": (64, 64, 64), "zarr_zip": (64, 64, 64), "bcolz": (16, 0, 0), "hdf5": (64, 64, 64), "npz": (0, 0, 0)}


def pack(path, image, mask, grid, *, format, metadata=None, codec=None, level=None, chunk=None, threads=1):
    """Write image and mask of one patient to `path` in a format: "zarr", "zarr_zip", "bcolz", "hdf5" or "npz".

    image: int16 HU and mask: uint8 labels, both [z, y, x] of `grid.shape`; memory-mapped files are read a slab at a
    time. metadata: attributes to write besides the geometry, values that JSON can hold. codec: of the image in zarr:
    "pcodec" (None), which needs the package pcodec to be read, "blosc", which every reader of Zarr v3 knows, a larger
    file, or "planes", a smaller one, which only lungmill reads.
    level: of the compressor, 0 to 9 (pcodec, or zstd in Blosc, for the image in zarr; zstd in Blosc for bcolz; deflate
    for hdf5 and npz); None takes what was measured best. chunk: edge of a chunk in voxels, a number or [z, y, x]; None
    takes `CHUNK[format]`, and divides images in zarr evenly. bcolz cuts along z only, and npz not at all. threads: at
    most as many compress (zarr uses them; the others use one); the bytes do not depend on it. "zarr_zip" is "zarr" in
    one file, `path` ending in .zip.

    The store takes its name when it is complete, and the same input gives the same bytes. Raises LungmillError when
    image, mask and grid do not belong together, ConfigError on an unknown format or codec.
    """
    if format not in FORMATS:
        raise ConfigError(f"pack.formats: {format!r} is not one of {', '.join(FORMATS)}")
    codec = codec or "pcodec"
    if codec not in CODECS:
        raise ConfigError(f"pack.codec: {codec!r} is not one of {', '.join(CODECS)}")
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
    edges = _chunk_shape(CHUNK[format] if chunk is None else chunk, grid.shape)
    arrays = {"image": image, "mask": mask}
    with replacing(path) as temporary:
        if format in ("zarr", "zarr_zip"):
            chunks = {"image": _even_edges(edges, grid.shape) if chunk is None else edges, "mask": edges}
            write_zarr(temporary, arrays, attributes, codec, level, chunks, threads, zipped=format == "zarr_zip")
        else:  # one thread: more would write the blocks of a chunk in the order in which they finish, or do nothing
            WRITERS[format](temporary, arrays, attributes, LEVEL[format] if level is None else level, edges)


def create_cohort_group(path):
    """Write the `zarr.json` that makes the folder `path` a Zarr v3 group; the patients in it are left alone."""
    write_json(Path(path) / "zarr.json", cohort_metadata())


def _chunk_shape(chunk, shape):
    """Three edges, none longer than the volume's; 0 stands for the whole axis."""
    edges = (chunk,) * 3 if np.ndim(chunk) == 0 else tuple(chunk)
    return tuple(max(1, min(int(edge) or n, n)) for edge, n in zip(edges, shape, strict=True))


def _even_edges(longest, shape):
    """Edges of as many chunks as `longest` would give, each no longer than it must be."""
    return tuple(math.ceil(n / math.ceil(n / edge)) for edge, n in zip(longest, shape, strict=True))


def _flat(value):
    """A value that an HDF5 attribute or a NumPy array can hold: anything nested becomes JSON text."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (bool, int, float)) for v in value):
        return list(value)
    return json.dumps(value)


def _write_bcolz(path, arrays, attributes, level, chunk):
    """A bcolz table on disk, of two columns; a row is a slice, a chunk is some slices."""
    try:
        import bcolz
    except ModuleNotFoundError as error:
        raise LungmillError(
            "pack.formats: bcolz needs the package bcolz-zipline; Python 3.13 and later need a C compiler to build it"
        ) from error

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


def _write_hdf5(path, arrays, attributes, level, chunk):
    """HDF5 with the filters that every build of the library has: shuffle and deflate."""
    import h5py

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


def _write_npz(path, arrays, attributes, level, chunk):
    """What `numpy.savez_compressed` writes, at a level of choice: its own, 6, takes 3 times as long for 2 % less."""
    del chunk  # one stream of deflate
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, value in {**arrays, **{key: np.asarray(_flat(item)) for key, item in attributes.items()}}.items():
            # A member opened by its name gets the date 1980-01-01. write_array passes 16 MB at a time.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)


WRITERS = {"bcolz": _write_bcolz, "hdf5": _write_hdf5, "npz": _write_npz}
FORMATS = ("zarr", "zarr_zip", *WRITERS)
