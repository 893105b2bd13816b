"""The process that jobs of a run are forked from: it has imported what they import, and does nothing else.

Half a second of each job would go into starting Python and importing numba, scipy and the rest, as much as most steps
compute. `rules/warm.py` starts this program once, and tells it through a socket which script to run.
"""

import ast
import atexit
import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import pickle
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MOST_BYTES = 60_000  # of a child's report: less than a pipe holds, so that it need not wait for a reader


class Warm:
    """Forks a process for every request that comes in on `channel`, and says there how it ended."""

    def __init__(self, channel):
        self.channel = channel
        self.unread = b""
        self.prepared = set()
        self.known = None  # what a child has at its beginning
        self.running = {}  # pid: (number of the request, script, when it began, pipe on which it tells what it learned)

    def serve(self):
        """Until the other side is gone and all children have ended. Returns a script to run: in a child, None else."""
        waker, wake = os.pipe()
        for end in (waker, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs and for Snakemake
        signal.set_wakeup_fd(wake)
        with selectors.DefaultSelector() as ready:
            ready.register(self.channel, selectors.EVENT_READ)
            ready.register(waker, selectors.EVENT_READ)
            while ready.get_map().get(self.channel) or self.running:
                for key, _ in ready.select():
                    if key.fd == waker:
                        os.read(waker, 4096)
                        self.reap()
                        continue
                    received = self.channel.recv(65536)
                    if not received:
                        ready.unregister(self.channel)
                    for request in self.requests(received):
                        self.prepare(request["script"])
                        if self.fork(request["number"], request["script"]):
                            signal.set_wakeup_fd(-1)
                            os.close(waker)
                            os.close(wake)
                            return request["file"]
        return None

    def requests(self, received):
        """The whole lines among what has been received so far."""
        *lines, self.unread = (self.unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def prepare(self, script):
        """Import what a script imports at its top, and what its jobs are known to need later on."""
        if script not in self.prepared:
            self.prepared.add(script)
            import_all(imported_by(script))
            load(*recalled(script))
            self.known = Known()

    def fork(self, number, script):
        """True in the child."""
        report, tell = os.pipe()
        os.set_blocking(report, False)
        gc.freeze()  # a collection in the child would otherwise touch, and so copy, every page of the parent
        began = time.monotonic()
        here = os.getpid()
        pid = os.fork()
        if pid:
            os.close(tell)
            self.running[pid] = (number, script, began, report)
            return False
        os.close(report)
        self.channel.close()
        die_with(here)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # What the parent would clean up at its end is not this process's to clean up.
        weakref.finalize._registry = {}
        # Registered first, so it runs last: what a job imported and compiled on its way, the next one finds done.
        atexit.register(lambda: os.write(tell, learned(self.known)))
        return True

    def reap(self):
        while self.running:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            number, script, began, report = self.running.pop(pid)
            late = b""
            with contextlib.suppress(BlockingIOError):  # killed, while a process of its own still holds the pipe
                late = os.read(report, MOST_BYTES)
            os.close(report)
            ended = {
                "number": number,
                "exit_code": os.waitstatus_to_exitcode(status),
                "seconds": time.monotonic() - began,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "max_rss_mb": used.ru_maxrss / 1024,
            }
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # Snakemake itself was killed
                self.channel.sendall(json.dumps(ended).encode() + b"\n")
            if learn(script, late):
                self.known = Known()


def die_with(parent):
    """Let the kernel kill this process when `parent` dies: Snakemake then takes the job for failed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Known:
    """The modules that are imported, and the argument types for which kernels of the library are ready to run.

    Made before a child is: each object it touches is a page that has to be copied for it.
    """

    def __init__(self):
        self.modules = frozenset(sys.modules)
        self.kernels = [(name, kernel, frozenset(kernel.signatures)) for name, kernel in kernels_of(self.modules)]


def learned(known):
    """What is imported and compiled now and was not before, as bytes for `learn`.

    Not the modules where a kernel had to be compiled rather than loaded, since most of them are the compiler's.
    """
    # The last ones of `sys.modules`, which keeps the order: looking at all of them would touch them all.
    modules = set(itertools.takewhile(lambda name: name not in known.modules, reversed(sys.modules)))
    kernels = [*known.kernels, *((name, kernel, frozenset()) for name, kernel in kernels_of(modules))]
    new = {
        name: set(kernel.signatures) - before for name, kernel, before in kernels if len(kernel.overloads) > len(before)
    }
    if any(kernel.stats.cache_misses for name, kernel, _ in kernels if name in new):
        modules = set()
    if not modules and not new:
        return b""
    report = pickle.dumps((sorted(modules), new))
    return report if len(report) <= MOST_BYTES else b""


def kernels_of(modules):
    """Each numba kernel of the library among these modules, after its (module, name)."""
    numba = sys.modules.get("numba.core.dispatcher")
    if numba is not None:
        for module in sorted(name for name in modules if name.startswith("lungmill.")):
            for name, value in list(vars(sys.modules[module]).items()):
                if isinstance(value, numba.Dispatcher):
                    yield (module, name), value


def learn(script, report):
    """Import and load here what a child has reported, True if that is anything; one that was killed reports nothing."""
    if report:
        modules, kernels = pickle.loads(report)  # our own child wrote it
        load(modules, kernels)
        remember(script, modules, kernels)
    return bool(report)


def load(modules, kernels):
    import_all(modules)
    for (module, name), found in kernels.items():
        kernel = getattr(sys.modules.get(module), name, None)
        for signature in found:
            # From numba's cache on disk, where the child has left it.
            with contextlib.suppress(Exception):
                kernel.compile(signature)


def memory(script):
    """Where it is kept what jobs of a script have reported, for the next run: with the script's compiled modules.

    In the name is what the code means, so that nothing is loaded that it does not use any more.
    """
    from lungmill.provenance import code_hash

    script = Path(script)
    return script.parent / "__pycache__" / f"{script.stem}.warm.{sys.implementation.cache_tag}.{code_hash(script)}"


def remember(script, modules, kernels):
    """Add to what is kept; where nobody may write, the next run learns it again."""
    known, loaded = recalled(script)
    for kernel, found in kernels.items():
        loaded.setdefault(kernel, set()).update(found)
    file = memory(script)
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(pickle.dumps((sorted({*known, *modules}), loaded)))
        temporary.replace(file)
        for other in file.parent.glob(f"{file.stem}.*"):  # of code that is gone
            if other != file:
                other.unlink(missing_ok=True)


def recalled(script):
    try:
        return pickle.loads(memory(script).read_bytes())  # written by `remember`, as numba's own cache is by numba
    except Exception:  # not there, or left by another version of what is in it
        return [], {}


def imported_by(script):
    """The modules that a script names in the imports at its top."""
    names = set()
    for node in ast.parse(Path(script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return sorted(names)


def import_all(names):
    for name in names:
        if name and name not in sys.modules and name != "__main__":
            # A module that cannot be imported is the job's to report, in its own log.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def end_quickly():
    """End as Python does, but for taking apart every module it has imported, which takes a quarter of a second."""
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(channel):
    warm = Warm(channel)  # kept to the end: taking it apart would touch all it knows
    script = warm.serve()
    if script is not None:
        sys.argv = [script]
        runpy.run_path(script, run_name="__main__")
        end_quickly()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(socket.socket(fileno=int(sys.argv[1])))
