"""A small finished cohort, for the tests of patches: random voxels, so that a patch lies in one place only."""

import signal
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np

from lungmill.annotations import Nodule
from lungmill.dataset import make_dataset
from lungmill.files import write_json
from lungmill.grid import Grid
from lungmill.packing import create_cohort_group, pack
from lungmill.patches import cut_patches
from lungmill.positions import write_positions

STORES = ["npy", "zarr", "zarr_zip", "hdf5", *(["bcolz"] if find_spec("bcolz") else [])]
SPACING = (2.0, 1.0, 1.0)
CHUNK = 16
# Shapes and voxels of nodules. carl has no lungs, and only anna and dora have nodules.
PATIENTS = {
    "anna": ((30, 44, 52), [(12, 20, 14), (20, 30, 37)]),
    "bert": ((25, 40, 41), []),
    "carl": ((20, 33, 32), []),
    "dora": ((33, 48, 47), [(3, 20, 12)]),
}
SPLITS = {"anna": "train", "bert": "train", "carl": "train", "dora": "test"}


@contextmanager
def limit(seconds):
    """Make a hang a failure."""

    def give_up(*_):
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def grid_of(name):
    return Grid(PATIENTS[name][0], SPACING, (-50.0, 10.0, float(len(name))))


def volume_of(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    volume = rng.integers(-1000, 2000, PATIENTS[name][0]).astype(np.int16)
    volume[:, :CHUNK, -20:] = -1024  # a chunk of air, which zarr does not store
    return volume


def mask_of(name):
    mask = np.zeros(PATIENTS[name][0], np.uint8)
    if name != "carl":
        middle = mask.shape[2] // 2
        mask[1:-1, 8:-8, 6 : middle - 2] = 1
        mask[2:-2, 8:-8, middle + 2 : -6] = 2
    return mask


def nodules_of(name):
    return [Nodule(name, tuple(grid_of(name).to_mm(voxel).tolist()), 6.0) for voxel in PATIENTS[name][1]]


def positions_of(name, number=300):
    """A table as the workflow writes it, by other means: random voxels in and outside the mask."""
    mask, rng = mask_of(name), np.random.default_rng(7)
    if not mask.any():
        return {label: np.empty((0, 3), np.int32) for label in ("lung", "pleura", "background")}
    tables = {}
    for label, where in (("lung", mask > 0), ("pleura", mask == 2), ("background", mask == 0)):
        voxels = np.argwhere(where)
        chosen = rng.choice(len(voxels), number, replace=False)
        tables[label] = voxels[np.sort(chosen)].astype(np.int32)
    return tables


def make_cohort(folder, stores=("npy", "zarr"), annotated=True, patch_shape=(8, 12, 12)):
    """Write the results of a run with volumes, masks and positions, and the stores and patches asked for."""
    products = {"volume", "mask", "positions"} | (set(stores) - {"npy"}) | ({"patches"} if annotated else set())
    for name in PATIENTS:
        volume, mask, grid = volume_of(name), mask_of(name), grid_of(name)
        for part, array in (("volumes", volume), ("masks", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            np.save(folder / part / f"{name}.npy", array)
        write_json(folder / "volumes" / f"{name}.json", {"patient": name, **grid.as_dict(), "series": None})
        write_positions(folder / "masks" / f"{name}.positions.npz", positions_of(name))
        for store, path in (
            ("zarr", f"cohort.zarr/{name}"),
            ("zarr_zip", f"zarr/{name}.zarr.zip"),
            ("hdf5", f"hdf5/{name}.h5"),
            ("bcolz", f"bcolz/{name}.bcolz"),
        ):
            if store in stores:
                pack(folder / path, volume, mask, grid, format=store, chunk=8 if store == "bcolz" else CHUNK)
        if annotated:
            cut_patches(
                folder / "patches" / f"{name}.h5",
                volume,
                positions_of(name),
                grid,
                shape=patch_shape,
                per_class=6,
                nodules=nodules_of(name),
                seed=0,
                patient=name,
            )
    if "zarr" in stores:
        create_cohort_group(folder / "cohort.zarr")
    rows = [{"patient": name, "split": SPLITS[name]} for name in PATIENTS]
    make_dataset(folder / "dataset.tsv", rows, products=products, fractions={"train": 1.0}, seed=0)
    return folder


def cut_out(array, centre, shape, fill):
    """A patch by np.pad of the whole array and a plain slice."""
    solid = (1, *shape)[-3:]
    wide = max(solid)
    padded = np.pad(array, wide, constant_values=fill)
    start = [int(c) + wide - n // 2 for c, n in zip(centre, solid, strict=True)]
    return padded[tuple(slice(s, s + n) for s, n in zip(start, solid, strict=True))].reshape(shape)
