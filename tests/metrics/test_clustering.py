from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.clustering import clustering_scores
from scamac_scale.metrics.labels import is_labelled
from tests.support.mathematics import LAWS


@LAWS
@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.permutations(["w", "x", "y", "z"]))
def test_names_of_clusters_do_not_matter(labels: list[int], names: list[str]) -> None:
    scores = clustering_scores(labels, [names[label] for label in labels])
    assert scores["ari"] == pytest.approx(1.0)
    assert scores["nmi"] == pytest.approx(1.0)


@LAWS
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=30))
def test_scores_are_symmetric(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = zip(*pairs, strict=True)
    first, second = clustering_scores(labels, clusters), clustering_scores(clusters, labels)
    assert first["ari"] == pytest.approx(second["ari"])
    assert first["nmi"] == pytest.approx(second["nmi"])


def test_unlabelled_cells_are_left_out_and_counted() -> None:
    labels = ["B", None, "T", math.nan, "", "T", " ", "B", pd.NA]
    clusters = ["1", "9", "2", "9", "9", "2", "9", "1", "9"]
    scores = clustering_scores(labels, clusters)
    assert scores == {"ari": 1.0, "nmi": 1.0, "n_cells": 4, "n_unlabelled": 5, "n_clusters": 2, "n_labels": 2}
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize(
    "labels", [pd.Categorical(["a", None, "b"]), pd.Series(["a", None, "b"]), np.array([1.0, math.nan, 2.0])]
)
def test_missing_values_of_every_kind_of_column_are_seen(labels: object) -> None:
    np.testing.assert_array_equal(is_labelled(labels), [True, False, True])


def test_unusable_columns_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"labels \(3,\) and clusters \(2,\)"):
        clustering_scores(["a", "b", "c"], ["1", "2"])
    with pytest.raises(InputError, match="none of the 2 cells has a label"):
        clustering_scores([None, ""], ["1", "2"])
    with pytest.raises(InputError, match="1 labelled cells have no cluster"):
        clustering_scores(["a", "b"], ["1", None])
