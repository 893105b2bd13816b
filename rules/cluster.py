"""What a cluster needs beyond Snakemake: the inside of a job, what a failed group keeps, jobs of a killed run.

Nothing of this does anything in a run on one machine. It reaches into Snakemake where there is no setting for it, in
three places that `tests/cluster/test_slurm.py` goes through: `GroupJob`, the persistence's `finished`, the run's
settings.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from snakemake.jobs import GroupJob
from snakemake.persistence import PersistenceBase
from snakemake_interface_executor_plugins.settings import ExecMode, SharedFSUsage
from snakemake_interface_logger_plugins.common import LogEvent

LOCKS = Path(".snakemake")
SLURM_LOGS = LOCKS / "slurm_logs"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
# Seconds between two questions to SLURM, and how long it may not answer.
ASK_EVERY, ASK_FOR = 3, 60
RUN = re.compile(r"(^|_)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")  # the name of a job of the plugin

_held = []


def install(workflow):
    """Prepare the main process, or one inside a job, for groups that fail; and the latter for what it runs."""
    GroupJob.postprocess = _postprocess
    GroupJob.get_target_spec = _get_target_spec
    GroupJob.register = _register
    GroupJob.log_error = _log_error
    if workflow.remote_exec:
        logging.getLogger("snakemake.logging").addHandler(_AtStart(workflow))


def lock(path, how):
    """flock a file until the process ends; BlockingIOError where another holds it, False where there are no locks."""
    path.parent.mkdir(exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    _held.append(file)
    return True


# --- inside a job -----------------------------------------------------------------------------------------------------


class _AtStart(logging.Handler):
    """Sets up the process when its settings are complete, which they are not yet when the Snakefile is read."""

    def __init__(self, workflow):
        super().__init__()
        self.workflow = workflow

    def emit(self, record):
        """Act on the first event of a run."""
        if getattr(record, "event", None) == LogEvent.WORKFLOW_STARTED:
            _inside_a_job(self.workflow)


def _inside_a_job(workflow):
    """One patient's failure stops nobody else in the job, and no more runs at once than CPUs were asked for.

    Snakemake takes every CPU it sees, which on many clusters are more than it asked for: two hardware threads of a
    core, or the whole node. Memory was asked for by what runs at once.
    """
    workflow.execution_settings.keep_going = True
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdigit():
        workflow.register_resource("_cores", int(asked))
    usage = workflow.storage_settings.shared_fs_usage
    if SharedFSUsage.PERSISTENCE in usage and not hasattr(PersistenceBase, "finished_unrecorded"):
        PersistenceBase.finished_unrecorded = PersistenceBase.finished
        PersistenceBase.finished = _record
        # A new run waits for this, where the file system has locks: jobs of a killed run work on.
        lock(LOCKS / "lungmill-jobs.lock", fcntl.LOCK_SH)


class _Like:
    """Another object with some attributes replaced."""

    def __init__(self, other, **own):
        self.__dict__.update(own, _other=other)

    def __getattr__(self, name):
        return getattr(self._other, name)


async def _record(persistence, job):
    """Record what an output was made from where it is made: in the job, instead of in the main process alone.

    When the main process is killed, jobs finish all the same. Without a record Snakemake would take their results as
    they are, and never notice a setting that changes afterwards.
    """
    if not isinstance(persistence.dag, _Like):
        workflow = _Like(persistence.dag.workflow, exec_mode=ExecMode.DEFAULT)
        persistence.dag = _Like(persistence.dag, workflow=workflow)
    await persistence.finished_unrecorded(job)


# --- groups, in the main process and in the first that SLURM's plugin starts in a job -------------------------------

_whole_postprocess, _plain_log_error = GroupJob.postprocess, GroupJob.log_error
_sent, _done = set(), set()


async def _postprocess(group, error=False, **options):
    """Keep what a failed group has finished. Snakemake alone deletes the results of all patients in it.

    A member is done when its outputs are there, without the marks of incompleteness that they had when it was sent; one
    that was never sent may have results of other settings. What is recorded of a member are its parameters as they are
    now: when the group was sent, files that they follow from were not there yet.
    """
    for job in group.jobs:
        job._params = job._non_derived_params = None
    PersistenceBase._params.cache_clear()
    if not error:
        await _whole_postprocess(group, **options)
        return
    for level in group.toposorted:
        for job in level:
            sent = job in _sent or job in _done
            done = sent and all([await file.exists() for file in job.output]) and not await _is_marked(job)
            await job.postprocess(error=not done, check_output_mtime=False, **options)
            _sent.discard(job)
            if done:
                _done.add(job)
        await asyncio.sleep(0.1)  # as Snakemake does: the next level's files are younger


async def _is_marked(job):
    persistence = job.dag.workflow.persistence
    persistence._clear_cache()  # the job changed it, not this process
    return await persistence.incomplete(job)


def _left(group):
    """What an attempt has to make: at the second one, what the first did not finish."""
    return [job for job in group.jobs if job not in _done] or list(group.jobs)


def _get_target_spec(group):
    return [spec for job in _left(group) for spec in job.get_target_spec()]


def _register(group, external_jobid=None):
    """Mark as incomplete what is going to be made, and not what an earlier attempt finished."""
    for job in _left(group):
        job.register(external_jobid=external_jobid)
        _sent.add(job)


def _log_error(group, msg=None, aux_logs=None, **options):
    """Say what SLURM said, which Snakemake drops for groups, and which job it was."""
    options |= {"said": msg or "", "group_jobid": group.jobid}
    _plain_log_error(group, msg=msg, aux_logs=aux_logs, **options)


# --- why a job ended --------------------------------------------------------------------------------------------------

STATES = {
    "OUT_OF_MEMORY": "needed more memory than it asked for: --set-resources {rule}:mem_mb=...",
    "TIMEOUT": "needed more time than it asked for: --set-resources {rule}:runtime=... (minutes)",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "it had to make room for another job",
    "CANCELLED": "was cancelled",
}


def why_it_ended(said, slurm_log, rule):
    """One line from what the executor said and SLURM's own log of a job that could not say it itself, or ''."""
    found = re.search(r"SLURM status is: '([A-Z_]+)", said)
    job = re.search(r"'(\d+)'", said)
    name = f"SLURM job {job[1]}" if job else "its job"
    state = found[1] if found else ""
    with contextlib.suppress(OSError):
        text = Path(slurm_log).read_text(encoding="utf-8", errors="replace")
        if re.search(r"(?i)memory limit|oom.kill|out of memory", text):
            state = "OUT_OF_MEMORY"
        elif "DUE TO TIME LIMIT" in text:
            state = "TIMEOUT"
        elif "DUE TO NODE FAILURE" in text:
            state = "NODE_FAIL"
        elif not found or state not in STATES:
            errors = [line for line in text.splitlines() if "error:" in line]
            return f"{name}: {errors[-1].strip()}" if errors else f"{name} ended as {state or 'failed'}"
    if state in STATES:
        return f"{name} {STATES[state].format(rule=rule)}"
    if state:
        return f"{name} ended as {state}"
    return " ".join(said.split("sbatch call:")[0].split())


# --- jobs of a killed run ---------------------------------------------------------------------------------------------


def wait_for_slurm_jobs():
    """Wait until no job of an earlier run works in this folder any more; those that have not begun are cancelled.

    The main process may have been killed while its jobs were waiting or running. Two jobs that write one file must
    never run at once, so the new run begins when the last of them is over, and adopts what they finished.
    """
    if not SLURM_LOGS.is_dir() or not shutil.which("squeue"):
        return
    told, last_answer = False, time.monotonic()
    while True:
        jobs = _jobs_here()
        if jobs is None and time.monotonic() - last_answer > ASK_FOR:
            raise SystemExit(
                "lungmill: squeue does not say whether jobs of an earlier run still work here: try later, or remove "
                f"{SLURM_LOGS} where there are none"
            )
        if jobs is not None:
            last_answer = time.monotonic()
            if not jobs:
                return
            waiting = [job for job, state in jobs if state == "PENDING"]
            if waiting:
                subprocess.run(["scancel", "--state=PENDING", *waiting], capture_output=True, timeout=60, check=False)
            if not told:
                print(
                    f"waiting for {len(jobs)} SLURM jobs of an interrupted run to finish", file=sys.stderr, flush=True
                )
                told = True
        time.sleep(ASK_EVERY)


def _jobs_here():
    """(id, state) of the jobs that Snakemake sent from this folder and that are not over; None without an answer."""
    here = os.path.realpath(".")
    command = ["squeue", "--noheader", "--user", str(os.getuid()), "--format", "%i|%T|%j|%k|%Z"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    found = []
    for line in answer.splitlines():
        job, state, name, comment, folder = line.split("|", 4)
        # Others may be sent from here too, by hand; the plugin's carry its run's UUID and what they do.
        if RUN.search(name) and comment.startswith("rule_") and os.path.realpath(folder) == here:
            found.append((job, state))
    return found
