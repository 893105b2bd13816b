import numpy as np
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from lungmill.grid import Grid

mm = st.floats(-500, 500, allow_nan=False)
positive = st.floats(0.2, 10)


@given(
    st.tuples(positive, positive, positive),
    st.tuples(mm, mm, mm),
    st.tuples(*[st.integers(0, 300)] * 3),
)
def test_agrees_with_simpleitk_on_points_and_indices(spacing, origin, index):
    image = sitk.Image(10, 10, 10, sitk.sitkInt16)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin[::-1])
    grid = Grid((10, 10, 10), spacing, origin)
    expected = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]])[::-1]
    np.testing.assert_allclose(grid.to_mm(index), expected, atol=1e-6)
    np.testing.assert_allclose(grid.to_index(grid.to_mm(index)), index, atol=1e-6)


def test_dict_round_trip_and_axis():
    grid = Grid((2, 3, 4), (2.0, 1.0, 0.5), (-10.0, 5.0, 0.25))
    assert Grid.from_dict(grid.as_dict()) == grid
    np.testing.assert_allclose(grid.axis_mm(2), [0.25, 0.75, 1.25, 1.75])
