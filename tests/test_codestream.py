"""What decoders say is dropped while any thread decodes, and none waits for another."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lungmill.dicom.codestream import silence

SECONDS = 20


def test_threads_are_inside_together_and_everything_is_as_before_afterwards():
    before, filters = os.fstat(2), list(warnings.filters)
    together = threading.Barrier(3, timeout=SECONDS)

    def decode(_):
        with silence():
            together.wait()  # breaks where the others do not get in meanwhile
            return os.fstat(2).st_rdev == Path(os.devnull).stat().st_rdev

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(decode, range(3), timeout=SECONDS)) == [True, True, True]
    assert os.path.samestat(os.fstat(2), before)
    assert list(warnings.filters) == filters


def test_what_is_said_inside_is_dropped_and_the_rest_is_not():
    code = """if True:
        import os, warnings
        from lungmill.dicom.codestream import silence
        for _ in range(2):
            os.write(2, b"before ")
            with silence():
                os.write(2, b"inside ")
                warnings.warn("inside")
            try:
                with silence():
                    raise ValueError
            except ValueError:
                os.write(2, b"after ")
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=60, check=True)
    assert ran.stderr == b"before after before after "
