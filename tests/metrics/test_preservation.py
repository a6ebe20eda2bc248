from __future__ import annotations

import json
import math

import numpy as np
import pytest

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.preservation import neighbor_accuracy, transfer_scores

RNG = np.random.default_rng(0)
LABELS = np.repeat(["B", "NK", "T"], 40)
APART = np.repeat(10.0 * np.eye(3), 40, axis=0) + RNG.normal(size=(120, 3))
NOISE = RNG.normal(size=(120, 3))
LAST_OF_EACH = np.arange(120) % 40 >= 30


def test_separate_labels_are_all_found_and_noise_tells_little() -> None:
    assert neighbor_accuracy(APART, LABELS) == 1.0
    assert neighbor_accuracy(NOISE, LABELS) < 0.6


def test_accuracy_is_that_of_a_vote_counted_by_hand() -> None:
    """With as many folds as cells of a label, each fold misses one cell of every label."""
    latent = np.array([[0.0], [0.1], [0.2], [5.0], [1.0], [1.1], [1.2], [1.3]])
    labels = ["a"] * 4 + ["b"] * 4
    # the lone "a" at 5 lies nearest to cells of "b", whichever are missing
    assert neighbor_accuracy(latent, labels, n_neighbors=1, n_folds=4) == 7 / 8


def test_unlabelled_cells_neither_vote_nor_count() -> None:
    labels = LABELS.astype(object)
    labels[::4], labels[1::8] = None, math.nan
    kept = np.array([isinstance(label, str) for label in labels])
    assert neighbor_accuracy(NOISE, labels) == neighbor_accuracy(NOISE[kept], LABELS[kept])
    assert transfer_scores(APART, labels, LAST_OF_EACH)["n_cells"] == int((kept & LAST_OF_EACH).sum())


def test_the_seed_makes_the_folds() -> None:
    assert neighbor_accuracy(NOISE, LABELS, seed=3) == neighbor_accuracy(NOISE, LABELS, seed=3)
    assert len({neighbor_accuracy(NOISE, LABELS, seed=seed) for seed in range(6)}) > 1


def test_a_label_of_fewer_cells_than_folds_is_no_error() -> None:
    labels = LABELS.astype(object)
    labels[0] = "rare"
    assert neighbor_accuracy(APART, labels) == 119 / 120


def test_a_donor_held_out_is_labelled_from_the_others() -> None:
    scores = transfer_scores(APART, LABELS, LAST_OF_EACH)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "n_cells": 30}
    assert json.loads(json.dumps(scores)) == scores


def test_macro_f1_counts_labels_alike() -> None:
    """A label that the others lack cannot be found, and counts as much as the two that are."""
    is_held_out = LAST_OF_EACH | (LABELS == "T")
    scores = transfer_scores(APART, LABELS, is_held_out)
    assert scores["accuracy"] == 20 / 60
    # the T lie as far from B as from NK and take their names: F1 of T is 0
    assert scores["macro_f1"] < (1 + 1 + 0) / 3


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"latent \(120, 3\) and labels \(2,\)"):
        neighbor_accuracy(APART, ["a", "b"])
    with pytest.raises(ShapeError, match=r"is_held_out \(2,\) and labels \(120,\)"):
        transfer_scores(APART, LABELS, [True, False])
    with pytest.raises(InputError, match="0 labelled cells, at most 0 of one label"):
        neighbor_accuracy(APART, [None] * 120)
    with pytest.raises(InputError, match="18 labelled cells, at most 18 of one label, are too few for 15"):
        neighbor_accuracy(APART[:18], LABELS[:18])
    with pytest.raises(InputError, match="0 labelled cells are held out and 120 are left"):
        transfer_scores(APART, LABELS, np.zeros(120, dtype=bool))
    with pytest.raises(InputError, match="NaN or infinity"):
        neighbor_accuracy(np.full((120, 3), np.nan), LABELS)
