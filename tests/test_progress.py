import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

from lungmill.progress import bar

SLOW = """
import time
from lungmill import progress
progress.SECONDS_BEFORE_SHOWN = 0
for _ in progress.bar("reading")(range(3)):
    time.sleep(0.2)
"""


def run(stderr):
    scripts = Path(bar.__code__.co_filename).parents[1]
    return subprocess.run(
        [sys.executable, "-c", SLOW], stderr=stderr, timeout=60, check=True, env={**os.environ, "PYTHONPATH": scripts}
    )


def test_a_terminal_sees_a_bar():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    run(writer)
    os.set_blocking(reader, False)
    assert b"reading" in os.read(reader, 10_000)
    os.close(writer)
    os.close(reader)


def test_a_file_sees_nothing():
    assert run(subprocess.PIPE).stderr == b""


def test_quick_steps_show_nothing_and_all_items_pass(capfd):
    assert list(bar("reading")(iter(range(5)))) == list(range(5))
    assert capfd.readouterr().err == ""
