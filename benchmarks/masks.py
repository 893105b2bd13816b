"""Measure the lung mask: time of every stage, memory, and what comes out of hard situations.

    python benchmarks/masks.py [DICOM_FOLDER] [--rounds 5]
    python benchmarks/masks.py --situations [--only NAME ...] [--spacing 1] [--pictures FOLDER]
    python benchmarks/masks.py [DICOM_FOLDER ...] --pictures FOLDER

The first form measures one patient at 1 mm; without a folder, one of the demo cohort. Everything runs on one thread;
printed are CPU seconds (median over the rounds, after one mask that is not measured) and ratios within one round
(median and range). What stands beside a stage does on the 1 mm volume what the stage does on its blocks, with the
usual call of scipy or scikit-image. Peak memory is that of a process of its own; what it held before the method
began, the volume among it, is printed beside it.
`--situations` prints a table of tests/hard_situations.py; `--pictures` writes a PNG for each situation or each folder.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("scripts", "tests", "benchmarks")]

# first: it sets the number of threads before NumPy is imported
from instead import lungs_of_2017  # isort: split

import numpy as np
from scipy import ndimage

from lungmill import read_series, resample, segmentation
from lungmill.demo import PATIENTS, write_demo_patient
from lungmill.pictures import montage
from lungmill.segmentation import segment_lungs

AIR_HU, CLOSING_MM, BODY_MM = -400, 9, 4


# What a user would write instead


def lungs_slice_by_slice(volume):
    """The LUNA16 notebook: in every slice clear the border, keep the two largest regions, erode, close, fill."""
    from skimage import measure, morphology, segmentation

    mask = np.zeros(volume.shape, bool)
    for plane, out in zip(volume, mask, strict=True):
        labels = measure.label(segmentation.clear_border(plane < AIR_HU))
        regions = sorted(measure.regionprops(labels), key=lambda region: region.area)
        binary = np.isin(labels, [region.label for region in regions[-2:]])
        binary = ndimage.binary_erosion(binary, morphology.disk(2))
        binary = ndimage.binary_closing(binary, morphology.disk(10))
        out[:] = ndimage.binary_fill_holes(binary)
    return mask


def lungs_in_3d(volume):
    """The plain 3-D version: enclosed air, its two largest components, closed with exact distances, filled."""
    labels, count = ndimage.label(volume < AIR_HU)
    outside = np.unique(np.concatenate([side.ravel() for side in (labels[:, 0], labels[:, -1])]))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[outside] = 0
    sizes[0] = 0
    lungs = np.isin(labels, np.argsort(sizes)[-2:][np.sort(sizes)[-2:] > 0.1 * sizes.max()])
    return ndimage.binary_fill_holes(closed_exactly(lungs, CLOSING_MM))


def closed_exactly(mask, radius_mm):
    """A closing with a ball: two exact distance transforms of the mask's box, at 1 mm."""
    box = tuple(slice(max(0, cut.start - 20), cut.stop + 20) for cut in ndimage.find_objects(mask.astype(np.uint8))[0])
    near = ndimage.distance_transform_edt(~mask[box]) <= radius_mm
    out = mask.copy()
    out[box] |= ndimage.distance_transform_edt(near) > radius_mm
    return out


def opened_by_skimage(mask, radius_mm):
    from skimage import morphology

    return morphology.opening(mask.view(np.uint8), morphology.ball(radius_mm, decomposition="sequence"))


def closed_by_skimage(mask, radius_mm):
    from skimage import morphology

    box = tuple(slice(max(0, cut.start - 20), cut.stop + 20) for cut in ndimage.find_objects(mask.astype(np.uint8))[0])
    return morphology.closing(mask[box].view(np.uint8), morphology.ball(radius_mm, decomposition="sequence"))


def parted_by_watershed(lungs):
    """Seeds where the lungs are deep, grown over the distance: the usual way to part what touches."""
    from skimage.segmentation import watershed

    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(lungs[box])
    seeds, _ = ndimage.label(depth > 20)
    return watershed(-depth, seeds, mask=lungs[box])


def label_by_skimage(mask):
    from skimage import measure

    return measure.label(mask, connectivity=1)


def label_by_cc3d(mask):
    import cc3d

    return cc3d.connected_components(mask, connectivity=6)


METHODS = {
    "lungmill": lambda volume, spacing_mm: segment_lungs(volume, spacing_mm)[0],
    "2017 recipe": lambda volume, spacing_mm: lungs_of_2017(volume),
    "LUNA16 notebook, slice by slice": lambda volume, spacing_mm: lungs_slice_by_slice(volume),
    "plain 3-D, scipy": lambda volume, spacing_mm: lungs_in_3d(volume),
}
# (stage of lungmill, what does the same at 1 mm, function of volume and lungs)
EQUIVALENTS = (
    ("find_body", "skimage: opening by ball(4), decomposed",
     lambda volume, lungs: opened_by_skimage(volume >= AIR_HU, BODY_MM)),
    ("enclosed_air", "scipy.ndimage.label of air", lambda volume, lungs: ndimage.label(volume < AIR_HU)),
    ("enclosed_air", "skimage.measure.label of air", lambda volume, lungs: label_by_skimage(volume < AIR_HU)),
    ("enclosed_air", "cc3d of air", lambda volume, lungs: label_by_cc3d(volume < AIR_HU)),
    ("split_sides", "scipy and skimage: watershed on the distance",
     lambda volume, lungs: parted_by_watershed(lungs & (volume < AIR_HU))),
    ("close_lungs", "scipy: binary_fill_holes", lambda volume, lungs: ndimage.binary_fill_holes(lungs)),
    ("close_lungs", "scipy: closing by 9 mm, two exact distance transforms",
     lambda volume, lungs: closed_exactly(lungs, CLOSING_MM)),
    ("close_lungs", "skimage: closing by ball(9), decomposed",
     lambda volume, lungs: closed_by_skimage(lungs, CLOSING_MM)),
)  # fmt: skip


def cpu(function, *arguments):
    """(CPU seconds of one call, what it returned)."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


class Stages:
    """Times what `segment_lungs` calls: every function of lungmill that its code names, whatever it is called."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self.depth = 0
        self.saved = {}

    def __enter__(self):
        for name in segment_lungs.__code__.co_names:
            value = getattr(segmentation, name, None)
            if callable(value) and str(getattr(value, "__module__", "")).startswith("lungmill"):
                self.saved[name] = value
                setattr(segmentation, name, _Methods(name, value, self) if isinstance(value, type) else
                        self.timed(name, value))  # fmt: skip
        return self

    def __exit__(self, *_):
        for name, value in self.saved.items():
            setattr(segmentation, name, value)

    def timed(self, name, function):
        def call(*arguments, **named):
            self.depth += 1
            start = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.depth -= 1
                if not self.depth:  # a stage within a stage counts there
                    self.seconds[name] += time.process_time() - start

        return call


class _Methods:
    """Stands for a class whose class methods are timed, such as `Blocks.of`."""

    def __init__(self, name, value, stages):
        self._name, self._value, self._stages = name, value, stages

    def __getattr__(self, attribute):
        return self._stages.timed(f"{self._name}.{attribute}", getattr(self._value, attribute))

    def __call__(self, *arguments, **named):
        return self._value(*arguments, **named)


def stage_seconds(volume, spacing_mm):
    """{stage: CPU seconds} of one mask, `whole` and `rest` among them."""
    with Stages() as stages:
        whole, _ = cpu(segment_lungs, volume, spacing_mm)
    seconds = dict(stages.seconds)
    return {"whole": whole, **seconds, "rest": whole - sum(seconds.values())}


def fresh_process(method, scratch, spacing_mm):
    """(peak MB, MB before, share of the nodule's voxels inside or None) of a method in a process of its own."""
    command = [sys.executable, __file__, "--one", method, "--scratch", scratch, "--spacing-zyx", *map(str, spacing_mm)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return json.loads(run.stdout)


def run_one(method, scratch, spacing_mm):
    volume = np.load(scratch / "volume.npy")
    few = np.ascontiguousarray(volume[:: max(1, len(volume) // 8)])
    METHODS[method](few, spacing_mm)  # imports, compiled code
    before = peak_mb(reset=True)
    mask = METHODS[method](volume, spacing_mm)
    nodules = np.load(scratch / "nodules.npy")
    share = float((mask[tuple(nodules.T)] > 0).mean()) if len(nodules) else None
    print(json.dumps([peak_mb(), before, share]))


def peak_mb(reset=False):
    """Largest memory of this process; with `reset` what it holds now, and the peak counts from here.

    Linux keeps ru_maxrss of the parent over fork and exec; VmHWM begins anew, and /proc/self/clear_refs resets it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes, and no reset
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6


def measure(folder, rounds):
    series = read_series(folder)
    volume, grid = resample(series)
    size = f"{len(series)} slices to {'x'.join(map(str, grid.shape))} at 1 mm, {volume.nbytes / 1e6:.0f} MB"
    lungs = segment_lungs(volume, grid.spacing_mm)[0] > 0
    rows = defaultdict(list)
    for _ in range(rounds):
        for name, value in stage_seconds(volume, grid.spacing_mm).items():
            rows["stage", name].append(value)
        for name, method in METHODS.items():
            rows["method", name].append(cpu(method, volume, grid.spacing_mm)[0])
            print(".", end="", flush=True, file=sys.stderr)
        for stage, name, function in EQUIVALENTS:
            rows["equivalent", stage, name].append(cpu(function, volume, lungs)[0])
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    print(f"{size}; {rounds} rounds\n")
    print(f"{'mask':<34} {'CPU':>8} {'times lungmill':>22} {'peak':>9} {'of it before':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "volume.npy", volume)
        np.save(Path(scratch) / "nodules.npy", nodule_points(folder, series, grid))
        for name in METHODS:
            peak, before, share = fresh_process(name, scratch, grid.spacing_mm)
            words = "" if share is None else f"   {share:.4f} of the nodule's voxels"
            times = with_ratio(rows["method", name], rows["method", "lungmill"])
            print(f"{name:<34} {times} {peak:6.0f} MB {before:10.0f} MB{words}", flush=True)
    print(f"\n{'stage':<34} {'CPU':>8}")
    stages = [key for key in rows if key[0] == "stage"]
    for key in stages:
        print(f"{key[1]:<34} {statistics.median(rows[key]):6.3f} s")
    print(f"\n{'instead of a stage, at 1 mm':<72} {'CPU':>8} {'times the stage':>22}")
    for stage, name, _ in EQUIVALENTS:
        print(f"{stage + ': ' + name:<72} {with_ratio(rows['equivalent', stage, name], rows.get(('stage', stage)))}")


def nodule_points(folder, series, grid):
    """Indices (n, 3) of the voxels that a reader outlined, where a `*bitmask.npz` lies beside the scan."""
    for file in Path(folder).glob("*bitmask.npz"):
        with np.load(file) as drawn:
            k, row, column = np.nonzero(drawn["labels"])
            z_mm, pixel = drawn["z_mm"], float(drawn["pixel_spacing"])
        x0, y0, _ = series.geometry.origins[0]
        points = np.stack([z_mm[k], y0 + row * pixel, x0 + column * pixel], axis=1)
        return np.rint(grid.to_index(points)).astype(int)
    return np.empty((0, 3), int)


def with_ratio(seconds, base):
    text = f"{statistics.median(seconds):6.3f} s"
    if not base:
        return f"{text} {'(no such stage)':>22}"
    ratios = [one / max(other, 1e-4) for one, other in zip(seconds, base, strict=True)]
    return f"{text} {statistics.median(ratios):8.1f} ({min(ratios):.1f} to {max(ratios):.1f})".ljust(31)


# Situations and pictures


def save_picture(folder, name, volume, mask, spacing_mm):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '-')}.png"
    Image.fromarray(montage(volume, mask, spacing_mm, width=1500, rows=3, columns=4)).save(path)


def situations(only, spacing_mm, pictures):
    import hard_situations as hard

    print("| situation | base | what was done | status | flags | ml right, left | Dice right, left | trachea voxels |"
          " nodules inside | gas inside | falls short |\n" + "|---" * 11 + "|")  # fmt: skip
    for situation, base in hard.cases():
        if only and not any(words in f"{situation.name}/{base}" for words in only):
            continue
        chest = hard.chest_of(situation, base, spacing_mm)
        mask, result = hard.segmented(chest)
        lacking = hard.shortfalls(chest, result, situation.expected)
        dices = ", ".join(
            f"{value:.4f}" if (chest.truth == label).any() else "-"
            for label, value in zip((1, 2), result.dice, strict=True)
        )
        trachea = "-" if result.trachea_voxels is None else result.trachea_voxels
        nodules = "-" if result.nodule_share is None else f"{result.nodule_share:.4f}"
        gas = "-" if chest.gas is None else f"{result.gas_ml:.2f} ml"
        print(
            f"| {situation.name} | {base or '-'} | {chest.words} | {result.status} | {', '.join(result.flags) or '-'} "
            f"| {result.volume_ml[0]:.0f}, {result.volume_ml[1]:.0f} | {dices} | {trachea} | {nodules} | {gas} "
            f"| {'; '.join(lacking) or '-'} |",
            flush=True,
        )
        if pictures:
            save_picture(pictures, f"{base or 'made'}-{situation.name}", chest.volume, mask, chest.spacing_mm)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="patients' DICOM folders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--situations", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="situations with one of these in their name")
    parser.add_argument("--spacing", type=float, default=1.0, help="mm, of situations and pictures")
    parser.add_argument("--pictures", type=Path, help="a folder for PNG files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spacing-zyx", nargs=3, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.scratch, options.spacing_zyx)
    elif options.situations or options.only:
        situations(options.only, options.spacing, options.pictures)
    elif options.pictures:
        for folder in options.folders:
            volume, grid = resample(read_series(folder), spacing_mm=options.spacing)
            mask, measured = segment_lungs(volume, grid.spacing_mm)
            save_picture(options.pictures, folder.name, volume, mask, grid.spacing_mm)
            print(folder.name, measured["status"], measured["volume_ml"], [flag["code"] for flag in measured["flags"]])
    elif options.folders:
        for folder in options.folders:
            measure(folder, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            write_demo_patient(Path(scratch) / "patient", PATIENTS[0], 2017)
            measure(Path(scratch) / "patient", options.rounds)


if __name__ == "__main__":
    main()
