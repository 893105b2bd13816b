import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lungmill.training.errors import ArrayError
from lungmill.training.sliding_window import SlidingWindows
from lungmill.training.views import DelayedView

WEIGHTS = ("uniform", "gaussian", "ramp")


def random_volume(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.normal(0, 1, shape) * 10.0 ** rng.integers(-3, 6, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@st.composite
def cases(draw):
    axes = draw(st.sampled_from([2, 3]))
    shape = draw(st.tuples(*[st.integers(1, 14)] * axes))
    window = draw(st.tuples(*[st.integers(1, 9)] * draw(st.integers(2, axes))))
    if draw(st.booleans()):
        spread = {"overlap": draw(st.floats(0, 0.99))}
    else:
        spread = {"step": [draw(st.integers(1, n)) for n in window]}
    return shape, window, {**spread, "edges": draw(st.sampled_from(["shift", "pad"]))}


def windows_of(case, dtype=np.int16):
    shape, window, options = case
    volume = random_volume(shape, dtype)
    return volume, SlidingWindows(volume, window, fill=7, **options)


@settings(max_examples=150, deadline=None)
@given(case=cases(), dtype=st.sampled_from([np.int16, np.uint8, np.int32, np.uint16]), weight=st.sampled_from(WEIGHTS))
def test_unchanged_integers_come_back_exactly(case, dtype, weight):
    volume, windows = windows_of(case, dtype)
    whole = windows.assemble(windows[:], weight)
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, volume)


@settings(max_examples=100, deadline=None)
@given(case=cases(), dtype=st.sampled_from([np.float32, np.float64]), weight=st.sampled_from(WEIGHTS))
def test_unchanged_floats_come_back_within_rounding(case, dtype, weight):
    volume, windows = windows_of(case, dtype)
    whole = windows.assemble(iter(windows), weight)
    assert whole.dtype == dtype
    np.testing.assert_allclose(whole, volume, rtol=20 * np.finfo(dtype).eps, atol=0)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_windows_are_slices_of_the_padded_volume_and_cover_it(case):
    shape, window, options = case
    volume, windows = windows_of(case)
    wide = 24
    padded = np.pad(volume, wide, constant_values=7)
    solid = (1, 1, *window)[-len(shape) :]
    seen = np.zeros(padded.shape, int)
    for patch, start in zip(windows, windows.starts, strict=True):
        where = tuple(slice(s + wide, s + wide + n) for s, n in zip(start, solid, strict=True))
        np.testing.assert_array_equal(patch, padded[where].reshape(window))
        seen[where] += 1
    inside = tuple(slice(wide, wide + n) for n in shape)
    assert seen[inside].all()
    assert windows.starts.tolist() == sorted(windows.starts.tolist())
    for axis, (n, size) in enumerate(zip(shape, solid, strict=True)):
        starts = np.unique(windows.starts[:, axis])
        if options["edges"] == "shift" and n >= size:
            assert starts.min() >= 0 and starts.max() + size <= n
        before, after = -starts.min(), starts.max() + size - n
        if before > 0 or after > 0:  # both sides alike
            assert abs(before - after) <= 1
        axis -= len(shape) - len(window)
        if axis >= 0 and len(starts) > 1:
            step = options["step"][axis] if "step" in options else max(1, int(size * (1 - options["overlap"]) + 1e-9))
            assert np.diff(starts).max() <= step
            if options["edges"] == "pad":
                assert (np.diff(starts) == step).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_indexing_is_numpys(data):
    volume = random_volume((9, 10, 11), np.int16)
    windows = SlidingWindows(volume, (4, 5, 6))
    whole = np.stack(list(windows))
    n = len(windows)
    first = data.draw(
        st.one_of(st.integers(-n, n - 1), st.lists(st.integers(-n, n - 1)), st.just(slice(None, None, -3)))
    )
    rest = data.draw(st.sampled_from([(), (1,), (slice(1, 3),), (..., slice(None, None, -2)), (slice(None), [0, 2])]))
    try:
        expected = whole[(first, *rest)]
    except IndexError:
        with pytest.raises(IndexError):
            windows[(first, *rest)]
    else:
        np.testing.assert_array_equal(windows[(first, *rest)], expected)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("edges", ["shift", "pad"])
def test_changed_patches_are_averaged_by_their_weights(weight, edges):
    volume = np.zeros((13, 17, 11), np.float32)
    windows = SlidingWindows(volume, (6, 7, 8), 0.6, edges=edges)
    patches = np.random.default_rng(1).normal(size=windows.shape).astype(np.float32)
    profiles = {
        "uniform": lambda n: np.ones(n),
        "gaussian": lambda n: np.maximum(np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2), 1e-3),
        "ramp": lambda n: 1.0 + np.minimum(np.arange(n), n - 1 - np.arange(n)),
    }
    z, y, x = (profiles[weight](n) for n in windows.window)
    weights = z[:, None, None] * y[:, None] * x
    wide = 8
    above, below = np.zeros((2, *(n + 2 * wide for n in volume.shape)))
    for patch, start in zip(patches, windows.starts, strict=True):
        where = tuple(slice(s + wide, s + wide + n) for s, n in zip(start, windows.window, strict=True))
        above[where] += weights * patch
        below[where] += weights
    inside = (slice(wide, -wide),) * 3
    expected = above[inside] / below[inside]
    np.testing.assert_allclose(windows.assemble(patches, weight), expected, rtol=1e-4, atol=1e-5)
    rounded = windows.assemble(np.rint(patches * 1000).astype(np.int16), weight)
    assert rounded.dtype == np.int16
    assert abs(rounded - 1000 * expected).max() <= 1.01


def test_channels_before_the_window():
    volume = random_volume((9, 10, 12), np.float32)
    windows = SlidingWindows(volume, (4, 6, 5))
    outputs = (np.stack([patch, -patch, 2 * patch])[:, None] for patch in windows)
    whole = windows.assemble(outputs)
    assert whole.shape == (3, 1, 9, 10, 12)
    for channel, factor in zip(whole[:, 0], (1, -1, 2), strict=True):
        np.testing.assert_allclose(channel, factor * volume, rtol=1e-5)


def test_means_are_held_to_the_range_of_the_result():
    windows = SlidingWindows(np.zeros((4, 4), np.uint8), (2, 2), fill=0)
    assert (windows.assemble(np.full(windows.shape, 300.7, np.float32), dtype=np.uint8) == 255).all()
    assert (windows.assemble(np.full(windows.shape, -3.0, np.float32), dtype=np.uint8) == 0).all()
    assert (windows.assemble(np.full(windows.shape, 2.6, np.float32), dtype=np.uint8) == 3).all()


def test_volumes_in_files_and_results_into_files(tmp_path):
    volume = random_volume((30, 24, 26), np.int16)
    np.save(tmp_path / "a.npy", volume)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=volume, chunks=(8, 8, 8))
    stored = zarr.create_array(tmp_path / "a.zarr", data=volume, chunks=(8, 8, 8))
    for source in (np.load(tmp_path / "a.npy", mmap_mode="r"), h5py.File(tmp_path / "a.h5")["image"], stored):
        windows = SlidingWindows(source, (9, 10, 12), fill=0, edges="pad")
        outs = (
            np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.int16, volume.shape),
            zarr.create_array(tmp_path / "out.zarr", shape=volume.shape, dtype="i2", chunks=(8, 8, 8), overwrite=True),
            h5py.File.in_memory().create_dataset("image", volume.shape, "i2"),
        )
        for out in outs:
            assert windows.assemble(windows, out=out) is out
            np.testing.assert_array_equal(out[:], volume)
    np.testing.assert_array_equal(DelayedView(windows)[[3, -1]], windows[[3, -1]])
    flat = SlidingWindows(zarr.create_array(tmp_path / "b.zarr", data=volume[0]), (9, 10))
    np.testing.assert_array_equal(flat.assemble(flat[:]), volume[0])


@pytest.mark.parametrize(("shape", "most"), [((16, 20, 20), 3), ((9, 10), 2), ((40, 26, 26), 2)])
@pytest.mark.parametrize("edges", ["shift", "pad"])
def test_in_order_hardly_any_chunk_is_read_twice(monkeypatch, shape, most, edges):
    volume = random_volume((64, 48, 52), np.int16)
    store = zarr.storage.MemoryStore()
    stored = zarr.create_array(store, data=volume, chunks=(16, 16, 16))
    windows = SlidingWindows(stored, shape, 0.5, edges=edges)
    solid = (1, *shape)[-3:]
    read = []
    get = zarr.storage.MemoryStore.get

    async def counting(store, key, *arguments, **options):
        read.append(key)
        return await get(store, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.MemoryStore, "get", counting)
    batches = list(windows.batches(7))
    chunks = [key for key in read if "c/" in key]
    assert len(set(chunks)) == 4 * 3 * 4
    assert len(chunks) <= most * len(set(chunks))
    assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    expected = SlidingWindows(volume, shape, 0.5, edges=edges)[:]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    np.testing.assert_array_equal(windows[:], expected)
    np.testing.assert_array_equal(np.stack(list(windows)), expected)
    read.clear()
    np.testing.assert_array_equal(windows[5], expected[5])
    inside = [
        np.arange(max(0, s), min(s + n, size)) // 16
        for s, n, size in zip(windows.starts[5], solid, volume.shape, strict=True)
    ]
    assert len([key for key in read if "c/" in key]) == np.prod([len(set(numbers)) for numbers in inside])
    # Some windows of one height and few of another.
    rows = [*range(min(40, len(windows))), len(windows) - 1, 3]
    np.testing.assert_array_equal(windows[rows], expected[rows])


class PlanesInOrder:
    """An array that takes each plane once, from first to last, and a slab of limited thickness at a time."""

    def __init__(self, shape, dtype, thickest):
        self.array, self.dtype, self.shape = np.zeros(shape, dtype), np.dtype(dtype), shape
        self.next, self.thickest = 0, thickest

    def __setitem__(self, index, values):
        assert index[0].start == self.next and index[0].stop - index[0].start <= self.thickest
        self.next = index[0].stop
        self.array[index] = values


@pytest.mark.parametrize("edges", ["shift", "pad"])
def test_the_volume_is_written_slab_by_slab(edges):
    volume = random_volume((57, 10, 11), np.int16)
    windows = SlidingWindows(volume, (8, 5, 5), 0.5, edges=edges)
    out = PlanesInOrder(volume.shape, np.int16, 8)
    windows.assemble(windows, out=out)
    assert out.next == 57
    np.testing.assert_array_equal(out.array, volume)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4, 4), "volume": np.zeros((4, 4, 4, 4))}, "do not fit a volume"),
        ({"shape": (4, 4, 4), "volume": np.zeros((4, 4))}, "do not fit a volume"),
        ({"shape": (4, 4, 4), "volume": np.zeros((4, 0, 4))}, "do not fit a volume"),
        ({"shape": (4, 4), "overlap": 1}, "overlap"),
        ({"shape": (4, 4), "overlap": -0.1}, "overlap"),
        ({"shape": (4, 4), "step": 5}, "leaves gaps"),
        ({"shape": (4, 4), "step": 0}, "step"),
        ({"shape": (4, 4), "edges": "wrap"}, "edges='wrap'"),
        ({"shape": (4, 4), "volume": np.zeros((4, 4), np.uint8)}, "fill=-1024 does not fit into uint8"),
        ({"shape": (0, 4)}, "less than a voxel"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ArrayError, match=message):
        SlidingWindows(**{"volume": np.zeros((6, 8, 8), np.int16), **arguments})


def test_patches_that_do_not_belong_to_the_windows():
    windows = SlidingWindows(np.zeros((6, 8, 8), np.int16), (4, 4, 4))
    patches = windows[:]
    for wrong, message in (
        (patches[:-1], f"{len(windows) - 1} patches for {len(windows)} windows"),
        (patches[:0], f"0 patches for {len(windows)} windows"),
        (np.concatenate([patches, patches[:1]]), f"more patches than the {len(windows)}"),
        (patches[:, 1:], r"patch 0 has shape \(3, 4, 4\)"),
    ):
        with pytest.raises(ArrayError, match=message):
            windows.assemble(wrong)
    with pytest.raises(ArrayError, match=r"out has shape \(6, 8\)"):
        windows.assemble(patches, out=np.zeros((6, 8)))
    with pytest.raises(ArrayError, match="weight='cosine'"):
        windows.assemble(patches, "cosine")
