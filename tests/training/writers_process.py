"""A process that writes numbered elements and may be killed at it: `python writers_process.py KIND PATH HOW`.

HOW is `flushed`: 10 elements, a flush, 2 more, and SIGKILL from itself; or `forever`: any number of elements, a flush
now and then, and on the standard output how many were flushed.
"""

import os
import signal
import sys

import numpy as np

from lungmill.training.writers import BcolzArrayWriter, H5pyArrayWriter, ZarrArrayWriter

SHAPE, DTYPE, BATCH = (5, 4), np.int32, 8


def numbered(first, count):
    """Elements whose values say which they are."""
    return np.arange(first * 20, (first + count) * 20, dtype=DTYPE).reshape(count, *SHAPE)


def writer(kind, path, **options):
    if kind == "bcolz":
        return BcolzArrayWriter(SHAPE, DTYPE, BATCH, path, **options)
    return {"hdf5": H5pyArrayWriter, "zarr": ZarrArrayWriter}[kind](SHAPE, DTYPE, BATCH, path, "a", **options)


def main(kind, path, how):
    output = writer(kind, path)
    if how == "flushed":
        output.buffered_write(numbered(0, 10))
        output.flush_buffer()
        output.buffered_write(numbered(10, 2))
        os.kill(os.getpid(), signal.SIGKILL)
    rng = np.random.default_rng(0)
    done = 0
    while True:
        count = int(rng.integers(1, 40))
        output.buffered_write(numbered(done, count))
        done += count
        if rng.integers(2):
            output.flush_buffer()
            print(done, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
