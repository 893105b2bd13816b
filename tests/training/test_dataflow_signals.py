"""Programs that are interrupted, killed or simply end in the midst of a flow: nothing of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from dataflow_checks import named_memory, nothing_left, processes_of_session, time_limit, wait_until  # noqa: F401

PROGRAM = Path(__file__).with_name("dataflow_program.py")
LIBRARY = PROGRAM.parents[2] / "scripts"


@contextmanager
def program(*words):
    """A program in a session of its own; whatever of the session is left after the test is ended."""
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in processes_of_session(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()


def nothing_is_left_of(process):
    wait_until(lambda: processes_of_session(process.pid) == [])
    return True


def processes_at_work(process, count):
    wait_until(lambda: len(processes_of_session(process.pid)) >= count)


@pytest.mark.parametrize("name, lines", [("waits_for_a_batch", 2), ("trains", 1), ("waits_without_forking", 2)])
def test_interrupted_from_the_keyboard(name, lines):
    with program(name) as process:
        for _ in range(lines):
            assert process.stdout.readline()
        processes_at_work(process, 5)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=40)
        assert process.returncode == -signal.SIGINT
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt"), errors
        assert "resource_tracker" not in errors
        assert nothing_is_left_of(process)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1])
def test_interrupted_while_flows_begin_and_end(seconds):
    with program("comes_and_goes") as process:
        assert process.stdout.readline()
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=40)
        assert process.returncode == -signal.SIGINT
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt"), errors
        assert nothing_is_left_of(process)


@pytest.mark.parametrize("name, lines", [("waits_for_a_batch", 2), ("trains", 1), ("waits_without_forking", 2)])
def test_killed(name, lines):
    with program(name) as process:
        for _ in range(lines):
            assert process.stdout.readline()
        processes_at_work(process, 5)
        assert all(named_memory(each) == [] for each in processes_of_session(process.pid)), "it would be left behind"
        process.kill()
        process.wait(timeout=40)
        assert nothing_is_left_of(process)
        assert process.stderr.read() == ""


@pytest.mark.parametrize("name", ["holds_it_to_the_end", "leaves_early"])
def test_ends_by_itself(name):
    with program(name) as process:
        output, errors = process.communicate(timeout=40)
        assert (process.returncode, output, errors) == (0, "done\n", "")
        assert nothing_is_left_of(process)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_other_ways_to_start_processes(method):
    with program("starts_without_forking", method) as process:
        output, errors = process.communicate(timeout=40)
        assert (process.returncode, errors) == (0, "")
        assert "<lambda> cannot be sent to a worker process" in output
        assert nothing_is_left_of(process)
