"""What a writer left behind, read by the file's own library."""

import hashlib

import bcolz
import h5py
import zarr

KINDS = ["hdf5", "zarr", "bcolz"]


def stored(kind, path, name="a"):
    """All that the file holds."""
    if kind == "hdf5":
        with h5py.File(path, "r") as file:
            return file[name][:]
    return zarr.open_group(path, mode="r")[name][:] if kind == "zarr" else bcolz.open(str(path), mode="r")[:]


def files_of(path):
    """Digest of every file below a path, or of the file."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
