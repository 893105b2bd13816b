import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline, make_interp_spline
from scipy.ndimage import map_coordinates

from lungmill.interpolation import basis_weights, factor, knots_around, make_axis, solve_columns, solve_rows

steps = st.lists(st.floats(0.2, 9.0), min_size=3, max_size=25)


def evaluate(axis, samples):
    """What the library's kernels do, in plain NumPy."""
    coefficients = np.array(samples, dtype=np.float32)[:, None].copy()
    if axis.spline is not None:
        solve_columns(coefficients, axis.spline.lower, axis.spline.upper, axis.spline.inverse_diagonal)
    return (coefficients[axis.indices, 0] * axis.weights).sum(axis=1)


@settings(deadline=None)
@given(steps, st.booleans(), st.integers(0, 2**32 - 1))
def test_linear_is_numpys(steps, flip, seed):
    rng = np.random.default_rng(seed)
    positions = np.cumsum([0.0, *steps])
    samples = rng.normal(0, 500, len(positions)).astype(np.float32)
    targets = rng.uniform(positions[0] - 1, positions[-1] + 1, 50)
    expected = np.interp(targets, positions, samples)
    order = slice(None, None, -1 if flip else 1)
    axis = make_axis(positions[order], targets, "linear")
    np.testing.assert_allclose(evaluate(axis, samples[order]), expected, atol=2e-2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("n", [4, 5, 17, 60])
def test_cubic_on_even_samples_is_scipys(n, flip):
    rng = np.random.default_rng(n)
    samples = rng.normal(0, 500, n).astype(np.float32)
    targets = np.linspace(0, n - 1, 101)
    expected = map_coordinates(samples.astype(np.float64), [targets], order=3, mode="mirror")
    positions = 3.0 + 2.5 * np.arange(n)
    order = slice(None, None, -1 if flip else 1)
    axis = make_axis(positions[order], 3.0 + 2.5 * targets, "cubic")
    np.testing.assert_allclose(evaluate(axis, samples[order]), expected, atol=0.05)


@settings(deadline=None)
@given(steps, st.integers(0, 2**32 - 1))
def test_cubic_passes_through_uneven_samples(steps, seed):
    positions = np.cumsum([0.0, *steps])
    samples = np.random.default_rng(seed).normal(0, 500, len(positions)).astype(np.float32)
    axis = make_axis(positions, positions, "cubic")
    np.testing.assert_allclose(evaluate(axis, samples), samples, atol=0.5)


def test_cubic_on_uneven_samples_is_the_mirrored_spline_of_scipy():
    # scipy has no mirrored ends, so the mirror images are made explicitly and the middle is compared.
    rng = np.random.default_rng(5)
    positions = np.cumsum([0.0, *rng.uniform(0.5, 7, 14)])
    samples = rng.normal(0, 300, 15)
    mirrored = np.concatenate([-positions[:0:-1], positions, 2 * positions[-1] - positions[-2::-1]])
    values = np.concatenate([samples[:0:-1], samples, samples[-2::-1]])
    spline = make_interp_spline(mirrored, values, k=3)
    targets = np.linspace(positions[0], positions[-1], 200)
    axis = make_axis(positions, targets, "cubic")
    np.testing.assert_allclose(evaluate(axis, samples), spline(targets), atol=0.1)


def test_basis_is_that_of_scipy():
    knots = np.array([0.0, 1.1, 1.9, 4.0, 4.5, 7.0])
    targets = np.linspace(1.9, 3.99, 9)
    ours = basis_weights(np.repeat(knots[None], 9, axis=0), targets)
    # The four basis functions over interval [1.9, 4.0] need one knot more on each side; its value has no effect.
    extended = np.concatenate([[-1.0], knots, [9.0]])
    for i in range(4):
        expected = BSpline.basis_element(extended[i : i + 5], extrapolate=False)(targets)
        np.testing.assert_allclose(ours[:, i], np.nan_to_num(expected), atol=1e-12)


def test_rows_and_columns_are_solved_alike():
    block = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
    spline = factor(np.arange(7))
    across, down = block.copy(), block.T.copy()
    solve_rows(across, spline.lower, spline.upper, spline.inverse_diagonal)
    solve_columns(down, spline.lower, spline.upper, spline.inverse_diagonal)
    np.testing.assert_array_equal(across, down.T)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples(n):
    samples = np.array([10.0, 20.0, 15.0])[:n]
    for method in ("linear", "cubic"):
        axis = make_axis(np.arange(n) * 2.0, np.arange(n) * 2.0, method)
        np.testing.assert_allclose(evaluate(axis, samples), samples, atol=1e-3)


def test_knots_are_mirrored():
    knots = knots_around(np.array([0.0, 1.0, 3.0, 4.0]), np.array([0, 2]))
    np.testing.assert_allclose(knots, [[-3, -1, 0, 1, 3, 4], [0, 1, 3, 4, 5, 7]])


def test_unknown_method():
    with pytest.raises(ValueError, match="nearest"):
        make_axis([0, 1], [0], "nearest")
