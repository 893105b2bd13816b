"""What views read, and that they may be used from threads and travel to processes."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from views_sources import KINDS, Counting, store, values

from lungmill.errors import LungmillError
from lungmill.training import reading
from lungmill.training.views import DelayedView, MultiSourceArray

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize("seed", range(20))
def test_a_shuffled_batch_decodes_no_chunk_twice(seed):
    rng = np.random.default_rng(seed)
    array = values((60, 8, 9))
    stored = Counting(array, (7, 3, 4))
    halves = [DelayedView(stored, idx_max=31), DelayedView(stored, idx_min=31)]  # a chunk is in both
    for view in (DelayedView(stored), MultiSourceArray(halves), DelayedView(MultiSourceArray(halves, shuffle=True))):
        view.shuffle(seed)
        for index in (slice(0, 16), rng.integers(0, 60, 30), (slice(3, 40), slice(2, 5), 3), (rng.permutation(60), 1)):
            stored.forget()
            whole = np.asarray(view)
            stored.forget()
            np.testing.assert_array_equal(view[index], whole[index])
            assert stored.decoded


def test_no_more_than_a_group_is_in_memory(monkeypatch):
    monkeypatch.setattr(reading, "GROUP_BYTES", 1000)
    stored = Counting(values((60, 8, 9)), (4, 8, 9))
    view = DelayedView(stored)
    view.shuffle(1)
    np.asarray(view)
    assert stored.largest <= 4 * 8 * 9 * 4  # a chunk


def test_a_slice_of_an_element_reads_its_chunks_only():
    stored = Counting(values((6, 100, 100)), (1, 10, 10))
    DelayedView(stored)[5, 10:20, 35:45]
    assert stored.decoded == {(5, 1, 3), (5, 1, 4)}
    stored.forget()
    DelayedView(stored)[[5, 2], [11, 12], -1]
    assert stored.decoded == {(5, 1, 9), (2, 1, 9)}
    stored.forget()
    view = DelayedView(stored)
    assert view[3, 3:3].shape == (0, 100) and view[[]].shape == (0, 100, 100)
    assert not stored.decoded


class CountingDataset(h5py.Dataset):
    """An HDF5 dataset that lists the rows of chunks that each read touches."""

    def __getitem__(self, index):
        part = index[0]
        self.reads = [*getattr(self, "reads", []), range(part.start // 7, (part.stop - 1) // 7 + 1)]
        return super().__getitem__(index)


def test_hdf5_reads_each_row_of_chunks_once(tmp_path):
    array = values((60, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = CountingDataset(file.create_dataset("a", data=array, chunks=(7, 8), compression="gzip").id)
        view = DelayedView(stored)
        view.shuffle(3)
        np.testing.assert_array_equal(view[:20], array[view.indices[:20]])
        touched = [chunk for chunks in stored.reads for chunk in chunks]
        assert sorted(touched) == sorted(set(view.indices[:20] // 7))


class CountingStore(zarr.storage.WrapperStore):
    """A zarr store that lists what is read of it."""

    async def get(self, key, prototype, byte_range=None):
        self.gets = [*getattr(self, "gets", []), (key, str(byte_range))]
        return await super().get(key, prototype, byte_range)


@pytest.mark.parametrize("shards", [None, (14, 8)])
def test_zarr_gets_each_chunk_once(shards):
    array = values((60, 8))
    counting = CountingStore(zarr.storage.MemoryStore())
    stored = zarr.create_array(counting, shape=array.shape, dtype=array.dtype, chunks=(7, 4), shards=shards)
    stored[...] = array
    view = DelayedView(stored)
    view.shuffle(3)
    counting.gets = []
    np.testing.assert_array_equal(view[:20], array[view.indices[:20]])
    reads = [get for get in counting.gets if "Suffix" not in get[1]]  # the index of a shard lies at its end
    assert len(reads) == len(set(reads)) > 0
    if shards is None:
        assert len(reads) == 2 * len(set(view.indices[:20] // 7))
    else:  # a shard is read whole, once, or in ranges, none of which comes twice
        whole = [key for key, part in reads if part == "None"]
        assert not set(whole) & {key for key, part in reads if part != "None"}


# --- threads and processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_reading_from_threads(tmp_path, kind):
    """Eight threads on one view: all get what NumPy gets."""
    array = values((13, 4, 6))
    view = DelayedView(store(kind, tmp_path, array))
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(12):
                index = rng.integers(0, 13, 5)
                np.testing.assert_array_equal(view[index], array[index])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads) and not failures


@pytest.mark.parametrize("kind", KINDS)
def test_views_travel_to_another_process_by_path(tmp_path, kind):
    array = values((40, 50, 30))
    stored = store(kind, tmp_path, array, chunks=(8, 25, 30))
    view = MultiSourceArray([DelayedView(stored, idx_min=3), stored[7:9] if kind == "memmap" else stored])
    view.shuffle(2)
    packed = pickle.dumps(view)
    assert len(packed) < 20_000  # the name of the file and the order, not the 240 kB
    (tmp_path / "view.pickle").write_bytes(packed)
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.load(open(sys.argv[1], 'rb'))[:5].tobytes())"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "view.pickle"],
        capture_output=True,
        timeout=60,
        check=True,
        cwd="/",
        env={"PYTHONPATH": str(SCRIPTS)},
    )
    assert done.stdout == view[:5].tobytes()


def test_memory_maps_travel_sliced_and_turned(tmp_path):
    mapped = store("memmap", tmp_path, values((20, 6, 8)))
    for part in (
        mapped,
        mapped[5:],
        mapped[::-2, 1:],
        mapped.T,
        np.asarray(mapped)[3:9, ::2],
        mapped.reshape(40, 24)[1:],
    ):
        again = pickle.loads(pickle.dumps(DelayedView(part)))
        assert isinstance(again.arr.base, np.memmap)
        np.testing.assert_array_equal(again[:], part)


def test_a_dataset_in_no_file_does_not_travel():
    with h5py.File("nowhere", "w", driver="core", backing_store=False) as file:
        view = DelayedView(file.create_dataset("a", data=values((3,))))
        with pytest.raises(LungmillError, match="in no file"):
            pickle.dumps(view)


def test_sources_are_found_without_their_packages():
    """A view of a NumPy array imports neither h5py nor zarr nor bcolz."""
    code = (
        "import sys, numpy, lungmill.training.views as v; v.DelayedView(numpy.arange(3))[[1, 0]]; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(SCRIPTS)},
    )
    assert not {"h5py", "zarr", "bcolz", "numba", "pandas"} & set(done.stdout.split())
