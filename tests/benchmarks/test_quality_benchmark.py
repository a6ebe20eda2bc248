"""benchmarks/quality.py on a small simulated set: real fits, the file that resumes, and the arithmetic of the tables."""

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
pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' warnings are not ours to fix


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load_module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """150 cells of three well separated types, two of them unlabelled, as h5ad."""
    rng = np.random.default_rng(0)
    types = np.arange(150) % 3
    rates = rng.gamma(0.5, 2.0, (3, 120))
    counts = sparse.csr_matrix(rng.poisson(rates[types]).astype(np.float32))
    labels = pd.Series(types).map({0: "a", 1: "b", 2: "c"})
    labels.iloc[:2] = np.nan
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"cell{row}" for row in range(150)])
    adata = anndata.AnnData(counts, obs=obs)
    (tmp_path / "data").mkdir()
    adata.write_h5ad(tmp_path / "data" / "three_types.h5ad")
    return tmp_path


def run(load, folder: Path, *arguments: str) -> dict:
    out = folder / "quality.json"
    assert load("quality").main(["--data", str(folder / "data"), "--out", str(out), *arguments]) == 0
    return json.loads(out.read_text())


def test_peers_and_consensus_recover_separate_types(load, folder, capsys):
    held = run(load, folder, "--methods", "pca50-kmeans", "pca50-ward", "consensus", "--seeds", "1")
    scores = {run["method"]: run["ari"] for run in held["runs"]}
    assert scores == {"consensus": 1.0, "pca50-kmeans": 1.0, "pca50-ward": 1.0}
    assert held["sets"]["three_types"]["unlabelled"] == 2
    assert held["sets"]["three_types"]["labels"] == "unknown"
    assert str(folder) not in json.dumps(held)
    assert held["summary"]["all"]["methods"]["consensus"]["ari"] == 1.0
    assert "three_types" in capsys.readouterr().out


def test_a_latent_is_scored_by_its_neighbours_and_by_a_donor_held_out(load, folder, monkeypatch, capsys):
    adata = anndata.read_h5ad(folder / "data" / "three_types.h5ad")
    adata.obs["donor"] = ["first" if row % 4 else "second" for row in range(150)]
    adata.write_h5ad(folder / "data" / "three_types.h5ad")
    monkeypatch.setitem(load("methods").HELD_OUT, "three_types", ("donor", "second"))
    held = run(load, folder, "--methods", "pca50-kmeans", "consensus", "--seeds", "1")
    found = {run["method"]: run for run in held["runs"]}
    assert found["pca50-kmeans"]["neighbor_accuracy"] == 1.0
    assert found["pca50-kmeans"]["transfer_accuracy"] == found["pca50-kmeans"]["transfer_macro_f1"] == 1.0
    assert "neighbor_accuracy" not in found["consensus"]
    means = held["summary"]["all"]["methods"]
    assert (means["pca50-kmeans"]["neighbor_accuracy"], means["consensus"]["neighbor_accuracy"]) == (1.0, None)
    shown = capsys.readouterr().out
    assert "15-NN accuracy of the labels" in shown
    assert "Macro F1 on a donor held out" in shown


def test_too_few_cells_for_neighbours_leave_the_score_out(load, folder):
    adata = anndata.read_h5ad(folder / "data" / "three_types.h5ad")[2:19].copy()
    adata.write_h5ad(folder / "data" / "three_types.h5ad")
    (run_of_set,) = run(load, folder, "--methods", "pca50-ward", "--seeds", "1")["runs"]
    assert "ari" in run_of_set
    assert "neighbor_accuracy" not in run_of_set


@pytest.mark.slow  # scanpy compiles its neighbour graph in every process
def test_tuned_leiden_finds_the_true_number_of_communities(load, folder):
    held = run(load, folder, "--methods", "leiden-1", "leiden-0.5", "leiden-k", "--seeds", "1")
    tuned = next(run for run in held["runs"] if run["method"] == "leiden-k")
    assert (tuned["n_clusters"], tuned["ari"]) == (3, 1.0)


@pytest.mark.slow  # three fits of the network, one of them a warm-up
def test_this_program_recovers_separate_types(load, folder):
    held = run(load, folder, "--methods", "scamac", "scamac-auto", "--seeds", "1")
    scores = {run["method"]: run["ari"] for run in held["runs"]}
    assert scores["scamac"] == 1.0
    assert scores["scamac-auto"] > 0.5


def test_resume_runs_only_what_is_missing(load, folder, capsys):
    run(load, folder, "--methods", "pca50-kmeans", "--seeds", "1")
    capsys.readouterr()
    held = run(load, folder, "--methods", "pca50-kmeans", "pca50-ward", "--seeds", "2", "--resume")
    assert "1/3" in capsys.readouterr().out
    assert len(held["runs"]) == 4
    assert run(load, folder, "--methods", "pca50-kmeans", "pca50-ward", "--seeds", "2", "--resume") == held


def test_failed_fit_is_recorded_and_tried_again(load, folder):
    adata = anndata.read_h5ad(folder / "data" / "three_types.h5ad")
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)  # no counts: no gene passes the filter
    adata.write_h5ad(folder / "data" / "three_types.h5ad")
    out = folder / "quality.json"
    arguments = ["--data", str(folder / "data"), "--out", str(out), "--methods", "pca50-ward", "--seeds", "1"]
    assert load("quality").main(arguments) == 1
    (run,) = json.loads(out.read_text())["runs"]
    assert "error" in run
    assert load("record").Results(out, ("set", "method", "seed")).done() == set()


def score(name: str, method: str, seed: int, ari: float) -> dict:
    common = {"nmi": ari, "n_clusters": 3, "n_true": 3, "seconds": 1.0, "peak_bytes": 1}
    return {"set": name, "method": method, "seed": seed, "ari": ari, **common}


def test_pairs_use_the_seeds_that_both_methods_have(load):
    runs = [score("x", "ours", 0, 0.9), score("x", "peer", 0, 0.5), score("x", "peer", 1, 0.1)]
    pair = load("summary").compare(runs, "ours", "peer", "ari", str)
    assert pair["difference"] == pytest.approx(0.4)
    assert pair["standard_error"] is None


def test_families_count_once(load):
    runs = [score(name, "peer", 0, 0.5) for name in "xyz"]
    runs += [score("x", "ours", 0, 0.6), score("y", "ours", 0, 0.8), score("z", "ours", 0, 0.4)]
    pair = load("summary").compare(runs, "ours", "peer", "ari", {"x": "one", "y": "one", "z": "two"}.__getitem__)
    assert pair["difference"] == pytest.approx(0.1)
    assert pair["family_difference"] == pytest.approx(0.05)
    assert pair["families"] == 2
    assert (pair["wins"], pair["losses"], pair["ties"]) == (2, 1, 0)


def test_value_kinds_are_told_apart(load):
    kind = load("baselines").value_kind
    assert kind(np.array([1.0, 5.0], np.float32)) == "counts"
    assert kind(np.array([0.5, 5.0], np.float32)) == "log"
    assert kind(np.array([0.5, 500.0], np.float32)) == "linear"
