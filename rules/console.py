"""What the terminal shows of a run: one line per finished job, and at the end what failed, why and what to do."""

import contextlib
import fcntl
import logging
import os
import re
import sys
import threading
import time
from pathlib import Path

from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from cluster import LOCKS, lock, wait_for_slurm_jobs, why_it_ended

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
    # of the SLURM plugin, where a cluster has no accounts, and after every run
    "No SLURM account given",
    "No account was given",
    "Unable to guess SLURM account",
    "Cleaning up SLURM log files",
    "Falling back to 'sacct'",
    "Trying to restart job",
)
SENT = re.compile(r"Job (\S+) has been submitted with SLURM jobid (\d+)")
AGAIN = re.compile(r"Trying to restart job (\S+)\.$")
MOST_FAILURES = 20
# How `_job.py` ends the log of a job: of one that failed, and then of every one that was not killed.
EXCEPTION, USAGE = "ERROR failed", "INFO used "
KILLED = "killed or stopped before it wrote a log (out of memory?)"
TOLD_HERE = {
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_ERROR,
    LogEvent.GROUP_INFO,
    LogEvent.GROUP_ERROR,
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
        console = cls(settings.dryrun, workflow, find_log)
        for handler in logger.handlers:
            handler.addFilter(console.leaves_to_snakemake)
        logger.addHandler(console)

    def __init__(self, dryrun, workflow, find_log=str):
        super().__init__()
        self.dryrun, self.workflow, self.find_log = dryrun, workflow, find_log
        self.jobs, self.members = {}, {}
        self.failed = {}  # by job, or by group: what failed, its log, and why where the log does not say it
        self.done = self.total = 0
        self.printing = threading.Lock()

    def leaves_to_snakemake(self, record):
        """Filter for Snakemake's handlers: drop chatter, and errors that are told in full at the end."""
        event = getattr(record, "event", None)
        message = str(record.msg)
        if event in TOLD_HERE or message.startswith(CHATTER) or SENT.match(message):
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
        elif event == LogEvent.GROUP_INFO:
            self.members |= {job.uuid(): [member.jobid for member in record.jobs] for job in record.jobs}
        elif event == LogEvent.JOB_ERROR and not record.indent:
            self._note_failure(record)
        elif event == LogEvent.GROUP_ERROR:
            self._note_group_failure(record)
        elif event == LogEvent.ERROR and self.failed and "At least one job did not complete" in str(record.msg):
            self._tell_failures()
            self._leave_tables_unfinished()
        elif event is None and (found := SENT.match(str(record.msg))):
            self._tell_sent(*found.groups())
        elif event is None and (found := AGAIN.match(str(record.msg))):
            self._note_another_attempt(found[1])

    def say(self, text):
        with self.printing:
            print(text, file=sys.stderr, flush=True)

    def _note_job(self, record):
        what = f"{record.rule_name:<12} {' '.join(record.wildcards.values())}".rstrip()
        self.jobs[record.jobid] = what, time.monotonic(), time.time()
        if self.dryrun:
            self.say(f"would run  {what:<36}  {record.reason.split(';')[0]}")

    def _tell_finished(self, record):
        what, started, _ = self.jobs.get(record.job_id, ("", time.monotonic(), 0))
        if what.startswith("all"):
            return
        self.done += 1
        width = len(str(self.total))
        seconds = time.monotonic() - started
        self.say(f"[{self.done:>{width}}/{self.total}] {what:<36} {seconds:6.1f} s")

    def _tell_sent(self, job, slurm_job):
        members = self.members.get(job, [int(job)] if job.isdigit() else [])
        whats = [self.jobs[member][0] for member in members if member in self.jobs]
        rules = sorted({what.split()[0] for what in whats})
        patients = sorted({what.split(maxsplit=1)[1] for what in whats if " " in what})
        whose = patients[0] if len(patients) == 1 else f"{len(patients)} patients" if patients else ""
        self.say(f"sent to SLURM as job {slurm_job}: {', '.join(rules)}  {whose}".rstrip())

    def _note_failure(self, record):
        what, _, _ = self.jobs.get(record.jobid, (record.rule_name, 0, 0))
        log, *slurm_logs = record.log or [""]
        said, why = record.rule_msg or "", ""
        if "SLURM" in said and EXCEPTION not in read(log):
            why = why_it_ended(said, slurm_logs[-1] if slurm_logs else "", what.split()[0])
        self._note(str(record.jobid), [(what, log, why)])

    def _note_group_failure(self, record):
        """Of a group's members, name those that were at work: a log that is new and no results."""
        slurm_log = os.path.relpath(record.aux_logs[-1]) if record.aux_logs else ""
        begun = []
        for info in record.job_error_info:
            what, _, since = self.jobs[info["jobid"]]
            log = info["log"][0] if info["log"] else ""
            text = read(log) if log and was_written(log, since) else ""
            if EXCEPTION in text:
                begun.append((what, log, ""))
            elif text and USAGE not in text:
                begun.append((what, log, why_it_ended(record.said, slurm_log, what.split()[0])))
        if not begun:  # it never came to the first of them
            names = sorted({self.jobs[info["jobid"]][0].partition(" ")[2].strip() for info in record.job_error_info})
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            begun = [
                (f"the job of {', '.join(names[:3])}{more}", slurm_log, why_it_ended(record.said, slurm_log, "RULE"))
            ]
        self._note(str(record.group_jobid), begun)

    def _note(self, job, failures):
        self.failed[job] = failures
        for what, log, why in failures:
            self.say("  ".join(filter(None, (f"FAILED  {what}", why, log and f"see {log}"))))

    def _note_another_attempt(self, job):
        for what, *_ in self.failed.pop(job, []):
            self.say(f"again   {what}")

    def _tell_failures(self):
        failed = [failure for failures in self.failed.values() for failure in failures]
        lines = ["", f"{len(failed)} of {self.total} jobs failed; everything that does not need them is done:"]
        for what, log, why in failed[:MOST_FAILURES]:
            lines.append(f"  {what}: {why or last_line(self.find_log(log)) or KILLED}")
            lines.append(f"    log: {log}")
        if len(failed) > MOST_FAILURES:
            lines.append(f"  and {len(failed) - MOST_FAILURES} more: look for FAILED above")
        lines.append("Mend the cause and run the same command again: only what is missing is computed.")
        lines.append("To go on without a patient, add its name to `exclude` in config.yaml.")
        self.say("\n".join(lines))

    def _leave_tables_unfinished(self):
        """Have the next run make the tables again, whatever it finds.

        The results of a failed job are gone. Where nothing else was made in this run, tables of an earlier one would
        seem up to date, and Snakemake does not make what only they need.
        """
        for job in self.workflow.dag.jobs:
            if job.rule.name in ("cohort", "dataset"):
                self.workflow.persistence.started(job)


def last_line(log):
    """The line of a log that says why: the exception, which stands last; '' where it is missing or says nothing."""
    said = [line.strip() for line in read(log).splitlines() if line.strip() and not line.startswith("INFO ")]
    return said[-1] if said else ""


def read(log):
    """What is in a log, or nothing."""
    with contextlib.suppress(OSError):
        return Path(log).read_text(encoding="utf-8", errors="replace")
    return ""


def was_written(log, since):
    """Whether a job has written its log since a time, or a few seconds before it by another machine's clock.

    Snakemake makes empty logs for jobs that never ran.
    """
    try:
        status = Path(log).stat()
    except OSError:
        return False
    return status.st_size > 0 and status.st_mtime > since - 5


def hold_run_lock():
    """Let one run at a time work here, and wait for jobs that a killed run left behind.

    The kernel drops the lock when the process dies, however it dies, so nothing ever needs unlocking: that is why the
    profile sets `nolock`. A file system without locks is said so, and then it is up to the user.
    """
    try:
        if not lock(LOCKS / "lungmill-run.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            print("no locks on this file system: start one run at a time here", file=sys.stderr, flush=True)
    except BlockingIOError:
        raise SystemExit(f"lungmill: another run is at work in {os.getcwd()}: wait for it or stop it") from None  # noqa: PTH109
    wait_for_slurm_jobs()
    with Path(LOCKS, "lungmill-jobs.lock").open("a") as jobs, contextlib.suppress(OSError):
        try:
            fcntl.flock(jobs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for jobs of an interrupted run to finish", file=sys.stderr, flush=True)
            fcntl.flock(jobs, fcntl.LOCK_EX)
