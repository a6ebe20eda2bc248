"""benchmarks/rare.py on a small simulated atlas: the shares, the counting, and one real fit."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scamac_scale.train.clusters.selection import SELECTIONS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rare")


def test_rare_types_have_the_share_asked_for(rare: ModuleType) -> None:
    atlas = rare.simulate_rare(rare.Sizes(n_cells=20_000, n_genes=10, n_common=3, n_rare=2), 0.01, 0.2, seed=0)
    counts = np.bincount(atlas.obs["cell_type"])
    assert atlas.shape == (20_000, 10)
    np.testing.assert_allclose(counts[3:], 200, atol=60)  # four standard deviations of 14
    assert counts[0] > counts[1] > counts[2] > 1000
    assert atlas.varm["markers"].sum(axis=0).tolist() == [3, 3]  # one that every type has, and two of ten genes


def test_f1_is_that_of_the_best_matching_cluster(rare: ModuleType) -> None:
    is_type = np.array([True, True, True, False, False, False])
    assert rare.best_f1(is_type, np.array([0, 0, 0, 1, 1, 1])) == 1
    assert rare.best_f1(is_type, np.array([0, 0, 1, 1, 1, 1])) == pytest.approx(0.8)  # 2 of 2, and 2 of 3
    assert rare.best_f1(is_type, np.zeros(6, dtype=np.int64)) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_cells_that_a_fit_chose_are_counted_and_kept(
    rare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = dict(SELECTIONS), tmp_path / "rare.json"
    sizes = ["--cells", "600", "--genes", "100", "--common", "2", "--rare", "1", "--landmarks", "60"]
    choices = ["--choices", "kmeans/kmeans", "--extra-markers", "0.3", "--shares", "0.1", "--seeds", "1"]
    arguments = [*sizes, *choices, "--out", str(out)]
    rare.main(arguments)
    assert before == SELECTIONS
    held = json.loads(out.read_text())
    (found,) = held["runs"]
    assert (found["share"], found["landmarks"], found["bank"], found["seed"]) == (0.1, "kmeans", "kmeans", 0)
    assert 30 < found["rare_cells"][0] < 70
    assert 0 < found["rare_landmarks"][0] < 60
    assert 0 < found["rare_bank"][0] < 256
    assert held["summary"][0]["types"] == 1
    printed = capsys.readouterr().out
    assert "10.0%" in printed
    assert str(tmp_path) not in out.read_text()
    rare.main([*arguments, "--resume"])
    assert json.loads(out.read_text()) == held


def test_types_without_a_landmark_and_types_found_are_counted(rare: ModuleType) -> None:
    common = {
        "extra_markers": 0.0,
        "share": 0.001,
        "landmarks": "random",
        "bank": "random",
        "rare_cells": [20, 22],
        "markers_kept": [3, 3],
    }
    common |= {"f1_true_means": [0.9, 0.9], "ari": 0.8, "ari_true_means": 0.9, "seconds": 1.0}
    runs = [
        {**common, "rare_landmarks": [0, 2], "f1": [0.01, 0.7]},
        {**common, "rare_landmarks": [0, 1], "f1": [0.02, 0.03]},
    ]
    (row,) = rare.summarise(runs)
    assert (row["seeds"], row["types"], row["without_landmark"], row["found"]) == (2, 4, 2, 1)
    assert row["rare_landmarks"] == {"median": 0.5, "low": 0, "high": 2}
