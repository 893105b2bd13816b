"""Measure stores of one volume: size, writing, reading the whole and patches of 64^3, as CPU time on one thread.

    python benchmarks/stores.py [DICOM_FOLDER | VOLUME.npy] [--interpolation cubic] [--rounds 3] [--reads 5]

Without an argument, a patient of the demo cohort is written and measured; a folder is resampled to 1 mm first, and its
mask measured too. The reference is what users of this field store: Blosc, zstd 9, bitshuffle. Printed are medians over
the rounds, and the median and range of the reference's CPU time over lungmill's within a round: above 1, lungmill is
faster. Every store is read by its stock library and compared with the volume first; where it says so, what lungmill
wrote is read by lungmill's own reader as well. Reading is measured `--reads` times for every time of writing.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import numpy as np
import zarr

from lungmill import pack, read_series, resample, segment_lungs
from lungmill.demo import PATIENTS, write_demo_patient
from lungmill.grid import Grid
from lungmill.plane_codec import register
from lungmill.zarr_reader import open_array

PATCH, PATCHES = 64, 12
REFERENCES = {
    "zarr: Blosc zstd 9, 64^3": {"format": "zarr", "codec": "blosc", "level": 9, "chunk": 64},
    "zarr: Blosc zstd 9, 128^3": {"format": "zarr", "codec": "blosc", "level": 9, "chunk": 128},
    "bcolz: Blosc zstd 9": "bcolz",
}
LUNGMILL = {
    "lungmill": {"format": "zarr"},
    "lungmill, pack.codec: planes": {"format": "zarr", "codec": "planes"},
    "lungmill, pack.codec: blosc": {"format": "zarr", "codec": "blosc"},
}
BY_READER = ", own reader"
MEASURES = ("write", "whole", "patch")


def write_bcolz(path, image):
    """A carray with bcolz's own choice of chunk, as the public code of this field writes it."""
    import bcolz

    bcolz.set_nthreads(1)
    cparams = bcolz.cparams(clevel=9, cname="zstd", shuffle=bcolz.BITSHUFFLE)
    bcolz.carray(image, rootdir=str(path), mode="w", cparams=cparams).flush()


def open_image(path, settings):
    if settings == "bcolz":
        import bcolz

        return bcolz.carray(rootdir=str(path), mode="r")
    return zarr.open_group(path, mode="r")["image"]


def size(path):
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def cpu(function):
    """CPU seconds of one call, threads included."""
    start = time.process_time()
    function()
    return time.process_time() - start


def read_patches(stored, corners):
    for z, y, x in corners:
        stored[z : z + PATCH, y : y + PATCH, x : x + PATCH]


def measure(image, mask, rounds, reads, scratch):
    """Return {store: {measure: [seconds], "bytes": .., "mask": ..}}; patches are means over as many as PATCHES."""
    stores = {**LUNGMILL, **REFERENCES}
    try:
        import bcolz  # noqa: F401
    except ModuleNotFoundError:
        del stores["bcolz: Blosc zstd 9"]
    grid = Grid(image.shape, (1, 1, 1), (0, 0, 0))
    nothing = np.zeros_like(mask)  # so that only the image counts
    rng = np.random.default_rng(0)
    corners = [[int(rng.integers(0, max(1, n - PATCH + 1))) for n in image.shape] for _ in range(PATCHES)]
    found = {name: {key: [] for key in MEASURES} for name in stores}
    for settings in LUNGMILL.values():  # what is compiled or imported once is no part of a round
        corner = Grid((9, 9, 9), (1, 1, 1), (0, 0, 0))
        pack(scratch / "first", image[:9, :9, :9].copy(), nothing[:9, :9, :9], corner, **settings)
        open_image(scratch / "first", settings)[:]
    opened = {}
    for _ in range(rounds):
        for name, settings in stores.items():
            path = scratch / name.replace(":", "").replace("^", "")
            shutil.rmtree(path, ignore_errors=True)
            if settings == "bcolz":
                seconds = cpu(lambda path=path: write_bcolz(path, image))
            else:
                seconds = cpu(lambda path=path, settings=settings: pack(path, image, nothing, grid, **settings))
            found[name]["write"].append(seconds)
            found[name]["bytes"] = size(path if settings == "bcolz" else path / "image")
            opened[name] = open_image(path, settings)
            if name in LUNGMILL:
                opened[name + BY_READER] = open_array(path, "image")
            print(".", end="", flush=True, file=sys.stderr)
        for name, stored in opened.items():
            np.testing.assert_array_equal(stored[:], image)
            found.setdefault(name, {**found[name.removesuffix(BY_READER)], "whole": [], "patch": []})
        for _ in range(reads):
            for name, stored in opened.items():
                found[name]["whole"].append(cpu(lambda stored=stored: stored[:]))
                found[name]["patch"].append(cpu(lambda stored=stored: read_patches(stored, corners)) / len(corners))
    print(file=sys.stderr)
    pack(scratch / "mask", image, mask, grid, format="zarr")
    found["lungmill"]["mask"] = size(scratch / "mask" / "mask")
    return found


def report(image, found):
    print(f"\n{'x'.join(map(str, image.shape))}, {image.nbytes / 1e6:.1f} MB of int16\n")
    print(f"{'store':<45} {'MB':>7} {'smaller':>8} {'write s':>8} {'whole s':>8} {'patch ms':>9}")
    for name, row in found.items():
        write, whole, patch = (statistics.median(row[key]) for key in MEASURES)
        times = image.nbytes / row["bytes"]
        print(f"{name:<45} {row['bytes'] / 1e6:7.2f} {times:7.2f}x {write:8.2f} {whole:8.3f} {1e3 * patch:9.2f}")
    print(f"\nlungmill's mask: {found['lungmill']['mask'] / 1e3:.1f} kB")
    for reference in (name for name in REFERENCES if name in found):
        print(f"\nagainst {reference}:")
        for name in (name for name in found if name not in REFERENCES):
            row, ours = found[reference], found[name]
            words = [f"{100 * (1 - ours['bytes'] / row['bytes']):5.1f} % smaller, times faster"]
            for key in MEASURES:
                ratios = [other / own for other, own in zip(row[key], ours[key], strict=True)]
                words.append(f"{key} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"{name:<45} {', '.join(words)}")


def load(source, interpolation, scratch):
    if source is None:
        write_demo_patient(scratch / "patient", PATIENTS[0], 2017)
        source = scratch / "patient"
    if Path(source).suffix == ".npy":
        image = np.load(source)
        return image, segment_lungs(image, (1, 1, 1))[0]
    image, grid = resample(read_series(source), interpolation=interpolation)
    return image, segment_lungs(image, grid.spacing_mm)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="a patient's DICOM folder, or an int16 volume in HU at 1 mm as .npy")
    parser.add_argument("--interpolation", default="cubic", choices=("linear", "cubic"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reads", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write what was measured here")
    options = parser.parse_args()
    # zarr tells with every array that Zarr's specification has no codec of numcodecs.
    warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
    register()
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    with tempfile.TemporaryDirectory() as folder:
        image, mask = load(options.source, options.interpolation, Path(folder))
        found = measure(image, mask, options.rounds, options.reads, Path(folder))
    report(image, found)
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
