"""What the terminal shows of a run: one line per finished job, and at the end what failed, why and what to do."""

import contextlib
import fcntl
import logging
import os
import sys
import threading
import time
from pathlib import Path

from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

LOCKS = Path(".snakemake")
# Snakemake's own lines that say nothing a user acts on; `quiet` in the profile takes out the rest.
CHATTER = (
    "Select jobs to execute",
    "Using shell",
    "Assuming unrestricted",
    "Building DAG",
    "Elapsed time",
    "Conda environments: ignored",
    "DAG of jobs will be updated",
    "Updating checkpoint dependencies",
)
MOST_FAILURES = 20
TOLD_HERE = {
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_ERROR,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.RUN_INFO,
}


class Console(logging.Handler):
    """Follows Snakemake's log events in the main process; `--quiet host` leaves Snakemake's own output alone."""

    @classmethod
    def install(cls, workflow, find_log=str):
        """Attach to the run's logger, and hide what the console says itself.

        find_log: from a log's name to its file here, where logs lie elsewhere.
        """
        settings = workflow.output_settings
        quiet = settings.quiet or set()
        logger = logging.getLogger("snakemake.logging")
        old = [handler for handler in logger.handlers if type(handler).__name__ == cls.__name__]
        if not workflow.is_main_process or old or Quietness.RULES not in quiet:
            return
        console = cls(settings.dryrun, find_log)
        for handler in logger.handlers:
            handler.addFilter(console.leaves_to_snakemake)
        logger.addHandler(console)

    def __init__(self, dryrun, find_log=str):
        super().__init__()
        self.dryrun, self.find_log = dryrun, find_log
        self.jobs, self.failed = {}, []
        self.done = self.total = 0
        self.printing = threading.Lock()

    def leaves_to_snakemake(self, record):
        """Filter for Snakemake's handlers: drop chatter, and errors that are told in full at the end."""
        event = getattr(record, "event", None)
        message = str(record.msg)
        if event in TOLD_HERE or message.startswith(CHATTER):
            return False
        return not (self.failed or self._is_job_failure(message))

    @staticmethod
    def _is_job_failure(message):
        return message.startswith("RuleException:\nCalledProcessError")

    def emit(self, record):
        """Act on one event of the run."""
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED and not self.dryrun:
            hold_run_lock()
        elif event == LogEvent.JOB_INFO:
            self._note_job(record)
        elif event == LogEvent.JOB_FINISHED:
            self._tell_finished(record)
        elif event == LogEvent.PROGRESS:
            self.done, self.total = record.done, record.total
        elif event == LogEvent.RUN_INFO:
            self.total = getattr(record, "stats", {}).get("total", self.total)
            if self.dryrun:
                self.say(record.getMessage().rstrip())
        elif event == LogEvent.JOB_ERROR:
            self._note_failure(record)
        elif event == LogEvent.ERROR and self.failed and "At least one job did not complete" in str(record.msg):
            self._tell_failures()

    def say(self, text):
        with self.printing:
            print(text, file=sys.stderr, flush=True)

    def _note_job(self, record):
        what = f"{record.rule_name:<12} {' '.join(record.wildcards.values())}".rstrip()
        self.jobs[record.jobid] = what, time.monotonic()
        if self.dryrun:
            self.say(f"would run  {what:<36}  {record.reason.split(';')[0]}")

    def _tell_finished(self, record):
        what, started = self.jobs.get(record.job_id, ("", time.monotonic()))
        if what.startswith("all"):
            return
        self.done += 1
        width = len(str(self.total))
        seconds = time.monotonic() - started
        self.say(f"[{self.done:>{width}}/{self.total}] {what:<36} {seconds:6.1f} s")

    def _note_failure(self, record):
        what, _ = self.jobs.get(record.jobid, (record.rule_name, 0))
        log = record.log[0] if record.log else ""
        self.failed.append((what, log))
        self.say(f"FAILED  {what}  see {log}" if log else f"FAILED  {what}")

    def _tell_failures(self):
        lines = ["", f"{len(self.failed)} of {self.total} jobs failed; everything that does not need them is done:"]
        for what, log in self.failed[:MOST_FAILURES]:
            lines.append(f"  {what}: {last_line(self.find_log(log))}")
            lines.append(f"    log: {log}")
        if len(self.failed) > MOST_FAILURES:
            lines.append(f"  and {len(self.failed) - MOST_FAILURES} more: look for FAILED above")
        lines.append("Mend the cause and run the same command again: only what is missing is computed.")
        lines.append("To go on without a patient, add its name to `exclude` in config.yaml.")
        self.say("\n".join(lines))


def last_line(log):
    """The line of a log that says why: the exception, which stands last; a log that is missing or empty says so."""
    with contextlib.suppress(OSError):
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and not line.startswith("INFO ")]
        if said:
            return said[-1]
    return "killed or stopped before it wrote a log (out of memory?)"


_held = []


def hold_run_lock():
    """Let one run at a time work here, and wait for jobs that a killed run left behind.

    The kernel drops the lock when the process dies, however it dies, so nothing ever needs unlocking: that is why the
    profile sets `nolock`.
    """
    LOCKS.mkdir(exist_ok=True)
    run = Path(LOCKS, "lungmill-run.lock").open("a")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"lungmill: another run is at work in {os.getcwd()}: wait for it or stop it") from None  # noqa: PTH109
    _held.append(run)
    with Path(LOCKS, "lungmill-jobs.lock").open("a") as jobs:
        try:
            fcntl.flock(jobs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for jobs of an interrupted run to finish", file=sys.stderr, flush=True)
            fcntl.flock(jobs, fcntl.LOCK_EX)
