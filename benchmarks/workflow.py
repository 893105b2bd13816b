"""Measure the whole workflow on a cohort: CPU and memory per patient, against the 2017 recipe and the bare library.

    python benchmarks/workflow.py [DICOM_FOLDER] [--patients 8] [--rounds 3] [--cores 1] [--thin MM]

The cohort is the same scan several times over; without a folder, a patient of the demo cohort. `--thin 1.25` makes of
the scan one with slices that distance apart first, interpolated, as DICOM: a large series where there is none at hand.

A round is the recipe on one patient (`benchmarks/instead.py`, CPU without its imports), `snakemake` on the cohort from
nothing with cubic interpolation (everything: interpreters, planning, tables, report, patches), and what the rules'
scripts call of the library, for the same files, in one process that has done all of it before. Printed are medians
over the rounds, and the median and range of the ratios within a round. Peak memory is that of the largest job, as the
benchmark files that Snakemake writes have it, and of the recipe's process. CPU in the kernel is told apart: where a
virtual machine gets memory from its host page by page, most of it is the host's. `--config KEY=VALUE` goes to
snakemake.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("scripts", "benchmarks", "tests")]

from workspace import Workspace

STEPS = ("index", "resample", "segment", "pack_zarr", "patches", "tables", "report")


def make_cohort(folder, scan, patients):
    for number in range(patients):
        shutil.copytree(scan, folder / f"patient-{number + 1}", copy_function=os.link)


def children_cpu():
    """CPU seconds of processes that have ended: in all, and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, used.ru_stime


def run_workflow(folder, cohort, patients, cores, config):
    """CPU seconds per patient, wall seconds per patient, peak MB of each rule, and CPU seconds of each rule.

    folder: a copy of the workflow; nothing but what it keeps of its own code is left there for the next run.
    """
    settings = [f"dicom={cohort}", "resample={interpolation: cubic}", *config]
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--config", *settings]
    before, start = children_cpu(), time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    wall = time.monotonic() - start
    seconds, kernel = (after - earlier for after, earlier in zip(children_cpu(), before, strict=True))
    rules = {}
    for path in sorted((folder / "logs").glob("*/*.tsv")):
        with path.open(encoding="utf-8") as file:
            [row] = csv.DictReader(file, delimiter="\t")
        rules.setdefault(path.parent.name, []).append((float(row["cpu_time"]), float(row["max_rss"])))
    files = sum(path.is_file() for path in (folder / "results").rglob("*"))
    for name in ("results", "logs", ".snakemake"):
        shutil.rmtree(folder / name)
    return {
        "cpu": seconds / patients,
        "kernel": kernel / patients,
        "wall": wall / patients,
        "peak_mb": max(peak for values in rules.values() for _, peak in values),
        "rules": {rule: (statistics.median(cpu for cpu, _ in values), max(peak for _, peak in values))
                  for rule, values in rules.items()},
        "files": files / patients,
    }  # fmt: skip


def run_program(*arguments):
    """What a program of this folder prints as JSON."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_library(cohort, folder):
    """CPU seconds of each step per patient of a cohort, as library calls in this process, which has done them before.

    What the scripts of the rules call, on the same settings, for the same files in the same places.
    """
    patients = sorted(path.name for path in cohort.iterdir())
    results = folder / "results"
    for name in ("index", "volumes", "masks", "patches", "report"):
        (results / name).mkdir(parents=True)
    os.chdir(folder)
    steps = Steps(cohort)
    steps.patient(patients[0])
    steps.cohort(patients[:1])
    steps.spent = dict.fromkeys(STEPS, 0.0)
    for patient in patients:
        steps.patient(patient)
    steps.cohort(patients)
    return {step: seconds / len(patients) for step, seconds in steps.spent.items()}


class Steps:
    """The library calls of each rule on the folder `results`, and the CPU seconds that each has taken."""

    def __init__(self, dicom):
        import yaml

        self.dicom = dicom
        self.config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
        self.spent = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def step(self, name):
        start = time.process_time()
        yield
        self.spent[name] += time.process_time() - start

    def patient(self, patient):
        from lungmill import cut_patches, index, pack, read_positions, read_series, resample, segment
        from lungmill.files import write_json
        from lungmill.positions import write_positions
        from lungmill.sidecar import open_volume, write_array
        from lungmill.volume import CountedVolume, describe_volume

        volume_files = f"results/volumes/{patient}.npy", f"results/volumes/{patient}.json"
        mask_files = f"results/masks/{patient}.npy", f"results/masks/{patient}.json"
        positions = f"results/masks/{patient}.positions.npz"
        with self.step("index"):
            verdict = index(self.dicom / patient, patient)
            write_json(f"results/index/{patient}.json", verdict)
        with self.step("resample"):
            series = read_series(self.dicom / patient, verdict)

            def make_volume(create):
                made = lambda shape: CountedVolume(create(shape, "int16"))  # noqa: E731
                volume, grid = resample(series, interpolation="cubic", out=made)
                return describe_volume(volume, grid, series, "cubic")

            write_array(*volume_files, patient, make_volume)
        with self.step("segment"):
            volume, grid, described = open_volume(*volume_files)

            def make_mask(create):
                named = {"patient": patient, "folder": "command", "threads": 1}
                mask, statistics, drawn = segment(volume, grid, self.config["segment"], **named)
                write_positions(positions, drawn)
                create(mask.shape, mask.dtype)[:] = mask
                return {**grid.as_dict(), **statistics}

            write_array(*mask_files, patient, make_mask)
        with self.step("pack_zarr"):
            volume, grid, _ = open_volume(*volume_files)
            metadata = {"patient": patient, "series": described["series"]}
            mask = open_volume(*mask_files)[0]
            pack(Path("results/cohort.zarr", patient), volume, mask, grid, format="zarr", metadata=metadata)
        with self.step("patches"):
            volume, grid, _ = open_volume(*volume_files)
            settings = {**self.config["patches"], "seed": self.config["seed"]}
            named = {"nodules": None, "patient": patient}
            cut_patches(f"results/patches/{patient}.h5", volume, read_positions(positions), grid, **settings, **named)

    def cohort(self, patients):
        from lungmill import make_dataset
        from lungmill.packing import create_cohort_group
        from lungmill.reporting import write_report
        from lungmill.summary import write_cohort, write_verdicts

        names = {patient: patient for patient in patients}
        with self.step("tables"):
            indexed = {patient: f"results/index/{patient}.json" for patient in patients}
            write_verdicts("results/index/verdicts.tsv", indexed, names)
            write_cohort("results/cohort.tsv", names, names)
            create_cohort_group(Path("results/cohort.zarr"))
            rows = [{"patient": patient, "split": None, "label": None} for patient in patients]
            products = ["volume", "mask", "positions", "zarr", "patches"]
            fractions = self.config["split"]["fractions"]
            make_dataset("results/dataset.tsv", rows, products=products, fractions=fractions, seed=self.config["seed"])
        with self.step("report"):
            page = "results/report/index.html"
            write_report(page, Path("results"), cohort="results/cohort.tsv", logs="logs")


def make_thin(scan, folder, step_mm):
    """Write the scan as DICOM with slices `step_mm` apart, each a blend of its two neighbours."""
    import numpy as np
    import pydicom

    slices = [pydicom.dcmread(path, force=True) for path in sorted(Path(scan).rglob("*")) if path.is_file()]
    slices = sorted((s for s in slices if "ImagePositionPatient" in s), key=lambda s: float(s.ImagePositionPatient[2]))
    heights = np.array([float(s.ImagePositionPatient[2]) for s in slices])
    folder.mkdir()
    for number, height in enumerate(np.arange(heights[0], heights[-1] + 1e-6, step_mm)):
        k = min(int(np.searchsorted(heights, height, "right")) - 1, len(slices) - 2)
        share = (height - heights[k]) / (heights[k + 1] - heights[k])
        low, high = (slices[i].pixel_array.astype(np.float32) for i in (k, k + 1))
        header = slices[k]
        made = pydicom.Dataset({element.tag: element for element in header if element.keyword != "PixelData"})
        made.file_meta = pydicom.dataset.FileMetaDataset(header.file_meta)
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
        made.InstanceNumber, made.SliceThickness, made.SliceLocation = number + 1, step_mm, float(height)
        made.ImagePositionPatient = [*header.ImagePositionPatient[:2], float(height)]
        blend = np.rint(low * (1 - share) + high * share)
        made.PixelData = blend.astype(header.pixel_array.dtype).tobytes()
        made.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)


def measure(options, scratch):
    """A list with a dict per round: what the recipe, the workflow and the library used for one patient."""
    scan = scratch / "scan"
    if options.thin:
        make_thin(options.folder, scan, options.thin)
    else:
        shutil.copytree(options.folder, scan)
    cohort = scratch / "cohort"
    make_cohort(cohort, scan, options.patients)
    run = scratch / "workflow", cohort, options.patients, options.cores, options.config
    run_library = __file__, "--library", cohort
    run_program(*run_library, scratch / "compiled")  # numba compiles here if it has to, and its cache is copied
    Workspace(scratch / "workflow")
    run_workflow(*run)
    rounds = []
    for number in range(options.rounds):
        rounds.append(
            {
                "recipe": run_program(ROOT / "benchmarks" / "instead.py", scan, scratch / f"recipe-{number}"),
                "workflow": run_workflow(*run),
                "library": run_program(*run_library, scratch / f"library-{number}"),
            }
        )
        shutil.rmtree(scratch / f"library-{number}")
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rounds


def spread(values, digits=1):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(rounds, options):
    recipe, workflow, library = ([one[key] for one in rounds] for key in ("recipe", "workflow", "library"))
    recipe_cpu, recipe_mb = [one["cpu_seconds"] for one in recipe], [one["peak_mb"] for one in recipe]
    cpu, peak_mb = [one["cpu"] for one in workflow], [one["peak_mb"] for one in workflow]
    sums = [sum(one.values()) for one in library]
    print(f"{options.patients} patients, --cores {options.cores}, {len(rounds)} rounds: medians (range), per patient")
    print(f"recipe of 2017       {spread(recipe_cpu)} s of CPU, {spread(recipe_mb, 0)} MB at most")
    print(f"snakemake            {spread(cpu, 2)} s of CPU, {spread(peak_mb, 0)} MB at most")
    kernel, theirs = [one["kernel"] for one in workflow], [one["kernel_seconds"] for one in recipe]
    print(f"                     {spread(kernel, 2)} s of it in the kernel, of the recipe's {spread(theirs)} s")
    print(f"                     {spread([one['wall'] for one in workflow], 2)} s, {workflow[0]['files']:.1f} files")
    for rule in workflow[0]["rules"]:
        used = statistics.median(one["rules"][rule][0] for one in workflow)
        peak = max(one["rules"][rule][1] for one in workflow)
        print(f"  {rule:<18} {used:.2f} s of CPU, {peak:.0f} MB at most")
    print(f"library, warm        {spread(sums, 2)} s of CPU")
    for step in STEPS:
        print(f"  {step:<18} {statistics.median(one[step] for one in library):.2f} s of CPU")
    print(f"recipe / snakemake   {spread(ratios(recipe_cpu, cpu))} times less CPU")
    users = (
        [one["cpu_seconds"] - one["kernel_seconds"] for one in recipe],
        [one["cpu"] - one["kernel"] for one in workflow],
    )
    print(f"                     {spread(ratios(*users))} times less of it outside the kernel")
    print(f"                     {spread(ratios(recipe_mb, peak_mb))} times less memory")
    print(f"snakemake / library  {spread(ratios(cpu, sums), 2)} times the CPU")


def ratios(above, below):
    return [a / b for a, b in zip(above, below, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="a patient's DICOM folder")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--thin", type=float, metavar="MM")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write the rounds here")
    parser.add_argument("--library", nargs=2, metavar=("COHORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(json.dumps(run_library(*(Path(path).absolute() for path in options.library))))
        return
    with tempfile.TemporaryDirectory() as name:
        if not options.folder:
            from lungmill.demo import PATIENTS, write_demo_patient

            options.folder = Path(name) / "demo"
            write_demo_patient(options.folder, PATIENTS[0], 2017)
        rounds = measure(options, Path(name))
    report(rounds, options)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
