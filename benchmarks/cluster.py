"""What a cluster costs beside the work: jobs, polls and seconds for 1, 8 and 50 patients per job, as a markdown table.

    python benchmarks/cluster.py                  a real SLURM on loopback, through profiles/slurm; about ten minutes
    python benchmarks/cluster.py --plan 1600      what the main process needs to plan that many patients

Every stage is replaced by one that does nothing, so all of what is measured is overhead. Numbers of a shared or small
machine are upper bounds: here two CPUs play two nodes and run the main process besides.
"""

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests/cluster", "tests", "scripts")]

from workspace import Workspace

NOTHING = """
import _job
_job.start(snakemake)
from pathlib import Path
for output in snakemake.output:
    Path(output).write_text(TEXT)
"""
VERDICT = (
    '{\n  "status": "accepted",\n  "geometry": {"directions": [1, 0, 0, 0, 1, 0], "pixel_spacing": [0.7, 0.7], '
    '"shape": [300, 512, 512]},\n  "slices": [\n    {"position": [0, 0, 0]},\n    {"position": [0, 0, 300]}\n  ]\n}\n'
)
TABLE = '"patient\\tstatus\\n" + "".join(f"{p}\\taccepted\\n" for p in snakemake.params.step["names"])'


def workflow_without_work(folder, patients):
    """A copy of the workflow whose scripts write what Snakemake waits for, and folders to be taken for scans."""
    Workspace(folder)
    for script in (folder / "scripts").glob("[a-z]*.py"):
        text = {"index": repr(VERDICT), "verdicts": TABLE}.get(script.stem, "''")
        script.write_text(NOTHING.replace("TEXT", text))
    for number in range(patients):
        (folder / "dicom" / f"p{number:05}").mkdir(parents=True)
        (folder / "dicom" / f"p{number:05}" / "1.dcm").touch()


def count_polls(slurm):
    """Let every squeue write a line; return the function that counts them."""
    log = slurm.folder / "squeue.log"
    program = shutil.which("squeue", path="/usr/bin:/bin")
    wrapper = slurm.folder / "bin" / "squeue"
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {log}\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    return lambda: sum("--name" in line for line in log.read_text().splitlines()) if log.exists() else 0


def seconds_of_jobs(slurm):
    """How long each job held its CPU."""
    text = slurm.command("squeue", "-h", "--states=all", "-o", "%M")
    return [sum(int(n) * 60**i for i, n in enumerate(reversed(re.split("[:-]", row)))) for row in text.split()]


def measure(patients, per_job):
    from slurm_harness import Slurm

    with tempfile.TemporaryDirectory() as temporary, Slurm() as slurm:
        folder = Path(temporary)
        workflow_without_work(folder, patients)
        polls = count_polls(slurm)
        command = [sys.executable, "-m", "snakemake", "--workflow-profile", "slurm", "--latency-wait", "10"]
        command += ["--group-components", f"patient={per_job}", "index=50", "--config", "dicom=dicom"]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, cwd=folder, env=slurm.environment, check=True, timeout=1500, capture_output=True)
        seconds = time.monotonic() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        held = seconds_of_jobs(slurm)
        return len(held), polls(), seconds, sum(held) / patients, cpu / patients


def plan(patients):
    """CPU seconds and MB of `snakemake -n` when all patients are judged and nothing else is made."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workflow_without_work(folder, patients)
        index = folder / "results" / "index"
        index.mkdir(parents=True)
        names = [path.name for path in sorted((folder / "dicom").iterdir())]
        for name in names:
            (index / f"{name}.json").write_text(VERDICT)
        (index / "verdicts.tsv").write_text("patient\tstatus\n" + "".join(f"{name}\taccepted\n" for name in names))
        command = [sys.executable, "-m", "snakemake", "-n", "--workflow-profile", "slurm", "--config", "dicom=dicom"]
        subprocess.run(command, cwd=folder, check=True, timeout=3000, capture_output=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        print(f"planning {patients} patients, {4 * patients} jobs: {seconds:.1f} s of CPU, {peak:.0f} MB at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=50)
    parser.add_argument("--per-job", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--plan", type=int, help="only plan that many patients")
    options = parser.parse_args()
    if options.plan:
        plan(options.plan)
        return
    print(f"{options.patients} patients, stages that do nothing:\n")
    print("| patients per job | cluster jobs | polls | seconds in all | job s per patient | main CPU s per patient |")
    print("|---|---|---|---|---|---|")
    for per_job in options.per_job:
        jobs, polls, seconds, held, cpu = measure(options.patients, per_job)
        print(f"| {per_job} | {jobs} | {polls} | {seconds:.0f} | {held:.1f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
