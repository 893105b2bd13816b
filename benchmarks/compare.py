"""Measure lungmill's steps against what a user would write or pick instead, on the same series in the same run.

    python benchmarks/compare.py [DICOM_FOLDER] [--rounds 5]

Without a folder, a patient of the demo cohort is written and measured. Everything runs on one thread. What counts is
the ratio of CPU times within one round; printed are its median and range over the rounds, after one unmeasured round.
For resampling it is also said how many plain copies of the output, within memory, take as long: what no program that
writes the output can beat.
SimpleITK comes with requirements-dev.txt; its lines, and those of MONAI and TorchIO, are left out where they are not
installed.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import numpy as np
from instead import (
    ITK_INTERPOLATORS,
    bcolz_of_2017,
    load_with_monai,
    load_with_torchio,
    lungs_of_2017,
    read_with_pydicom,
    resample_with_simpleitk,
    zoom_with_scipy,
)

from lungmill import pack, read_series, resample, segment_lungs
from lungmill.demo import PATIENTS, write_demo_patient


def cpu(function):
    """CPU seconds of one call, threads included."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(folder, repeats):
    """Return {line: {"lungmill": [seconds], "other": [seconds], "copy": [seconds]}}.

    copy: of the resampled volume to memory that is already there, empty for lines that are not resampling.
    """
    series = read_series(folder)
    array = series.to_array()
    source_mm = (float(np.median(series.geometry.steps_mm)), *series.geometry.pixel_spacing)
    volume, grid = resample(series)
    mask, _ = segment_lungs(volume, grid.spacing_mm)
    scratch = Path(tempfile.mkdtemp())
    pairs = {
        "read to HU: pydicom, whole folder": (
            lambda: read_series(folder).to_array(),
            lambda: read_with_pydicom(folder),
        ),
        "resample, linear: scipy zoom(order=1)": (
            lambda: resample(array, series.geometry),
            lambda: zoom_with_scipy(array, source_mm, 1),
        ),
        "resample, cubic: scipy zoom(order=3)": (
            lambda: resample(array, series.geometry, interpolation="cubic"),
            lambda: zoom_with_scipy(array, source_mm, 3),
        ),
        "lung mask: the 2017 recipe": (
            lambda: segment_lungs(volume, grid.spacing_mm),
            lambda: lungs_of_2017(volume),
        ),
        "store: bcolz, zstd 9": (
            lambda: pack(scratch / "ours", volume, mask, grid, format="zarr"),
            lambda: bcolz_of_2017(scratch / "theirs", volume),
        ),
    }
    for method in ITK_INTERPOLATORS if find_spec("SimpleITK") else ():
        pairs[f"resample, {method}: SimpleITK"] = (
            lambda method=method: resample(array, series.geometry, interpolation=method),
            lambda method=method: resample_with_simpleitk(array, series, grid, method),
        )
    for name, load in {"monai": load_with_monai, "torchio": load_with_torchio}.items():
        for method in ITK_INTERPOLATORS if find_spec(name) else ():
            pairs[f"read and resample, {method}: {name}"] = (
                lambda method=method: resample(read_series(folder), interpolation=method),
                lambda method=method, load=load: load(folder, method),
            )
    times = {line: {"lungmill": [], "other": [], "copy": []} for line in pairs}
    copied = np.zeros_like(volume)
    for round_ in range(repeats + 1):
        for line, (ours, other) in pairs.items():
            seconds = cpu(ours), cpu(other)
            if round_:
                times[line]["lungmill"].append(seconds[0])
                times[line]["other"].append(seconds[1])
                if line.startswith("resample"):
                    times[line]["copy"].append(cpu(lambda: np.copyto(copied, volume)))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    shutil.rmtree(scratch)
    print(f"{len(series)} slices of {array.shape[1]}x{array.shape[2]} to {'x'.join(map(str, grid.shape))} at 1 mm")
    return times


def report(times):
    print(f"\n{'step: instead of lungmill':<40} {'lungmill':>9} {'instead':>9}   times faster (range)     plain copies")
    for line, seconds in times.items():
        spread = in_words(seconds["other"], seconds["lungmill"])
        copies = in_words(seconds["lungmill"], seconds["copy"]) if seconds["copy"] else ""
        ours, other = (statistics.median(seconds[key]) for key in ("lungmill", "other"))
        print(f"{line:<40} {ours:7.2f} s {other:7.2f} s   {spread:<22}   {copies}".rstrip())


def in_words(slower, faster):
    """Median and range of the ratios of one round each."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(ratios):5.1f}  ({min(ratios):.1f} to {max(ratios):.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="a patient's DICOM folder")
    parser.add_argument("--rounds", "--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write what was measured here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not options.folder:
            options.folder = Path(scratch) / "patient"
            write_demo_patient(options.folder, PATIENTS[0], 2017)
        found = measure(options.folder, options.rounds)
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
