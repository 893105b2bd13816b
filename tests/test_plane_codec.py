import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs import blosc

from lungmill.plane_codec import NAME, PlaneCodec, register
from lungmill.plane_kernels import PRECISION, TAPS, decode_block, encode_block, fit_weights

shapes = hnp.array_shapes(min_dims=3, max_dims=3, max_side=10)
extremes = st.sampled_from([-32768, -1024, 0, 32767])


@settings(max_examples=100, deadline=None)
@given(st.one_of(hnp.arrays(np.int16, shapes), hnp.arrays(np.int16, shapes, elements=extremes)))
def test_any_block_comes_back(block):
    np.testing.assert_array_equal(decode_block(encode_block(block, 1), block.shape), block)


def test_bytes_are_as_described():
    """Undone with NumPy alone from the description: weights, then Blosc, then signs, then sums over planes before."""
    rng = np.random.default_rng(0)
    block = rng.normal(40, 300, (12, 7, 9)).cumsum(axis=0).astype(np.int16)
    encoded = encode_block(block, 3)
    weights = np.frombuffer(encoded[: 2 * TAPS * 12], "<i2").reshape(12, TAPS).astype(int)
    coded = np.frombuffer(blosc.decompress(encoded[2 * TAPS * 12 :]), "<u2").reshape(block.shape).astype(int)
    missed = np.where(coded % 2, -(coded + 1) // 2, coded // 2)
    for z in range(1, 12):
        before = sum(weights[z, k] * (block[z - 1 - k].astype(int) + 1024) for k in range(min(TAPS, z)))
        predicted = np.floor(before / 2**PRECISION + 0.5).astype(int) - 1024
        np.testing.assert_array_equal((predicted + missed[z]).astype(np.int16), block[z])


def test_weights_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    block = rng.normal(-300, 200, (20, 30, 40)).cumsum(axis=0).clip(-30000, 30000).astype(np.int16)
    weights = fit_weights(block, -1024) / 2**PRECISION
    for z in (1, 3, TAPS, 19):
        taps = min(TAPS, z)
        planes = np.stack([block[z - 1 - k].ravel() + 1024.0 for k in range(taps)], axis=1)
        expected = np.linalg.lstsq(planes, block[z].ravel() + 1024.0)[0]
        np.testing.assert_allclose(weights[z, :taps], expected, atol=2**-PRECISION)
        assert not weights[z, taps:].any()


def test_planes_between_two_slices_cost_next_to_nothing():
    """Linear interpolation at a quarter of the slice distance: one plane of four is news, the others follow from it."""
    rng = np.random.default_rng(0)
    slices = rng.normal(0, 300, (17, 50, 50))
    position = np.arange(64) / 4
    below = position.astype(int)
    part = (position - below)[:, None, None]
    block = np.rint(slices[below] * (1 - part) + slices[below + 1] * part).astype(np.int16)
    news = len(encode_block(block[::4], 3))
    assert len(encode_block(block, 3)) < 1.6 * news


def test_zarr_writes_and_reads_it(tmp_path):
    register()
    image = np.random.default_rng(0).normal(0, 300, (40, 30, 20)).astype(np.int16)
    stored = zarr.create_array(
        tmp_path / "a",
        shape=image.shape,
        dtype=image.dtype,
        chunks=(16, 16, 16),
        serializer=PlaneCodec(level=5),
        compressors=None,
        fill_value=-1024,
    )
    stored[:] = image
    stored[3:9, 4, 5:] = 7
    image[3:9, 4, 5:] = 7
    again = zarr.open_array(tmp_path / "a", mode="r")
    assert again.metadata.to_dict()["codecs"] == ({"name": NAME, "configuration": {"level": 5}},)
    np.testing.assert_array_equal(again[:], image)
    with pytest.raises(ValueError, match="int16 of three dimensions"):
        zarr.create_array(tmp_path / "b", shape=(4, 4), dtype="f4", serializer=PlaneCodec(), compressors=None)
