"""The scores equal Eqs. (16) to (18)."""

from __future__ import annotations

import numpy as np
import pytest

from scamac_scale.metrics.clustering import clustering_scores
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
