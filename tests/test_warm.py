"""Jobs forked from a warm interpreter: how they end, what they use, and what happens when it is killed."""

import os
import signal
import sys
import threading
import time

import pytest
from dicom_files import chest_like, stack, write_series
from workspace import ROOT, Workspace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are started by Snakemake itself elsewhere")
LIMIT = 60


@pytest.fixture
def warm(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "rules"))
    from warm import WarmInterpreter

    return WarmInterpreter()


@pytest.fixture
def run(warm, tmp_path):
    """Runs a script's text in the warm interpreter; how it ended. A hang is a failure."""

    def run(text, name="script"):
        script = tmp_path / f"{name}.py"
        script.write_text(text)
        answers = []

        def ask():
            try:
                answers.append(warm.run(str(script), str(script)))
            except RuntimeError as error:
                answers.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(LIMIT)
        assert answers, "no answer"
        return answers[0]

    return run


def test_exit_codes_are_those_of_the_script(run, capfd):
    assert run("import math")["exit_code"] == 0
    assert run("raise SystemExit(3)")["exit_code"] == 3
    assert run("raise ValueError('so it is')")["exit_code"] == 1
    assert "ValueError: so it is" in capfd.readouterr().err
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")["exit_code"] == -signal.SIGSEGV


def test_what_a_job_used_is_counted(run):
    idle = run("pass")
    busy = run("import time\nblock = bytearray(200_000_000)\nwhile time.process_time() < 0.5: pass")
    assert 0.5 <= busy["cpu_seconds"] < 1.5 and busy["seconds"] >= 0.5
    assert idle["cpu_seconds"] < 0.3
    assert 180 < busy["max_rss_mb"] - idle["max_rss_mb"] < 230


def test_threads_and_exit_functions_are_waited_for(run, tmp_path):
    out = tmp_path / "out"
    text = f"""
import atexit, threading, time
def write(word):
    with open({str(out)!r}, "a") as file: file.write(word)
def late():
    time.sleep(0.3)
    write("thread ")
atexit.register(write, "exit")
threading.Thread(target=late).start()
print("to the end", flush=False)
"""
    assert run(text)["exit_code"] == 0
    assert out.read_text() == "thread exit"


def learned_at_last(run, text, out):
    """What the first job says, and the first that says another thing: the interpreter learns after it answers."""
    for _ in range(LIMIT):
        assert run(text)["exit_code"] == 0
        first, *_, last = [*out.read_text().split(), out.read_text().split()[-1]]
        if last != first:
            break
        time.sleep(0.5)
    return first, last


def test_what_one_job_imports_late_the_next_one_finds(run, tmp_path):
    out = tmp_path / "out"
    text = f"""
import sys
found = "xmlrpc.client" in sys.modules
import xmlrpc.client
open({str(out)!r}, "a").write(str(found) + " ")
""".replace("import xmlrpc.client\nopen", "exec('import xmlrpc.client')\nopen")
    assert learned_at_last(run, text, out) == ("False", "True")


def test_a_kernel_that_one_job_needed_the_next_one_finds_loaded(run, tmp_path):
    out = tmp_path / "out"
    text = f"""
import numpy as np
from lungmill import volume
open({str(out)!r}, "a").write(f"{{len(volume._count.signatures)}} ")
volume._count(np.zeros(4, np.uint16), np.zeros((2, 65536), np.int64))
"""
    assert learned_at_last(run, text, out) == ("0", "1")


def test_the_next_run_knows_what_jobs_of_this_one_needed(run, warm, tmp_path):
    out = tmp_path / "out"
    text = f"""
import sys
import numpy as np
from lungmill import volume
loaded = len(volume._count.signatures), "xmlrpc.client" in sys.modules
exec("import xmlrpc.client")
volume._count(np.zeros(4, np.uint16), np.zeros((2, 65536), np.int64))
open({str(out)!r}, "a").write(f"{{loaded}};")
"""
    for _ in range(2):
        assert run(text)["exit_code"] == 0
        warm.end()
    assert out.read_text() == "(0, False);(1, True);"
    assert run(text + "# with other words")["exit_code"] == 0
    warm.end()
    assert run(text + "print()")["exit_code"] == 0  # another meaning: nothing is known of it
    warm.end()
    assert out.read_text() == "(0, False);(1, True);(1, True);(0, False);"
    assert len(list((tmp_path / "__pycache__").glob("script.warm.*"))) == 1


def test_many_at_once_each_get_their_own_answer(warm, tmp_path):
    script = tmp_path / "script.py"
    codes = {}
    for code in range(40):
        (tmp_path / f"{code}.py").write_text(f"raise SystemExit({code})")
    script.write_text("pass")

    def ask(code):
        codes[code] = warm.run(str(tmp_path / f"{code}.py"), str(script))["exit_code"]

    threads = [threading.Thread(target=ask, args=(code,), daemon=True) for code in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert codes == {code: code for code in range(40)}


def test_when_it_is_killed_its_jobs_die_with_it_and_the_next_one_runs(run, tmp_path):
    pid, out = tmp_path / "pid", tmp_path / "out"
    slow = f"""
import os, time
open({str(pid)!r}, "w").write(f"{{os.getppid()}} {{os.getpid()}}")
time.sleep(1.5)
open({str(out)!r}, "w").write("still here")
"""

    def kill():
        while not (pid.exists() and " " in pid.read_text()):
            time.sleep(0.02)
        os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    ended = run(slow, "slow")
    assert isinstance(ended, RuntimeError) and "slow.py" in str(ended) and "LUNGMILL_WARM=0" in str(ended)
    time.sleep(2)
    assert not out.exists()
    assert run("pass")["exit_code"] == 0


def test_it_ends_when_nobody_can_ask_it_any_more(run, warm):
    run("pass")
    process = warm.process
    warm.end()
    assert process.wait(LIMIT) == 0


def test_results_are_those_of_jobs_started_one_by_one(tmp_path, monkeypatch):
    write_series(tmp_path / "dicom" / "anna", chest_like, stack((-24, -24, 0), (0, 0, 2), 14))
    digests = []
    for setting in ("0", "1"):
        monkeypatch.setenv("LUNGMILL_WARM", setting)
        workspace = Workspace(tmp_path / setting)
        workspace.run(dicom=tmp_path / "dicom")
        digests.append(workspace.digests())
    assert digests[0] == digests[1] and digests[0]
