from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scamac_scale.cells.normalisation import cell_scale, normalise_values
from scamac_scale.errors import ShapeError

WHOLE = hnp.arrays(np.float64, st.integers(0, 30), elements=st.integers(0, 70_000).map(float))


@settings(deadline=None)
@given(WHOLE, st.floats(1e-6, 1e6), st.data())
def test_values_are_log1p_of_the_scaled_values(values: np.ndarray, scale: float, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, values.size))
    indptr, scales = np.array([0, cut, values.size]), np.array([scale, 2 * scale])
    found = normalise_values(indptr, values, scales)
    expected = np.log1p(values * np.repeat(scales, np.diff(indptr)))
    np.testing.assert_allclose(found, expected, rtol=6e-8)  # rounded to float32 once


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64, np.float32])
@pytest.mark.slow
def test_the_same_count_has_the_same_bits_in_every_type(dtype: type) -> None:
    values = np.arange(200.0)
    indptr, scale = np.array([0, 200]), np.array([0.3])
    expected = normalise_values(indptr, values, scale)
    np.testing.assert_array_equal(normalise_values(indptr, values.astype(dtype), scale), expected)


def test_table_of_small_counts_is_made_anew_for_each_cell() -> None:
    found = normalise_values(np.array([0, 2, 4]), np.array([1, 1, 1, 1], np.uint8), np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, np.log1p([1, 1, 2, 2]), rtol=6e-8)


def test_fractions_are_not_taken_for_counts() -> None:
    values = np.array([0.5, 1.0, 1.5, 15.5, 16.0])
    np.testing.assert_allclose(normalise_values(np.array([0, 5]), values, np.ones(1)), np.log1p(values), rtol=6e-8)


def test_cell_without_counts_has_scale_zero() -> None:
    assert cell_scale(np.array([0.0, 5.0]), 10.0).tolist() == [0.0, 2.0]


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="3 row pointers up to 4 for 1 scales"):
        normalise_values(np.array([0, 2, 4]), np.ones(4), np.ones(1))
    with pytest.raises(ShapeError):
        normalise_values(np.array([0, 9]), np.ones(4), np.ones(1))
