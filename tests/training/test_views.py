"""Views against NumPy: the same index of the view and of the array that it stands for."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from views_sources import KINDS, SHAPES, store, values

from lungmill.errors import LungmillError
from lungmill.training import reading
from lungmill.training.views import DelayedView, MultiSourceArray

relaxed = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(kind, shape) to an open store of `values(shape)`."""
    folder = tmp_path_factory.mktemp("sources")
    return {(kind, shape): store(kind, folder, values(shape)) for kind in KINDS for shape in SHAPES}


def slices(size):
    ends = st.none() | st.integers(-size - 2, size + 2)
    return st.builds(slice, ends, ends, st.none() | st.integers(-4, 4).filter(bool))


@st.composite
def indices(draw, shape):
    """An index of an array of this shape: up to all of its axes, of any mixture that NumPy knows."""
    common = draw(st.sampled_from([(3,), (1,), (0,), (2, 3), (3, 1)]))
    items, axis = [], 0
    dots = draw(st.none() | st.integers(0, len(shape)))
    while axis < len(shape) and draw(st.integers(0, 3)):
        if dots == axis:
            items.append(...)
            dots = None
            skipped = draw(st.integers(0, len(shape) - axis))
            axis += skipped
            rest = len(shape) - axis
            # an ellipsis takes what the others leave, so the others have to go to the end
            for _ in range(rest):
                items.append(draw(entry(shape[axis], common)))
                axis += 1
            return tuple(items)
        if draw(st.integers(0, 9)) == 0 and axis + 2 <= len(shape) and common in ((3,), (1,)):
            mask = np.zeros(shape[axis : axis + 2], bool)
            mask.flat[
                draw(st.lists(st.integers(0, mask.size - 1), min_size=common[0], max_size=common[0], unique=True))
            ] = True
            items.append(mask)
            axis += 2
        else:
            items.append(draw(entry(shape[axis], common)))
            axis += 1
    if dots is not None and draw(st.booleans()):
        items.append(...)
    if len(items) == 1 and draw(st.booleans()):
        return items[0]
    return tuple(items)


def entry(size, common):
    """What may stand at one axis: arrays in it broadcast to `common`."""
    integers = st.integers(-size, size - 1)
    count = int(np.prod(common))
    arrays = st.lists(integers, min_size=count, max_size=count).map(lambda v: np.array(v, int).reshape(common))
    lists = arrays.map(lambda a: a.tolist()) if count else arrays
    kinds = [integers, integers.map(np.int16), slices(size), slices(size), arrays, lists]
    if len(common) == 1 and count <= size:
        places = st.lists(st.integers(0, size - 1), min_size=count, max_size=count, unique=True)
        kinds.append(places.map(lambda p: np.isin(np.arange(size), p)))
        kinds.append(places.map(lambda p: np.isin(np.arange(size), p).tolist()))
    return st.one_of(kinds)


def assert_same(result, expected):
    assert type(result) is type(expected)
    assert result.dtype == expected.dtype and result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_view_indexes_as_numpy_does(sources, kind, shape):
    @relaxed
    @given(st.data())
    def check(data):
        index = data.draw(indices(shape))
        assert_same(DelayedView(sources[kind, shape])[index], values(shape)[index])

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_views_of_views_index_as_numpy_does(sources, kind):
    """Windows of two sources, shuffled as one, seen through another shuffled window."""
    shape = (13, 4, 6)
    stored = sources[kind, shape]
    array = values(shape)

    @relaxed
    @given(st.data())
    def check(data):
        seeds = data.draw(st.tuples(*[st.integers(0, 9)] * 3))
        window = DelayedView(stored, idx_min=2, idx_max=-1)
        window.shuffle(seeds[0])
        expected = [array[2:-1][np.random.default_rng(seeds[0]).permutation(10)], array]
        both = MultiSourceArray([window, stored, array], maxlen=data.draw(st.sampled_from([None, 4])))
        expected = (
            np.concatenate([*expected, array])
            if both._maxlen is None
            else np.concatenate([e[:4] for e in [*expected, array]])
        )
        both.shuffle(seeds[1])
        expected = expected[np.random.default_rng(seeds[1]).permutation(len(expected))]
        outer = DelayedView(both, idx_min=1, idx_max=10)
        outer.shuffle(seeds[2])
        expected = expected[1:10][np.random.default_rng(seeds[2]).permutation(9)]
        index = data.draw(indices(outer.shape))
        assert_same(outer[index], expected[index])
        assert_same(np.asarray(outer), expected)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_small_groups_give_the_same_as_one(sources, kind, monkeypatch):
    """What is read in several goes because it is large."""
    monkeypatch.setattr(reading, "GROUP_BYTES", 200)
    monkeypatch.setattr(reading, "GAP_BYTES", 8)
    shape = (13, 4, 6)

    @relaxed
    @given(st.data())
    def check(data):
        index = data.draw(indices(shape))
        both = MultiSourceArray([sources[kind, shape], values(shape, start=1000)])
        both.index_pairs = [(i % 2, i % 7) for i in range(13)]
        expected = np.stack([values(shape, start=1000 * (i % 2))[i % 7] for i in range(13)])
        assert_same(both[index], expected[index])
        assert_same(DelayedView(sources[kind, shape])[index], values(shape)[index])

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_indices_that_are_none(sources, kind):
    view = DelayedView(sources[kind, (13, 4, 6)])
    array = values((13, 4, 6))
    wrong = [13, -14, (0, 4), [0, 13], (0, [-5]), [True] * 12, (0, [True] * 5), np.ones((13, 5), bool), 1.0, [0.5], "a"]
    wrong += [np.array([]), (0, 0, 0, 0), (..., ...), ([0, 1], [0, 1, 2]), np.array(["a"]), {1}, (0, 2.0), 1j]
    for index in wrong:
        with pytest.raises(IndexError):
            array[index]
        with pytest.raises(IndexError):
            view[index]
    for index in (None, (0, None), (..., None), True, np.True_, np.array(False)):
        with pytest.raises(IndexError, match=r"axis|boolean"):
            view[index]
    with pytest.raises(ValueError, match="zero"):
        view[::0]
    with pytest.raises(TypeError, match="slice indices"):
        view[:1.5]


@pytest.mark.parametrize("kind", KINDS)
def test_iteration_ends_and_gives_every_element(sources, kind):
    for shape in SHAPES:
        view = DelayedView(sources[kind, shape])
        elements = list(view)
        assert len(elements) == len(view) == shape[0]
        np.testing.assert_array_equal(np.stack(elements), values(shape))
        np.testing.assert_array_equal(np.asarray(view, np.float32), values(shape).astype(np.float32))
        assert (view.shape, view.ndim, view.size, view.nbytes) == (shape, len(shape), values(shape).size, 4 * view.size)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(view, copy=False)
    assert list(DelayedView(sources[kind, (13,)], idx_min=13)) == []


def test_what_comes_back_is_nobody_elses():
    array = values((5, 3))
    for index in (0, slice(1, 3), [1], slice(None), (..., 0), ([0, 1], 0)):
        result = DelayedView(array)[index]
        result[...] = -1
        MultiSourceArray([array, array])[index][...] = -1
    np.testing.assert_array_equal(array, values((5, 3)))


def test_windows():
    array = values((10, 2))
    for first, last in [(None, None), (2, 7), (-4, -1), (0, 10), (10, 10), (3, None), (None, -3)]:
        np.testing.assert_array_equal(DelayedView(array, idx_min=first, idx_max=last)[:], array[first:last])
    for first, last in [(0, 11), (-11, None), (5, 4), (1.0, None), (None, True)]:
        with pytest.raises(LungmillError, match="idx_m"):
            DelayedView(array, idx_min=first, idx_max=last)
    with pytest.raises(LungmillError, match="no axes"):
        DelayedView(np.float32(3))
    np.testing.assert_array_equal(DelayedView([[1, 2], [3, 4]])[:, 0], [1, 3])


def test_an_order_depends_on_its_seed_alone():
    array = values((50, 2))
    view = DelayedView(array, shuffle=True)
    again = DelayedView(array)
    assert again.random_seed is None
    again.shuffle()
    again.shuffle(view.random_seed)
    np.testing.assert_array_equal(again[:], view[:])
    np.testing.assert_array_equal(array[view.indices], view[:])
    assert not np.array_equal(view[:], array)
    np.testing.assert_array_equal(np.sort(view.indices), np.arange(50))
    assert DelayedView(array, shuffle=True).random_seed != view.random_seed


def test_many_sources_in_order_and_shuffled():
    parts = [values((n, 2), start=100 * n) for n in (3, 0, 5, 1)]
    both = MultiSourceArray(parts, class_list=["a", "b", "c", "d"])
    np.testing.assert_array_equal(both[:], np.concatenate(parts))
    assert both.get_labels().tolist() == ["a"] * 3 + ["c"] * 5 + ["d"]
    assert both.index_pairs.tolist() == [[0, 0], [0, 1], [0, 2], [2, 0], [2, 1], [2, 2], [2, 3], [2, 4], [3, 0]]
    both.shuffle(4)
    for element, label, (source, place) in zip(both, both.get_labels(), both.index_pairs, strict=True):
        np.testing.assert_array_equal(element, parts[source][place])
        assert label == "abcd"[source]
    assert sorted(both[:, 0].tolist()) == sorted(np.concatenate(parts)[:, 0].tolist())
    assert MultiSourceArray(parts).get_labels().tolist() == [0] * 3 + [2] * 5 + [3]


def test_tandem_arrays_share_an_order():
    images = [values((n, 2)) for n in (30, 40)]
    masks = [image[:, 0] % 2 for image in images]
    for maxlen in (None, 10):
        x = MultiSourceArray(images, shuffle=True, maxlen=maxlen)
        y = MultiSourceArray(masks, maxlen=maxlen)
        y.index_pairs = x.index_pairs
        np.testing.assert_array_equal(x[:, 0] % 2, y[:])
        y = MultiSourceArray(masks, shuffle=True, maxlen=maxlen)
        y.shuffle(11)
        x.shuffle(3)
        x.shuffle(11)
        np.testing.assert_array_equal(x[:, 0] % 2, y[:])
        before = sorted(map(tuple, x.index_pairs))
        y.index_pairs = x.index_pairs[:7]
        assert len(y) == 7 and y.random_seed is None
        y.shuffle(5)  # another order of these seven
        assert sorted(map(tuple, y.index_pairs)) == sorted(map(tuple, x.index_pairs[:7]))
        assert sorted(map(tuple, x.index_pairs)) == before
    for pairs in ([(0, 30)], [(2, 0)], [(-1, 0)], [(0, -1)], [(0, 0, 0)], [0, 1], [(0.0, 1.0)]):
        with pytest.raises(LungmillError, match="index_pairs"):
            x.index_pairs = pairs
    y.index_pairs = []
    assert y[:].shape == (0,) and y[:].dtype == masks[0].dtype and y.get_labels().size == 0


def test_maxlen_takes_the_first_or_random_elements_of_each_source():
    parts = [np.arange(100), np.arange(1000, 1100), np.arange(5)]
    assert MultiSourceArray(parts, maxlen=7)[:].tolist() == [*range(7), *range(1000, 1007), *range(5)]
    drawn = MultiSourceArray(parts, shuffle=True, maxlen=7)
    pairs = drawn.index_pairs
    assert np.bincount(pairs[:, 0]).tolist() == [7, 7, 5]
    assert len(set(map(tuple, pairs))) == 19
    seen = set()
    for seed in range(200):  # every element has its turn
        drawn.shuffle(seed)
        seen |= set(map(tuple, drawn.index_pairs.tolist()))
    assert len(seen) == 205
    first = MultiSourceArray(parts, maxlen=7)
    first.shuffle(1)
    assert sorted(first[:].tolist()) == sorted([*range(7), *range(1000, 1007), *range(5)])


def test_sources_that_do_not_fit_are_named():
    with pytest.raises(LungmillError, match=r"source 1 .*int32\(3,\).*int32\(2,\)"):
        MultiSourceArray([values((3, 2)), values((3, 3))])
    with pytest.raises(ValueError, match=r"source 2 .*float32"):
        MultiSourceArray([values((3, 2)), values((0, 2)), values((3, 2)).astype(np.float32)])
    with pytest.raises(LungmillError, match="source_list is empty"):
        MultiSourceArray([])
    with pytest.raises(LungmillError, match="class_list has 1"):
        MultiSourceArray([values((3,)), values((3,))], class_list=[0])
    with pytest.raises(LungmillError, match="source 1 has 3 elements but 2 labels"):
        MultiSourceArray([values((3,)), values((3,))], class_list=[0, [1, 2]])
    for maxlen in (-1, 1.5, True):
        with pytest.raises(LungmillError, match="maxlen"):
            MultiSourceArray([values((3,))], maxlen=maxlen)
    both = MultiSourceArray([values((3,)), values((2,))], class_list=[[5, 6, 7], 9])
    both.shuffle(2)
    assert both.get_labels().tolist() == [[[5, 6, 7], [9, 9]][s][e] for s, e in both.index_pairs]
