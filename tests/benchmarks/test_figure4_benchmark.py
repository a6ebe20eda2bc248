"""benchmarks/figure4.py: the peers written from their papers find separate types, and its file makes the tables again."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' warnings are not ours to fix


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load_module


def draw_counts() -> tuple[np.ndarray, np.ndarray]:
    """120 cells of three well separated types, (N, G), and the type of each."""
    rng = np.random.default_rng(0)
    types = np.arange(120) % 3
    return rng.poisson(rng.gamma(0.5, 2.0, (3, 150))[types]).astype(np.float32), types


@pytest.mark.parametrize(("module", "function"), [("graphs", "seurat_like"), ("simlr", "simlr_like")])
def test_a_peer_without_a_network_finds_separate_types(load, module, function):
    counts, types = draw_counts()
    cells = load("clustering_peers.cells").Cells(np.log1p(counts), counts, counts.sum(axis=1), 3)
    labels, latent = getattr(load(f"clustering_peers.{module}"), function)(cells, 0)
    assert adjusted_rand_score(types, labels) == 1.0
    assert len(latent) == len(types)


def test_rows_of_the_simplex_are_the_nearest_ones(load):
    points = np.random.default_rng(0).normal(size=(8, 8))
    rows = load("clustering_peers.simlr").simplex_rows(points)
    assert rows.min() >= 0
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    np.testing.assert_array_equal(np.diag(rows), 0.0)
    for point, row in zip(
        points, rows, strict=True
    ):  # the condition of an optimum: one shift for all that are positive
        shifts = (point - row)[row > 0]
        np.testing.assert_allclose(shifts, shifts[0])


def test_the_weights_of_the_kernels_count_for_twenty(load):
    weights = load("clustering_peers.simlr").kernel_weights(np.random.default_rng(0).normal(size=55))
    assert np.exp(-(weights * np.log(weights)).sum()) == pytest.approx(20)


@pytest.mark.slow
def test_every_peer_runs_and_the_tables_come_from_the_file(load, tmp_path, monkeypatch, capsys):
    counts, types = draw_counts()
    obs = pd.DataFrame({"cell_type": pd.Categorical([f"type {kind}" for kind in types])})
    (tmp_path / "data").mkdir()
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs).write_h5ad(tmp_path / "data" / "three_types.h5ad")
    bounds = load("clustering_peers.networks").Bounds(epochs=300, max_steps=60)
    for module, name in (
        ("embedded", "PRETRAINING"),
        ("embedded", "SELF_TRAINING"),
        ("embedded", "DESC_PRETRAINING"),
        ("embedded", "DESC_SELF_TRAINING"),
        ("scgmai", "TRAINING"),
    ):
        monkeypatch.setattr(load(f"clustering_peers.{module}"), name, bounds)
    written = load("clustering_peers.table").WRITTEN
    out = tmp_path / "figure4.json"
    arguments = ["--data", str(tmp_path / "data"), "--out", str(out), "--methods", "consensus", *written]
    assert load("figure4").main(arguments) == 0
    held = json.loads(out.read_text())
    scores = {run["method"]: run["ari"] for run in held["runs"]}
    assert set(scores) == {"consensus", *written}
    assert min(score for name, score in scores.items() if name in ("scdeepcluster", "desc", "simlr", "seurat")) > 0.5
    assert all(run["cpu_seconds"] > 0 and run["peak_bytes"] > 0 for run in held["runs"])
    assert not held["methods"]["desc"]["settings"]["told_K"]
    capsys.readouterr()
    assert load("figure4").main(["--report", "--out", str(out)]) == 0
    assert "SIMLR-like" in capsys.readouterr().out
