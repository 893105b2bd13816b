"""Damage DICOM folders and see that `index` still ends with a verdict, and that what it accepts can be read.

    python tests/fuzz.py --mutations 20000 --seed 1     # mutation k has the seed 1 * 10**9 + k
    python tests/fuzz.py --only 1000000123              # one mutation again, with what it printed

Each mutation runs in a worker process with a limit on its memory and is given 10 s. A mutation fails when `index`
raises, prints, hangs, kills its process, wants more memory than the limit, or returns what is no verdict, and when
a slice of an accepted folder fails with anything but a DicomError that names its file. Exit status 1 when one did.
"""

import argparse
import collections
import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "scripts"), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread of it would count against the memory limit

SECONDS, MEMORY = 10.0, 1 << 30
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "real-data"


class Failure(Exception):
    """What a mutation showed to be wrong, in words."""


def check(folder: Path, minimum: int, vanishing: bool) -> str:
    """Index the folder and read what was accepted. Returns the outcome in one word; raises Failure."""
    import numpy as np

    from lungmill.errors import DicomError, printable
    from lungmill.files import read_json, write_json
    from lungmill.indexing import index
    from lungmill.series import read_series
    from lungmill.verdict import REASONS, WARNINGS

    verdict = index(folder, "patient", {"min_slices": minimum})
    write_json(folder.parent / "verdict.json", verdict)
    stored = read_json(folder.parent / "verdict.json")
    words = [stored["detail"], *(warning["detail"] for warning in stored["warnings"])]
    if not all(text is None or text.isprintable() for text in words) or "MemoryError" in json.dumps(stored):
        raise Failure(f"words of the verdict: {words}")
    if not {warning["code"] for warning in stored["warnings"]} <= set(WARNINGS):
        raise Failure(f"unknown warning: {stored['warnings']}")
    if stored["status"] == "rejected":
        if stored["reason"] not in REASONS or not stored["detail"]:
            raise Failure(f"reason {stored['reason']}, detail {stored['detail']}")
        return stored["reason"]
    if stored["status"] != "accepted" or stored["reason"] is not None:
        raise Failure(f"status {stored['status']}, reason {stored['reason']}")
    series = read_series(folder, stored)
    if not (np.isfinite(series.geometry.corners()).all() and (np.diff(series.geometry.positions_mm) > 0).all()):
        raise Failure("accepted with positions that are not finite and ascending")
    if np.ptp(series.geometry.corners(), axis=(0, 1)).max() > 5000 or min(series.geometry.pixel_spacing) < 0.001:
        raise Failure("accepted with the size of no person")
    outcome = "accepted"
    for k in range(len(series)):
        try:
            values = series[k]
        except DicomError as error:
            if printable(stored["slices"][k]["file"]) not in str(error):
                raise Failure(f"the error names no file: {error}") from error
            outcome = f"accepted, later {error.reason}: {error.detail.rpartition(' ')[2]}"
        except OSError:
            if not vanishing:
                raise
            outcome = "accepted, later vanished"
        else:
            if values.dtype != np.int16 or values.shape != series.shape[1:] or values.min() < -1024:
                raise Failure(f"slice {k} is {values.dtype} {values.shape} from {values.min()}")
    return outcome


def _rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(connection, seeds, real, scratch, quiet=True):
    """Run the mutations of `seeds` in this process, and say before and after each how it went."""
    from fuzz_bases import real_bases, synthetic_bases
    from fuzz_folders import Vanishing, write_folder
    from fuzz_mutations import damaged

    bases = synthetic_bases() | (real_bases(REAL_DATA) if real else {})
    sound = Path(scratch) / "sound"
    for files in bases.values():  # the decoders and kernels are loaded before the clock and the limit start
        write_folder(sound, {file: parsed.data for file, parsed in files.items()}, _Calm())
        check(sound, 2, False)
        shutil.rmtree(sound)
    printed = Path(scratch) / "printed"
    if quiet:
        with printed.open("wb", buffering=0) as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    connection.send(("ready", _rss(), len(bases)))
    vanishing = Vanishing()
    for seed in seeds:
        what, files, rng = damaged(bases, seed)
        folder = Path(scratch) / str(seed) / "patient"
        what += write_folder(folder, files, rng)
        connection.send(("start", seed, ""))
        vanishes = rng.random() < 0.05
        if vanishes:
            what += vanishing.watch(folder, rng)
        began = time.perf_counter()
        try:
            outcome, failure = check(folder, rng.choice((2, 2, 3)), vanishes), None
        except BaseException as error:
            import traceback

            outcome, failure = "failure", "".join(traceback.format_exception(error)[-3:]).strip()
        seconds = time.perf_counter() - began
        vanishing.folder = None
        shutil.rmtree(folder.parent)
        sys.stdout.flush(), sys.stderr.flush()
        if quiet and printed.stat().st_size:
            outcome, failure = "failure", f"{failure or ''} printed: {printed.read_text(errors='replace')[:600]!r}"
            os.truncate(printed, 0)
            os.lseek(1, 0, os.SEEK_SET), os.lseek(2, 0, os.SEEK_SET)
        connection.send(("end", seed, (what, outcome, failure, seconds, _rss())))
    connection.send(("done", None, None))


class _Calm:
    """Stands for a generator whose every draw is "leave it as it is"."""

    def random(self):
        return 1.0


class Tally:
    """What the mutations came to."""

    def __init__(self):
        self.outcomes, self.failures, self.peak, self.start_peak = collections.Counter(), [], 0, 0
        self.slowest, self.count, self.bases, self.examples = (0.0, None, ""), 0, 0, {}

    def add(self, seed, what, outcome, failure, seconds, peak):
        self.count += 1
        self.outcomes[outcome] += 1
        self.examples.setdefault(outcome, seed)
        self.peak = max(self.peak, peak)
        self.slowest = max(self.slowest, (seconds, seed, what))
        if failure:
            self.failures.append((seed, what, failure))


def fuzz(seeds, real: bool, workers: int = 2) -> Tally:
    """Run all mutations in `workers` processes that are replaced when they die or hang."""
    tally, context = Tally(), multiprocessing.get_context("spawn")
    left = [list(seeds[k::workers]) for k in range(workers)]
    scratch = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    jobs = [None] * workers
    try:
        while any(left) or any(jobs):
            for k in range(workers):
                if jobs[k] is None and left[k]:
                    here, there = context.Pipe()
                    place = tempfile.mkdtemp(dir=scratch)
                    process = context.Process(target=work, args=(there, left[k], real, place), daemon=True)
                    process.start()
                    there.close()
                    jobs[k] = [process, here, time.monotonic() + 120, None, place]
            ready = multiprocessing.connection.wait([job[1] for job in jobs if job], timeout=1)
            for k, job in enumerate(jobs):
                if job and not _follow(job, job[1] in ready, left[k], tally):
                    job[0].kill()
                    job[0].join()
                    jobs[k] = None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return tally


def _follow(job, has_news, left, tally) -> bool:
    """Take one message of a worker; False when it ended, died or hangs."""
    process, connection, deadline, seed, place = job
    why = None
    if has_news:
        try:
            kind, value, more = connection.recv()
        except EOFError:
            process.join()
            why = (
                f"the process died, {process.exitcode}: {(Path(place) / 'printed').read_text(errors='replace')[:1500]}"
            )
        else:
            if kind == "ready":
                tally.start_peak, tally.bases = max(tally.start_peak, value), more
            elif kind == "start":
                job[2:4] = time.monotonic() + SECONDS, value
            elif kind == "end":
                left.remove(value)
                tally.add(value, *more)
            return kind != "done"
    elif time.monotonic() > deadline:
        why = f"nothing for {SECONDS:g} s"
    if why is None:
        return True
    if seed is None:
        raise SystemExit(f"a worker could not start: {why}")
    if seed in left:
        left.remove(seed)
    tally.add(seed, "?", "failure", why, SECONDS, 0)
    return False


def replay(seed: int, real: bool):
    """Run one mutation in this process; what it prints is seen."""

    class Printer:
        def send(self, message):
            print(*message, file=sys.stderr)

    with tempfile.TemporaryDirectory() as scratch:
        work(Printer(), [seed], real, scratch, quiet=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run this one mutation again")
    parser.add_argument("--synthetic", action="store_true", help="leave out the real files, as the tests do")
    options = parser.parse_args()
    real = not options.synthetic and REAL_DATA.is_dir()
    if options.only is not None:
        replay(options.only, real)
        return
    began = time.monotonic()
    seeds = [options.seed * 10**9 + k for k in range(options.mutations)]
    tally = fuzz(seeds, real)
    seconds = time.monotonic() - began
    for seed, what, failure in tally.failures[:40]:
        print(f"--- {seed} ({what})\n{failure}")
    print(
        f"{tally.count} mutations of {tally.bases} folders in {seconds:.0f} s, {tally.count / seconds:.0f} each second"
    )
    for outcome, number in tally.outcomes.most_common():
        print(f"{number:8d}  {outcome} (as {tally.examples[outcome]})")
    print(f"slowest {tally.slowest[0]:.2f} s ({tally.slowest[1]}, {tally.slowest[2]})")
    print(f"peak memory {tally.peak / 1e6:.0f} MB, of it {tally.start_peak / 1e6:.0f} MB before the first mutation")
    print(f"{len(tally.failures)} failures")
    raise SystemExit(bool(tally.failures))


if __name__ == "__main__":
    main()
