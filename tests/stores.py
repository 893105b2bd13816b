"""Every store that this machine can write, opened by its own library and none of ours, and a chest to put in it."""

from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import zarr
from zarr.storage import ZipStore

from lungmill.grid import Grid

# bcolz has no ready-made package for Python 3.13 and later.
FORMATS = ["zarr", "zarr_zip", *(["bcolz"] if find_spec("bcolz") else []), "hdf5", "npz"]
EVERY_FORMAT = "{formats: [" + ", ".join(FORMATS) + "]}"


def open_stores(results, patient):
    """Format to an open store of the patient, each of which gives an array as `store["image"][:]`."""
    stores = {
        "zarr": zarr.open_group(results / "cohort.zarr", mode="r")[patient],
        "zarr_zip": zarr.open_group(ZipStore(results / "zarr" / f"{patient}.zarr.zip", mode="r"), mode="r"),
        "hdf5": h5py.File(results / "hdf5" / f"{patient}.h5"),
        "npz": np.load(results / "npz" / f"{patient}.npz"),
    }
    if "bcolz" in FORMATS:
        import bcolz

        stores["bcolz"] = bcolz.open(str(results / "bcolz" / f"{patient}.bcolz"), mode="r")
    return stores


def assert_stores_equal_arrays(results, patient):
    """All stores hold what the .npy files hold."""
    stores = open_stores(results, patient)
    assert set(stores) == set(FORMATS)
    for name, folder in (("image", "volumes"), ("mask", "masks")):
        expected = np.load(results / folder / f"{patient}.npy", mmap_mode="r")
        for store in stores.values():
            np.testing.assert_array_equal(store[name][:], expected)


def files_of(path):
    """Relative name and bytes of every file of a store."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def chest(shape, seed=0):
    """Noise of a scanner around tissue and air, with a part of nothing but air, and two lungs."""
    rng = np.random.default_rng(seed)
    image = np.full(shape, -1024, np.int16)
    mask = np.zeros(shape, np.uint8)
    z, y, x = (n // 4 for n in shape)
    inner = np.s_[z : shape[0] - z, y : shape[1] - y, x : shape[2] - x]
    image[inner] = rng.normal(-300, 400, image[inner].shape).clip(-1024, 3071)
    mask[inner] = 2
    mask[:, :, : shape[2] // 2][mask[:, :, : shape[2] // 2] > 0] = 1
    return image, mask, Grid(shape, (1.25, 0.7, 0.7), (-300.5, -180.25, -171.0))
