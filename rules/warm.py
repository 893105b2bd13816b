"""Runs the rules' scripts as forks of one warm interpreter per run instead of starting Python for each of them.

Scripts, logs, outputs and exit codes are the same; what differs is that nobody waits for imports. Where a job has an
environment of its own (conda, container, modules), and elsewhere than on Linux, it is started as Snakemake does.
LUNGMILL_WARM=0 turns it off.
"""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from snakemake.script import PythonScript

ENVIRONMENT = {
    # Threads of theirs would not survive a fork; the steps use threads of their own.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # What is freed is kept for the next array rather than given back and asked for again, page by page: glibc learns
    # that by itself in a long process, not in one that has just begun. A fifth of the time of `pack`.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
PROGRAM = Path(__file__).resolve().parents[1] / "scripts" / "_warm.py"


def use_warm_interpreter():
    """Let Snakemake's Python scripts run in a `WarmInterpreter`, which starts with the first of them."""
    if os.environ.get("LUNGMILL_WARM") == "0" or sys.platform != "linux" or hasattr(PythonScript, "started_cold"):
        return
    PythonScript.started_cold = PythonScript.execute_script
    warm = WarmInterpreter()

    def execute_script(script, file, edit=False):
        if script.container_img or script.conda_env or script.env_modules or script.shadow_dir or not script.is_local:
            return script.started_cold(file, edit)
        ended = warm.run(file, script.local_path)
        if script.bench_record is not None:
            _note(script.bench_record, ended)
        if ended["exit_code"]:
            raise subprocess.CalledProcessError(ended["exit_code"], f"{script.local_path} (log: {script.log})")

    PythonScript.execute_script = execute_script


def _note(record, ended):
    """Fill in Snakemake's benchmark with what the kernel counted; from outside, a job under a second is not seen."""
    record.running_time = ended["seconds"]
    record.max_rss = ended["max_rss_mb"]
    record.cpu_time = ended["cpu_seconds"]
    record.cpu_usage = 100 * ended["cpu_seconds"]
    record.data_collected = True


class WarmInterpreter:
    """The process that runs `scripts/_warm.py`, shared by the threads in which Snakemake runs jobs."""

    def __init__(self):
        self._lock = threading.Lock()
        self._channel = None
        self._waiting = {}
        self._number = 0
        self.process = None

    def run(self, file, script):
        """Run `file`, which Snakemake made of `script`; return how it ended, a dict, once it has."""
        done = threading.Event()
        answer = {}
        with self._lock:
            if self._channel is None:
                self._start()
            self._number += 1
            self._waiting[self._number] = (answer, done)
            request = {"number": self._number, "file": file, "script": script}
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        done.wait()
        if not answer:
            raise RuntimeError(f"the warm interpreter ended while it ran {script}: run again, or with LUNGMILL_WARM=0")
        return answer

    def _start(self):
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **ENVIRONMENT}
        command = [sys.executable, str(PROGRAM), str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._channel = ours
        atexit.register(self.end)
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()

    def end(self):
        """Let it end, which it does when nobody can ask it any more; what it used is then part of what the run used."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
        self.process.wait()

    def _listen(self, channel):
        with channel.makefile("r", encoding="utf-8") as answers:
            for line in answers:
                ended = json.loads(line)
                with self._lock:
                    answer, done = self._waiting.pop(ended["number"])
                answer.update(ended)
                done.set()
        with self._lock:  # the process is gone: whoever waits must not wait for ever, and the next job gets a new one
            self._channel = None
            waiting, self._waiting = self._waiting, {}
        for _, done in waiting.values():
            done.set()
