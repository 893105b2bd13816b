"""Everything that `encode` writes is read by the package pcodec, which is what readers of a store have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from lungmill.pcodec_kernels import BATCH, MOST_IN_CHUNK, encode

LEVELS, ORDERS = range(10), (None, 0, 1, 2)
ENDS = (-32768, 32767)


def by_the_package(numbers, level, order):
    config = ChunkConfig(
        compression_level=level,
        mode_spec=ModeSpec.classic(),
        delta_spec=DeltaSpec.try_consecutive(order),
        paging_spec=PagingSpec.equal_pages_up_to(MOST_IN_CHUNK),
    )
    return standalone.simple_compress(numbers.ravel(), config)


def assert_comes_back(numbers, level, order):
    encoded = encode(numbers, level, order)
    read = standalone.simple_decompress(encoded)
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, numbers.ravel())
    assert encode(numbers, level, order) == encoded


@settings(max_examples=200, deadline=None)
@given(
    numbers=hnp.arrays(
        np.int16,
        hnp.array_shapes(max_dims=3, max_side=9),
        elements=st.one_of(st.sampled_from([*ENDS, -1, 0, 1]), st.integers(*ENDS)),
    ),
    level=st.sampled_from(LEVELS),
    order=st.sampled_from(ORDERS),
)
def test_any_numbers_come_back(numbers, level, order):
    assert_comes_back(numbers, level, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, BATCH - 1, BATCH, BATCH + 1, BATCH + 2, BATCH + 3, 2 * BATCH + 2, 5000])
def test_lengths_around_a_batch_come_back(size, order):
    rng = np.random.default_rng(size)
    for numbers in (
        np.full(size, ENDS[0], np.int16),
        np.resize(np.array(ENDS, np.int16), size),
        rng.integers(*ENDS, size, np.int16, endpoint=True),
        rng.normal(0, 4, size).astype(np.int16),
        rng.normal(0, 1, size).cumsum().astype(np.int16),
        np.where(rng.random(size) < 0.01, rng.integers(*ENDS, size), 7).astype(np.int16),
    ):
        assert_comes_back(numbers, 8, order)


@pytest.mark.parametrize("size", [MOST_IN_CHUNK, MOST_IN_CHUNK + 1, 2 * MOST_IN_CHUNK + 3])
def test_more_numbers_than_a_chunk_holds_come_back(size):
    assert_comes_back(np.random.default_rng(0).normal(0, 50, size).astype(np.int16), 5, None)


def test_every_number_there_is_comes_back():
    """As many values, and so as many bins to choose from, as can be."""
    for numbers in (np.arange(-32768, 32768), np.random.default_rng(0).permutation(np.arange(-32768, 32768))):
        for order in ORDERS:
            assert_comes_back(numbers.astype(np.int16), 9, order)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spread", [2, 20, 300])
@pytest.mark.parametrize("level", [5, 8])
def test_the_size_is_that_of_the_package(level, spread, order):
    rng = np.random.default_rng(spread)
    numbers = (rng.laplace(0, spread, (60, 60, 60)) + 5 * np.arange(60)).astype(np.int16)
    assert len(encode(numbers, level, order)) < 1.01 * len(by_the_package(numbers, level, order))
