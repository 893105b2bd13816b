"""Measure what the workflow itself costs for large cohorts: planning, overhead per job, "Nothing to be done", files.

    python benchmarks/scale.py [--patients 100 1600] [--cores 2]
    python benchmarks/scale.py --patients 16000 --most-are-done

The stages of a patient are stubbed out: each copies what the real one made of one tiny patient. Planning, jobs, locks,
logs, tables and report are the real ones. Printed, for each number of patients: seconds and peak memory of Snakemake's
main process for `snakemake -n` in an empty folder, for the whole run (with the CPU seconds of everything per job), and
for the run after it, in which nothing is to be done; and the files that a patient has. 16000 patients take hours.
`--most-are-done` runs 100 patients and makes the others by copying one of these, with Snakemake's records of it: its
whole run does what is left then, the tables and the report.
"""

import argparse
import base64
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("scripts", "benchmarks", "tests")]

from dicom_files import chest_like, stack, write_series
from workspace import Workspace

STUBBED = ("index", "resample", "segment", "pack", "patches")
TEMPLATE = "template"
DONE = 100  # patients that are really run with --most-are-done
STUB = """
import _job

_job.start(snakemake)

from pathlib import Path

patient = snakemake.wildcards.patient
for path in map(Path, snakemake.output):
    content = Path("template", *path.parts).as_posix().replace(patient, "template")
    content = Path(content).read_bytes()
    if path.suffix == ".json":
        content = content.replace(b'"template"', f'"{patient}"'.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
"""


def snakemake(folder, *options):
    """Run it in `folder`; wall seconds, CPU seconds of everything, peak MB of the main process, finished jobs."""
    command = [sys.executable, "-m", "snakemake", *options, "--config", "dicom=dicom", "resample={spacing: 4}"]
    with (folder / "out").open("w") as out:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        peak_kb = 0
        while process.poll() is None:
            peak_kb = max(peak_kb, resident_kb(process.pid))
            time.sleep(0.1)
    wall = time.monotonic() - start
    text = (folder / "out").read_text()
    if process.returncode:
        raise SystemExit(text[-4000:])
    return wall, peak_kb / 1024, sum(line.startswith("[") for line in text.splitlines())


def resident_kb(pid):
    """Peak resident memory of a process so far, 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_template(folder):
    """The results of one real, tiny patient, and a workflow whose stages copy them."""
    Workspace(folder)
    write_series(folder / "dicom" / TEMPLATE, chest_like, stack((-24, -24, 0), (0, 0, 2), 14))
    snakemake(folder, "--cores", "1")
    (folder / TEMPLATE).mkdir()
    shutil.move(folder / "results", folder / TEMPLATE / "results")
    for leftover in ("dicom", "logs", ".snakemake"):
        shutil.rmtree(folder / leftover)
    for name in STUBBED:
        (folder / "scripts" / f"{name}.py").write_text(STUB)


def add_patients(folder, numbers):
    """Folders with the same file, and so with the same fingerprint."""
    for number in numbers:
        scan = folder / "dicom" / f"p{number:06}"
        scan.mkdir(parents=True)
        shutil.copy2(folder / "slice.dcm", scan)


def copy_finished(folder, first, numbers):
    """Give patients the results, logs and records that `first` has, as old as those are."""
    files = [path for place in ("results", "logs") for path in (folder / place).rglob("*")]
    files = [path for path in files if path.is_file() and first in str(path)]
    records = []
    for path in (folder / ".snakemake" / "metadata").iterdir():
        output = base64.b64decode(path.name).decode()
        if first in output:
            records.append((output, path.read_text(encoding="utf-8")))
    for number in numbers:
        patient = f"p{number:06}"
        for path in files:
            copy = Path(str(path).replace(first, patient))
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                copy.write_text(path.read_text(encoding="utf-8").replace(first, patient), encoding="utf-8")
                shutil.copystat(path, copy)
            else:
                os.link(path, copy)
        for output, record in records:
            name = base64.b64encode(output.replace(first, patient).encode()).decode()
            copy = folder / ".snakemake" / "metadata" / name
            copy.write_text(record.replace(first, patient), encoding="utf-8")


def measure(template, folder, patients, cores, most_are_done):
    shutil.copytree(template, folder)
    (folder / "slice.dcm").write_bytes(bytes(64))
    add_patients(folder, range(min(patients, DONE)))
    if most_are_done:
        snakemake(folder, "--cores", str(cores))
        copy_finished(folder, "p000000", range(DONE, patients))
    add_patients(folder, range(DONE, patients))
    plan = snakemake(folder, "-n")
    before = cpu()
    run = snakemake(folder, "--cores", str(cores))
    used = cpu() - before
    nothing = snakemake(folder, "--cores", str(cores))
    assert "Nothing to be done" in (folder / "out").read_text()
    files = sum(len(names) for place in ("results", "logs", ".snakemake") for _, _, names in os.walk(folder / place))
    in_results = sum(len(names) for _, _, names in os.walk(folder / "results"))
    jobs = run[2]
    print(f"| {patients} | {plan[0]:.1f} s, {plan[1]:.0f} MB | {jobs} | {run[0]:.0f} s, {run[1]:.0f} MB "
          f"| {1000 * run[0] / jobs:.0f} ms, {1000 * used / jobs:.0f} ms | {nothing[0]:.1f} s, {nothing[1]:.0f} MB "
          f"| {in_results / patients:.1f}, {(files - in_results) / patients:.1f} |", flush=True)  # fmt: skip
    shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, nargs="+", default=[100, 1600])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--most-are-done", action="store_true")
    options = parser.parse_args()
    print("| patients | plan | jobs | whole run | per job: wall, CPU | nothing to be done | files: results, "
          "logs and records |\n|---|---|---|---|---|---|---|")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        make_template(Path(name) / "workflow")
        for patients in options.patients:
            measure(Path(name) / "workflow", Path(name) / str(patients), patients, options.cores, options.most_are_done)


if __name__ == "__main__":
    main()
