"""The scores equal Eqs. (16) to (18), and those of imputation their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from scamac_scale.metrics.clustering import clustering_scores
from scamac_scale.metrics.imputation import thinned_scores
from tests.parity import reference


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_printed_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    clusters[:20] = labels[:20]
    scores = clustering_scores(labels, clusters)
    assert scores["nmi"] == pytest.approx(
        reference.mutual_information_score(labels.tolist(), clusters.tolist()), rel=1e-10
    )
    assert scores["ari"] == pytest.approx(reference.rand_score(labels.tolist(), clusters.tolist()), rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_thinned_scores_equal_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    test, denoised = rng.poisson(0.5, (9, 7)).astype(np.float64), rng.gamma(0.5, 4.0, (9, 7))
    test[0], denoised[1], denoised[2, 3] = 0, 0, 0
    scores = thinned_scores(test, denoised, 300.0)
    assert scores["poisson"] == pytest.approx(reference.poisson_loss(test, denoised, 300.0), rel=1e-10)
    assert scores["log_mse"] == pytest.approx(reference.log_error(test, denoised), rel=1e-10)
    assert scores["n_values"] == test.size
