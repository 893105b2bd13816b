"""Every store that this machine can write, opened by its own library and none of ours."""

from importlib.util import find_spec

import h5py
import numpy as np
import zarr

# bcolz has no ready-made package for Python 3.13 and later.
FORMATS = ["zarr", *(["bcolz"] if find_spec("bcolz") else []), "hdf5", "npz"]
EVERY_FORMAT = "{formats: [" + ", ".join(FORMATS) + "]}"


def open_stores(results, patient):
    """Format to an open store of the patient, each of which gives an array as `store["image"][:]`."""
    stores = {
        "zarr": zarr.open_group(results / "cohort.zarr", mode="r")[patient],
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
