"""Files of writers: their bytes, their settings, and what is in them after the writer was killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import bcolz
import numpy as np
import pytest
from writers_files import KINDS, files_of, stored
from writers_process import DTYPE, SHAPE, numbered, writer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_the_same_input_gives_the_same_bytes(tmp_path, kind):
    data = np.random.default_rng(1).integers(-1000, 400, (700, *SHAPE)).astype(DTYPE)
    written = []
    for name in "ab":
        with writer(kind, tmp_path / name) as output:
            for part in np.array_split(data, 9):
                output.buffered_write(part)
        written.append(files_of(tmp_path / name))
        if name == "a":
            time.sleep(1.1)  # stamps of time count in seconds
    assert written[0] == written[1] and written[0]


def test_keywords_reach_the_library(tmp_path):
    data = numbered(0, 100)
    with writer("hdf5", tmp_path / "h", kwargs={"compression": "gzip", "chunks": (3, 5, 2)}) as output:
        output.buffered_write(data)
        assert (output.storage_array.compression, output.storage_array.chunks) == ("gzip", (3, 5, 2))
    kwargs = {"shards": (32, 5, 4), "chunks": (4, 5, 4), "compressors": None}
    with writer("zarr", tmp_path / "z", kwargs=kwargs) as output:
        output.buffered_write(data)
        assert (output.storage_array.shards, output.storage_array.compressors) == ((32, 5, 4), ())
    with writer("bcolz", tmp_path / "b", kwargs={"chunklen": 7, "cparams": bcolz.cparams(cname="lz4")}) as output:
        output.buffered_write(data)
        assert (output.storage_array.chunklen, output.storage_array.cparams.cname) == (7, "lz4")
    for kind, name in zip(KINDS, "hzb", strict=True):
        np.testing.assert_array_equal(stored(kind, tmp_path / name), data)


def start(kind, path, how):
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("writers_process.py"), kind, path, how],
        env={"PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_was_flushed_survives_a_kill(tmp_path, kind):
    """Exactly the flushed elements, in a file that opens, and that can be gone on with."""
    process = start(kind, tmp_path / "file", "flushed")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(stored(kind, tmp_path / "file"), numbered(0, 10))
    with writer(kind, tmp_path / "file", append=True) as output:
        output.buffered_write(numbered(10, 25))
    np.testing.assert_array_equal(stored(kind, tmp_path / "file"), numbered(0, 35))


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_a_kill_at_any_moment_loses_nothing_flushed(tmp_path, kind, seconds):
    process = start(kind, tmp_path / "file", "forever")
    process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    reported = process.communicate(timeout=60)[0].split()
    flushed = int(reported[-1]) if reported else 0
    found = stored(kind, tmp_path / "file")
    assert len(found) >= flushed
    whole = flushed if kind == "hdf5" else len(found)  # HDF5 may have been at the next block
    np.testing.assert_array_equal(found[:whole], numbered(0, whole))
