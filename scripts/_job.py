"""What every script does first: keep to its threads, write its log, and say in one line why it failed."""

import atexit
import contextlib
import fcntl
import logging
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path

# The library beside this file, even where another lungmill is installed.
sys.path.insert(0, str(Path(__file__).parent))

JOBS_LOCK = Path(".snakemake", "lungmill-jobs.lock")
THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def start(snakemake):
    """Prepare the process for one job. Call it before importing anything that reads the thread variables."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(snakemake.threads)
    _share_jobs_lock()
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=log, filemode="w", level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    # pydicom quotes header values in what it warns of, and says it to its own logger too.
    logging.getLogger("pydicom").propagate = False
    warnings.filterwarnings("ignore", module="pydicom")
    logging.info("rule %s, %s", snakemake.rule, dict(snakemake.wildcards.items()) or "cohort")
    sys.excepthook = _log_exception
    atexit.register(_log_usage)


def _log_exception(kind, error, trace):
    """Write the traceback to the log, its last line being why; the terminal gets that line at the end of the run."""
    logging.error("failed\n%s", "".join(traceback.format_exception(kind, error, trace)).rstrip())


def _log_usage():
    """Log what the process used. Snakemake's benchmark samples from outside and misses most of a job under a second."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    logging.info("used %.2f s of CPU, %.1f MB at most", used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6)


def _share_jobs_lock():
    """Hold a lock for as long as this process lives, so that a new run can wait for jobs of a killed one.

    Some shared file systems have no locks; jobs of SLURM are found by asking it (rules/cluster.py).
    """
    global _jobs_lock
    JOBS_LOCK.parent.mkdir(exist_ok=True)
    _jobs_lock = JOBS_LOCK.open("a")
    with contextlib.suppress(OSError):
        fcntl.flock(_jobs_lock, fcntl.LOCK_SH)
