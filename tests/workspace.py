"""A copy of the workflow in a folder of its own, run as a user runs it."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "schemas", "profiles", "envs")
FINISHED = re.compile(r"^\[ *\d+/\d+\] (\w+) +(\S*) +[\d.]+ s$", re.MULTILINE)
# Times and memory differ from run to run; the report keeps them in one line.
TIMINGS = re.compile(rb'<script type="application/json" id="timings">.*')


class Workspace:
    """`run()` calls snakemake and returns what it did; files are under `results`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, self.folder / part)  # with numba's cache, whose stamps are kept
            else:
                shutil.copy2(source, self.folder / part)
        self.results = self.folder / "results"

    def command(self, *options, **config):
        settings = [f"{key}={value}" for key, value in config.items()]
        return [
            sys.executable, "-m", "snakemake", "--cores", "2", *options, *(["--config", *settings] if settings else [])
        ]  # fmt: skip

    def run(self, *options, ok=True, **config):
        """Run snakemake to its end and check its exit code."""
        done = subprocess.run(
            self.command(*options, **config), cwd=self.folder, capture_output=True, text=True, timeout=600
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return Outcome(done.stdout + done.stderr, done.returncode)

    def run_and_kill(self, seconds, whole_group=True, **config):
        """Start snakemake and SIGKILL it, with its jobs or alone, after some seconds; True where it was still busy."""
        process = subprocess.Popen(
            self.command(**config),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        busy = process.poll() is None
        if busy and whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        elif busy:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return busy

    def digests(self):
        """Hash of every file under results, by its relative path, less the report's timings and Snakemake's marks."""
        found = {}
        for path in sorted(self.results.rglob("*")):
            if path.is_file() and path.name != ".snakemake_timestamp" and "logs" not in path.parts:
                content = TIMINGS.sub(b"", path.read_bytes())
                found[str(path.relative_to(self.results))] = hashlib.sha256(content).hexdigest()
        return found


class Outcome:
    """What a run printed, and the jobs it finished as (rule, patient)."""

    def __init__(self, text, code):
        self.text, self.code = text, code
        self.jobs = set(FINISHED.findall(text))

    @property
    def rules(self):
        return {rule for rule, _ in self.jobs}

    @property
    def patients(self):
        return {patient for _, patient in self.jobs if patient}

    @property
    def lines(self):
        """What was printed, less the lines on profile and configuration files that Snakemake opens with."""
        return [
            line
            for line in self.text.splitlines()
            if line.strip() and not line.startswith(("Using workflow specific profile", "Config file"))
        ]
