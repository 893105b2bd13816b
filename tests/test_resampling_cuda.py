"""Resampling on a GPU: on numba's CUDA simulator everywhere, on a GPU where there is one, and what is said without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lungmill.config import checked_config
from lungmill.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SIMULATOR = {"NUMBA_ENABLE_CUDASIM": "1"}
# numba's way to say that there is no driver, whatever the machine.
NO_GPU = {"NUMBA_CUDA_DRIVER": "0", "NUMBA_ENABLE_CUDASIM": "0"}


def python(*arguments, seconds=100, **environment):
    """Run Python in the repository with the library in its path; a hang is a failure."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment = {**inherited, "PYTHONPATH": str(ROOT / "scripts"), **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )


def test_on_the_simulator():
    done = python("-m", "pytest", "-p", "no:cacheprovider", "tests/cuda_cases.py", **SIMULATOR)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_on_a_gpu():
    found = python("-c", "from numba import cuda; print(cuda.is_available())", NUMBA_ENABLE_CUDASIM="0")
    if found.stdout.strip() != "True":
        pytest.skip("numba.cuda finds no GPU here")
    done = python("-m", "pytest", "-p", "no:cacheprovider", "tests/cuda_cases.py", NUMBA_ENABLE_CUDASIM="0")
    assert done.returncode == 0, done.stdout


def test_kernels_have_the_types_that_the_gpus_compiler_needs():
    """The simulator runs Python, so it accepts what does not compile. Numba goes from here to NVIDIA's compiler."""
    done = python("tests/cuda_types.py", NUMBA_ENABLE_CUDASIM="0")
    if "not numba's own" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr
    kernels = dict(line.split(":") for line in done.stdout.splitlines())
    assert len(kernels) == 8
    # Doubles multiplied: a drift for the row and one for the column, and nothing among the values.
    assert all(int(count) == (2 if name.startswith("oblique") else 0) for name, count in kernels.items())


WITHOUT_GPU = """
import sys
import numpy as np
from lungmill.dicom.geometry import slice_geometry
from lungmill.errors import LungmillError
from lungmill.resampling import resample

geometry, _ = slice_geometry([(0, 0, z) for z in range(4)], (1, 0, 0, 0, 1, 0), (1, 1), 5, 5)
slices = np.arange(100, dtype=np.int16).reshape(4, 5, 5)
volume, _ = resample(slices, geometry, spacing_mm=0.7)
assert sys.modules.get("numba.cuda") is None
same, _ = resample(slices, geometry, spacing_mm=0.7, device="auto")
assert (same == volume).all()
assert "lungmill.resampling_cuda" not in sys.modules
for device in ("cuda", "gpu"):
    try:
        resample(slices, geometry, device=device)
    except (LungmillError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_without_a_gpu():
    done = python("-c", WITHOUT_GPU, **NO_GPU)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("LungmillError: device cuda: numba.cuda finds no GPU here")
    assert "resample.device to cpu or auto" in first
    assert second == "ValueError: device 'gpu' is not one of cpu, cuda, auto"


def test_without_numbas_cuda_target():
    done = python("-c", "import sys; sys.modules['numba.cuda'] = None\n" + WITHOUT_GPU, **NO_GPU)
    assert done.returncode == 0, done.stderr
    assert "numba.cuda cannot be imported" in done.stdout and "install numba-cuda" in done.stdout


def test_the_setting():
    schema = yaml.safe_load((ROOT / "schemas" / "config.schema.yaml").read_text())
    assert checked_config({}, schema)["resample"]["device"] == "cpu"
    with pytest.raises(ConfigError, match=r"resample.device is 'gpu', not one of cpu, cuda, auto"):
        checked_config({"resample": {"device": "gpu"}}, schema)
