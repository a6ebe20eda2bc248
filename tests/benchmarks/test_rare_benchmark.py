"""benchmarks/rare.py on a small simulated atlas: the shares, the scores of each stage, and one real fit."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

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


def test_the_best_union_takes_landmarks_down_to_a_share(rare: ModuleType) -> None:
    cells = np.array([[0, 8], [6, 4], [90, 0], [0, 0]])  # three landmarks, and one without cells
    assert rare.union_f1(cells, 1) == pytest.approx(16 / (8 + 12))  # the first alone; with the second 24 / (18 + 12)
    assert rare.union_f1(np.array([[0, 8], [1, 4]]), 1) == pytest.approx(24 / (13 + 12))


def test_real_types_are_thinned_to_the_share(rare: ModuleType, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "cells.h5ad"
    kinds = np.repeat(["a", "b", "c"], 40)
    counts = sparse.csr_matrix(rng.poisson(2.0, (120, 8)).astype(np.float32))
    anndata.AnnData(counts, obs=pd.DataFrame({"kind": kinds}, index=[f"c{row}" for row in range(120)])).write_h5ad(file)
    atlas = rare.thin_real(file, "kind", ["b"], 0.02, 500, 0)
    assert atlas.shape == (500, 8)
    assert atlas.uns["n_common"] == 2
    assert np.bincount(atlas.obs["cell_type"])[2] == 10
    with pytest.raises(SystemExit, match="cannot be"):
        rare.thin_real(file, "kind", ["b"], 0.9, 500, 0)


@pytest.mark.slow
def test_a_fit_is_scored_stage_by_stage_and_kept(
    rare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rare.json"
    sizes = ["--cells", "600", "--genes", "100", "--common", "2", "--rare", "1", "--landmarks", "60"]
    arguments = [*sizes, "--extra-markers", "0.3", "--shares", "0.1", "--out", str(out)]
    rare.main(arguments)
    held = json.loads(out.read_text())
    (found,) = held["runs"]
    assert (found["share"], found["way"], found["seed"]) == (0.1, "default", 0)
    assert 30 < found["rare_cells"][0] < 70
    assert 0 < found["rare_landmarks"][0] < 60
    assert all(0 < found[name][0] <= 1 for name in ("f1", "f1_union", "f1_true_means"))
    assert held["summary"][0]["types"] == 1
    printed = capsys.readouterr().out
    assert "10.0%" in printed
    assert str(tmp_path) not in out.read_text()
    rare.main([*arguments, "--resume"])
    assert json.loads(out.read_text()) == held


def test_types_that_are_found_are_counted(rare: ModuleType) -> None:
    common = {"atlas": "simulated", "share": 0.001, "way": "default", "n_genes": 9, "rare_cells": [20, 22]}
    common |= {"f1_union": [0.9, 0.9], "f1_true_means": [0.9, 0.9], "ari": 0.8, "ari_true_means": 0.9, "cpu_seconds": 1}
    runs = [
        {**common, "rare_landmarks": [0, 2], "f1": [0.01, 0.7]},
        {**common, "rare_landmarks": [0, 1], "f1": [0.02, 0.03]},
    ]
    (row,) = rare.summarise(runs)
    assert (row["seeds"], row["types"], row["found"]) == (2, 4, 1)
    assert row["rare_landmarks"] == {"median": 0.5, "low": 0, "high": 2}
