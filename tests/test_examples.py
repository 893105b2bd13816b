"""The programs of examples/: that they run to their end on the demo cohort; how good the result is, they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_nodule_example_trains_and_tests(demo_results):
    pytest.importorskip("torch")
    command = [sys.executable, str(ROOT / "examples" / "train_nodules.py"), str(demo_results), "--steps", "3"]
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    auc = re.fullmatch(r"AUC on 1 test patients: ([01]\.\d+)", done.stdout.splitlines()[-1])
    assert auc and 0 <= float(auc[1]) <= 1
