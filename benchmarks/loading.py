"""Random 64x64x64 patches per second: lungmill against what a user would write instead, on the same positions.

    python benchmarks/loading.py [RESULTS] [--repeats 5] [--patches 512]

RESULTS is the folder of a finished run; up to four of its patients are read. Without it, volumes of noise are made.
The files are in the page cache: what is measured is the work, not the disk. What counts is the ratio to the plain NumPy
loop over memory-mapped .npy within one round; printed are its median and range, after one unmeasured round.
Loaders with workers are timed from their first batch on, so that starting processes is left out. torch and
batchgenerators are left out where they are not installed.
"""

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "BLOSC_NTHREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import h5py
import numcodecs.blosc
import numpy as np
import zarr

from lungmill import Grid, make_dataset, open_cohort, pack
from lungmill.files import write_json
from lungmill.training import patch_stores
from lungmill.training.dataflow import DataFlow
from lungmill.training.patch_source import PatchSource

EDGE, BATCH, PATIENTS = 64, 8, 4
LIMIT = "NumPy loop over memory maps"
SLOWER = 4  # decoding takes longer: so many times fewer patches from compressed stores
numcodecs.blosc.set_nthreads(1)


def make_cohort(folder, results):
    """The same volumes as .npy, zarr and HDF5: those of a run, or noise as smooth as a chest."""
    patients = list(open_cohort(results).values())[:PATIENTS] if results else [None] * PATIENTS
    for number, patient in enumerate(patients):
        name = f"p{number}"
        volume = np.load(patient.paths["volume"]) if patient else _noise(number)
        grid = Grid(volume.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
        (folder / "volumes").mkdir(exist_ok=True)
        np.save(folder / "volumes" / f"{name}.npy", volume)
        write_json(folder / "volumes" / f"{name}.json", grid.as_dict())
        mask = (volume < -400).astype(np.uint8)
        for format, path in (("zarr", f"cohort.zarr/{name}"), ("hdf5", f"hdf5/{name}.h5")):
            pack(folder / path, volume, mask, grid, format=format)
    rows = [{"patient": f"p{number}"} for number in range(len(patients))]
    products = {"volume", "zarr", "hdf5"}
    make_dataset(folder / "dataset.tsv", rows, products=products, fractions={"train": 1.0}, seed=0)
    return open_cohort(folder)


def _noise(seed, shape=(300, 340, 340)):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(-500, 400, [n // 10 + 1 for n in shape])
    for axis, n in enumerate(shape):
        coarse = np.repeat(coarse, 10, axis=axis).take(range(n), axis=axis)
    return np.clip(coarse + rng.normal(0, 20, shape), -1024, 2000).astype(np.int16)


def sources_of(cohort, count):
    """A PatchSource for each store, all with the same patches, which lie inside their volumes."""
    rng = np.random.default_rng(0)
    inside = {
        name: rng.integers(EDGE // 2, np.array(patient.grid.shape) - EDGE // 2 + 1, (count, 3))
        for name, patient in cohort.items()
    }
    shape, classes = (EDGE,) * 3, ("inside",)
    return {
        store: PatchSource(cohort, shape, classes, positions={"inside": inside}, store=store, length=length)
        for store, length in (("npy", count), ("zarr", count // SLOWER), ("hdf5", count // SLOWER))
    }


def opened(source):
    """The arrays of a store, opened by its own library, and where each patch begins: what a user would write."""
    arrays = {}
    for name, patient in source.cohort.items():
        if source.store == "npy":
            arrays[name] = np.load(patient.paths["volume"], mmap_mode="r")
        elif source.store == "zarr":
            arrays[name] = zarr.open_group(patient.paths["zarr"], mode="r")["image"]
        else:
            arrays[name] = h5py.File(patient.paths["hdf5"])["image"]
    return arrays, list(zip(source.table["patient"], (source.voxels - EDGE // 2).tolist(), strict=True))


def cut(arrays, place):
    name, (z, y, x) = place
    return arrays[name][z : z + EDGE, y : y + EDGE, x : x + EDGE]


def plain_loop(source):
    arrays, places = opened(source)
    for first in range(0, len(places), BATCH):
        part = places[first : first + BATCH]
        batch = np.empty((len(part), EDGE, EDGE, EDGE), np.int16)
        for target, place in zip(batch, part, strict=True):
            target[...] = cut(arrays, place)
        yield batch


def patch_source(source):
    for first in range(0, len(source), BATCH):
        yield source.images[first : first + BATCH]


def data_flow(source, workers):
    flow = DataFlow([source.images], BATCH, nb_io_workers=workers, loop_forever=False)
    for batch in flow.flow():
        yield batch[0]


def torch_by_hand(source, workers):
    import torch
    from torch.utils.data import DataLoader, Dataset

    class ByHand(Dataset):
        def __init__(self):
            _, self.places = opened(source)
            self.arrays = None

        def __len__(self):
            return len(self.places)

        def __getitem__(self, index):
            if self.arrays is None:  # in the worker: HDF5 files do not survive a fork
                self.arrays, _ = opened(source)
            return torch.from_numpy(np.array(cut(self.arrays, self.places[index])))

    yield from DataLoader(ByHand(), batch_size=BATCH, num_workers=workers)


def torch_over_lungmill(source, workers):
    from torch.utils.data import DataLoader

    from lungmill.training.torch_data import ArrayDataset

    yield from DataLoader(ArrayDataset(source.images), batch_size=BATCH, num_workers=workers)


def batchgenerators_by_hand(source, workers):
    from batchgenerators.dataloading.data_loader import DataLoader

    class ByHand(DataLoader):
        def __init__(self):
            super().__init__(None, BATCH, workers, shuffle=False, return_incomplete=True)
            _, self.places = opened(source)
            self.indices = list(range(len(self.places)))
            self.arrays = None

        def generate_train_batch(self):
            if self.arrays is None:
                self.arrays, _ = opened(source)
            return {"data": np.stack([cut(self.arrays, self.places[index]) for index in self.get_indices()])}

    yield from _augmenter(ByHand(), workers)


def batchgenerators_over_lungmill(source, workers):
    from batchgenerators.dataloading.data_loader import DataLoader

    class OverLungmill(DataLoader):  # PatchLoader would make it float32
        def __init__(self):
            super().__init__(None, BATCH, workers, shuffle=False, return_incomplete=True)
            self.indices = list(range(len(source)))

        def generate_train_batch(self):
            return {"data": source.images[np.array(self.get_indices())]}

    yield from _augmenter(OverLungmill(), workers)


def _augmenter(loader, workers):
    from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

    augmenter = MultiThreadedAugmenter(loader, None, workers, seeds=list(range(workers)))
    try:
        for batch in augmenter:
            yield batch["data"]
    finally:
        augmenter._finish()


def loaders(source):
    """{line: function that makes an iterator of batches} for one store."""
    own = {"npy": LIMIT, "zarr": "zarr-python loop", "hdf5": "h5py loop"}[source.store]
    lines = {own: lambda: plain_loop(source), "lungmill PatchSource": lambda: patch_source(source)}
    makers = {"lungmill DataFlow": data_flow}
    if _has("torch"):
        makers |= {"torch, dataset by hand": torch_by_hand, "torch, ArrayDataset": torch_over_lungmill}
    if _has("batchgenerators"):
        makers |= {"batchgenerators, by hand": batchgenerators_by_hand}
        makers |= {"batchgenerators, PatchSource": batchgenerators_over_lungmill}
    for (line, maker), workers in itertools.product(makers.items(), (1, 2)):
        lines[f"{line}, {workers} worker{'s' * (workers > 1)}"] = lambda m=maker, w=workers: m(source, w)
    return lines


def _has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def rate(make, expected):
    """Patches per second of wall time, from the first batch on; all of them are there."""
    with closing(make()) as batches:
        seen = len(next(batches))
        start, before = time.perf_counter(), seen
        for batch in batches:
            seen += len(batch)
        seconds = time.perf_counter() - start
    assert seen == expected, (seen, expected)
    return (seen - before) / seconds


def measure(sources, repeats):
    """Return {store: {line: [patches per second]}}, round by round."""
    rates = {}
    for round_ in range(repeats + 1):
        for store, source in sources.items():
            for line, make in loaders(source).items():
                found = rate(make, len(source))
                if round_:
                    rates.setdefault(store, {}).setdefault(line, []).append(found)
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rates


def report(rates):
    limit = rates["npy"][LIMIT]
    for store, lines in rates.items():
        print(f"\n{store:<42} {'patches/s':>9}   ratio to the {LIMIT} (range)")
        for line, found in lines.items():
            ratios = [mine / best for mine, best in zip(found, limit, strict=True)]
            spread = f"{statistics.median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{line:<42} {statistics.median(found):9.0f}   {spread}")


def count_chunks(source):
    """Chunks decoded per patch, and the fewest that hold all of its voxels."""
    decoded = []
    decode = patch_stores.ShardReader._decode_into
    patch_stores.ShardReader._decode_into = lambda *arguments: decoded.append(1) or decode(*arguments)
    try:
        source.images[:]
    finally:
        patch_stores.ShardReader._decode_into = decode
    first = source.voxels - EDGE // 2
    fewest = ((first + EDGE - 1) // 64 - first // 64 + 1).prod(axis=1).sum()
    print(
        f"\nchunks of 64x64x64 decoded per patch: {len(decoded) / len(source):.2f}, fewest {fewest / len(source):.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", help="the folder of a finished run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patches", type=int, default=512)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        made = sources_of(make_cohort(scratch, options.results), options.patches)
        report(measure(made, options.repeats))
        count_chunks(made["zarr"])
    finally:
        shutil.rmtree(scratch)
