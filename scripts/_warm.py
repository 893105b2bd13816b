"""The process that jobs of a run are forked from: it has imported what they import, and does nothing else.

Half a second of each job would go into starting Python and importing numba, scipy and the rest, as much as most steps
compute. `rules/warm.py` starts this program once, and tells it through a socket which script to run.
"""

import ast
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

MOST_BYTES = 60_000  # of a message: less than a pipe holds, so that nobody waits for a reader


class Warm:
    """Forks a process for every request that comes in on `channel`, and says there how it ended."""

    def __init__(self, channel):
        self.channel = channel
        self.running = {}  # pid: (number of the request, when it began, pipe with the names of its modules)

    def serve(self):
        """Until the other side is gone and all children have ended. Returns a script to run: in a child, None else."""
        waker, wake = os.pipe()
        for end in (waker, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs and for Snakemake
        signal.set_wakeup_fd(wake)
        requests = self.channel.makefile("r", encoding="utf-8")
        with selectors.DefaultSelector() as ready:
            ready.register(self.channel, selectors.EVENT_READ)
            ready.register(waker, selectors.EVENT_READ)
            listening = True
            while listening or self.running:
                for key, _ in ready.select():
                    if key.fd == waker:
                        os.read(waker, 4096)
                        self.reap()
                        continue
                    line = requests.readline()
                    if not line:
                        listening = False
                        ready.unregister(self.channel)
                        continue
                    request = json.loads(line)
                    prepare(request["script"])
                    if self.fork(request["number"]):
                        signal.set_wakeup_fd(-1)
                        os.close(waker)
                        os.close(wake)
                        return request["file"]
        return None

    def fork(self, number):
        """True in the child."""
        report, tell = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid:
            os.close(tell)
            self.running[pid] = (number, began, report)
            return False
        os.close(report)
        self.channel.close()
        for name in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL if name == signal.SIGCHLD else signal.default_int_handler)
        known = set(sys.modules)
        import atexit

        # Registered first, so it runs last: what a job imported on its way, the next one finds imported.
        atexit.register(lambda: os.write(tell, "\n".join(set(sys.modules) - known).encode()[:MOST_BYTES]))
        return True

    def reap(self):
        while self.running:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            number, began, report = self.running.pop(pid)
            with open(report, encoding="utf-8") as names:
                late = names.read().split("\n")
            ended = {
                "number": number,
                "exit_code": os.waitstatus_to_exitcode(status),
                "seconds": time.monotonic() - began,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "max_rss_mb": used.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024),
            }
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # Snakemake itself was killed
                self.channel.sendall(json.dumps(ended).encode() + b"\n")
            import_all(late)


def prepare(script):
    """Import what a script imports at its top."""
    names = set()
    for node in ast.parse(Path(script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    import_all(sorted(names))


def import_all(names):
    for name in names:
        if name and name not in sys.modules and name != "__main__":
            # A module that cannot be imported is the job's to report, in its own log.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def main(channel):
    script = Warm(channel).serve()
    if script is not None:
        sys.argv = [script]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(socket.socket(fileno=int(sys.argv[1])))
