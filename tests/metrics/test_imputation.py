from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.imputation import imputation_scores, thinned_scores
from tests.support.mathematics import LAWS


@LAWS
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20), st.floats(0.1, 5))
def test_a_common_factor_keeps_the_cosine_and_scales_the_errors(values: list[float], factor: float) -> None:
    truth = np.array(values)
    scores = imputation_scores(truth, truth * (1 + factor))
    assert scores["cosine"] == pytest.approx(1.0)
    assert scores["median_l1"] == pytest.approx(factor * np.median(truth))
    assert scores["rmse"] == pytest.approx(factor * np.sqrt(np.mean(truth**2)))


def test_only_held_out_entries_count() -> None:
    truth = np.array([[1.0, 2.0], [3.0, 4.0]])
    imputed = np.array([[9.0, 2.5], [3.0, np.nan]])
    held_out = np.array([[False, True], [True, False]])
    scores = imputation_scores(truth, imputed, held_out)
    assert scores["n_values"] == 2
    assert scores["median_l1"] == pytest.approx(0.25)
    assert scores["rmse"] == pytest.approx(np.sqrt(0.125))
    assert scores["cosine"] == pytest.approx((2 * 2.5 + 9) / np.sqrt(13 * (6.25 + 9)))


def test_an_imputation_of_zeros_has_cosine_zero() -> None:
    assert imputation_scores([1.0, 2.0], [0.0, 0.0])["cosine"] == 0.0


def test_unusable_values_are_refused() -> None:
    with pytest.raises(ShapeError, match="must have the same shape"):
        imputation_scores([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="no value is held out"):
        imputation_scores([1.0, 2.0], [1.0, 2.0], [False, False])
    with pytest.raises(InputError, match="NaN or infinity"):
        imputation_scores([1.0, 2.0], [1.0, np.inf])


def test_the_true_expectation_has_the_least_poisson_loss() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 1.0, (1, 60)) * rng.gamma(9, 0.2, (400, 1))
    kept, test = rng.poisson(9 * rates), rng.poisson(rates)
    good, same, filled, emptied = (
        thinned_scores(test, guess, float(kept.sum()))["poisson"]
        for guess in (9 * rates, kept, np.maximum(9 * rates, 3.0), np.where(9 * rates < 1, 0.0, 9 * rates))
    )
    assert good < min(same, filled, emptied)


def test_thinned_counts_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ShapeError, match="must have the same shape"):
        thinned_scores([[1.0, 2.0]], [[1.0]], 3.0)
    with pytest.raises(InputError, match="nothing to compare"):
        thinned_scores([[1.0]], [[1.0]], 0.0)
    with pytest.raises(InputError, match="negative"):
        thinned_scores([[1.0]], [[-1.0]], 3.0)
