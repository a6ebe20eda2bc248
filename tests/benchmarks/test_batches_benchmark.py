"""benchmarks/batches.py on a small simulated set: peers that are missing, scores, the file that resumes, the questions."""

import importlib
import json
import sys
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
    """240 cells of three separate types in two balanced batches, two cells unlabelled, as h5ad."""
    rng = np.random.default_rng(0)
    types, chips = np.arange(240) % 3, np.arange(240) // 3 % 2
    rates = rng.gamma(0.5, 2.0, (3, 120))
    counts = sparse.csr_matrix(rng.poisson(rates[types]).astype(np.float32))
    labels = pd.Series(types).map({0: "a", 1: "b", 2: "c"})
    labels.iloc[:2] = np.nan
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(labels), "chip": [f"chip{chip}" for chip in chips]},
        index=[f"cell{row}" for row in range(240)],
    )
    (tmp_path / "data").mkdir()
    anndata.AnnData(counts, obs=obs).write_h5ad(tmp_path / "data" / "two_chips.h5ad")
    return tmp_path


def run(load, folder: Path, *arguments: str, code: int = 0) -> dict:
    out = folder / "batches.json"
    common = ["--data", str(folder / "data"), "--out", str(out), "--sets", "two_chips=chip", "--seeds", "1"]
    assert load("batches").main([*common, *arguments]) == code
    return json.loads(out.read_text()) if out.exists() else {}


def test_components_are_scored_without_peers(load, folder, capsys):
    held = run(load, folder, "--methods", "pca50")
    (found,) = held["runs"]
    assert {how: scores["ari"] for how, scores in found["labels"].items()} == {"consensus": 1.0, "kmeans": 1.0}
    assert min(found["clisi"], found["knn"]) > 0.99
    assert found["graph_connectivity"] > 0.9  # strongly connected parts: a cell that is nobody's neighbour is apart
    assert found["ilisi"] > 0.8  # the chips do not differ
    assert held["sets"]["two_chips"] | {"labels": "unknown", "batches": 2, "batch": "chip"} == held["sets"]["two_chips"]
    assert held["summary"]["labels"]["pca50/kmeans"]["ari"] == 1.0
    assert str(folder) not in json.dumps(held)
    said = capsys.readouterr().out
    assert "PCA50 + consensus" in said
    assert run(load, folder, "--methods", "pca50", "--resume") == held


@pytest.mark.parametrize("python", [None, sys.executable, "/nowhere/python"])
def test_a_peer_that_is_missing_is_told_once_before_any_work(load, folder, capsys, python):
    peer = [] if python is None else ["--peer-python", python]
    assert run(load, folder, "--methods", "pca50", "pca50-harmony", *peer, code=2) == {}
    said = capsys.readouterr().out
    assert said.count("error:") == 1
    assert "harmonypy==2.1.0" in said
    assert "--peer-python" in said


def test_a_set_without_known_batches_is_refused(load, folder, capsys):
    arguments = ["--data", str(folder / "data"), "--methods", "pca50", "--sets", "two_chips"]
    assert load("batches").main([*arguments, "--out", str(folder / "a.json")]) == 2
    assert "two_chips=COLUMN" in capsys.readouterr().out


def test_a_failed_run_is_recorded(load, folder):
    held = run(load, folder, "--methods", "pca50", "--label", "chip")
    assert held["runs"][0]["n_true"] == 2
    path = folder / "data" / "two_chips.h5ad"
    adata = anndata.read_h5ad(path)
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)  # no counts: no gene passes the filter
    adata.write_h5ad(path)
    held = run(load, folder, "--methods", "pca50", code=1)
    assert "error" in held["runs"][0]


def test_lisi_counts_the_labels_around_a_cell(load):
    scaled_lisi = load("integration.scores").scaled_lisi
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3))
    halves = np.where(np.arange(400) % 2, "x", "y")
    assert np.median(scaled_lisi(points, halves)) > 0.9
    apart = points + 100.0 * (halves == "x")[:, None]
    assert np.median(scaled_lisi(apart, halves)) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(scaled_lisi(points, np.full(400, "x"))).all()


def test_a_type_in_two_pieces_is_half_connected(load):
    points = np.repeat([[0.0, 0.0], [50.0, 50.0]], 40, axis=0) + np.random.default_rng(0).normal(size=(80, 2)) * 0.1
    types, batches = np.full(80, "one"), np.array(["a", "b"])[np.arange(80) % 2]
    assert load("integration.scores").mixing_scores(points, batches, types)["graph_connectivity"] == 0.5


def test_cases_leave_a_type_in_one_batch_only(load, folder):
    cells = load("integration.cells").BatchedCells.read(folder / "data" / "two_chips.h5ad", "chip", "cell_type")
    questions = load("integration.questions")
    cases = questions.find_cases(cells, 0)
    assert sorted((case.kept_type, case.batch) for case in cases) == [(t, f"chip{c}") for t in "abc" for c in (0, 1)]
    assert cases != questions.find_cases(cells, 1)
    left = cases[0].apply(cells)
    assert set(left.batches[left.types == cases[0].kept_type]) == {cases[0].batch}
    assert left.n_cells == cells.n_cells - cases[0].n_removed


def test_forms_change_settings_and_unknown_settings_are_refused(load):
    latents = load("integration.latents")
    config = latents.form_config(latents.FORMS["ours-none"], "chip", 3, 5)
    assert (config.correction.acts_on, config.batch_key, config.n_clusters, config.seed) == ("none", "chip", 3, 5)
    assert latents.form_config(latents.FORMS["ours-nokey"], "chip", 3, 5).batch_key is None
    with pytest.raises(ValueError, match=r"no setting 'correction\.acts'"):
        latents.form_config({"correction.acts": 1}, "chip", 3, 5)


def test_shuffled_batches_keep_their_sizes(load, folder):
    module = load("integration.cells")
    cells = module.BatchedCells.read(folder / "data" / "two_chips.h5ad", "chip", "cell_type")
    cells.shuffle(0)
    shuffled = cells.adata.obs[module.SHUFFLED].to_numpy()
    assert sorted(shuffled) == sorted(cells.batches)
    assert (shuffled != cells.batches).any()


def test_a_script_in_a_child_tells_what_it_took(load, tmp_path):
    children = load("integration.children")
    script = tmp_path / "run_double.py"
    script.write_text(
        f"import sys; sys.path.append({str(BENCHMARKS / 'peers')!r})\n"
        "from exchange import serve\n"
        "serve(('numpy',), lambda a, s: a['x'], lambda x, s: {'y': x * s['by'], 'about': {'by': s['by']}})\n"
    )
    found, cost, about = children.call_script(Path(sys.executable), script, {"x": np.arange(3)}, {"by": 2})
    assert found["y"].tolist() == [0, 2, 4]
    assert (about["by"], cost.peak_bytes > 0, "numpy" in about["versions"]) == (2, True, True)
    script.write_text("raise SystemExit('no such thing')\n")
    with pytest.raises(children.PeerError, match="run_double ended with 1: no such thing"):
        children.call_script(Path(sys.executable), script, {"x": np.arange(3)}, {})


def test_exponents_are_slopes_of_logarithms(load):
    runs = [
        {"method": "m", "batches": 2, "cells": cells, "seconds": seconds}
        for cells, seconds in [(100, 1.0), (1000, 20.0), (10_000, 100.0)]
    ]
    assert load("integration.scale").exponents(runs) == {("m", 2): pytest.approx(1.0)}


def test_simulated_batches_lie_apart(load):
    scale = load("integration.scale")
    cells, batches = scale.mixture(2000, 5, 0)
    assert (cells.shape, cells.dtype, len(set(batches))) == ((2000, 32), np.float32, 5)
    assert scale.apart(cells, batches) > 0.1


def test_groups_hold_the_known_sets(load):
    sets = load("sets")
    assert (len(sets.GROUPS["single"]), len(sets.GROUPS["batches"])) == (14, 6)
    assert sets.is_chosen("kang12k_1287g", "single")
    assert sets.is_chosen("kang12k_1287g", "batches")
    assert not sets.is_chosen("marques2618", "single")
    assert sets.is_chosen("of my own", "single")
    assert sets.is_chosen("marques2618", "single", ["marques2618"])


def test_a_batch_that_is_left_out_is_predicted_apart(load, folder, monkeypatch, capsys):
    questions, batches = load("integration.questions"), load("batches")
    seen = []

    def fit(cells, changes, seed):
        seen.append((cells.n_cells, cells.n_types))

    def predict(model, cells):  # a latent that knows the types, and no batch
        codes = np.unique(cells.types, return_inverse=True)[1]
        return np.random.default_rng(0).normal(size=(cells.n_cells, 2)) + 50.0 * codes[:, None], codes

    monkeypatch.setattr(questions, "fit_ours", fit)
    monkeypatch.setattr(questions, "predict_ours", predict)
    monkeypatch.setattr(batches, "warm_up", lambda names: None)
    held = run(load, folder, "--held-out", "--methods", "ours")
    assert seen == [(240, 3), (120, 3), (120, 3)]
    assert [(run["batch"], run["n_held_out"]) for run in held["runs"]] == [("chip0", 120), ("chip1", 120)]
    assert held["summary"][0]["ari_of_batch"] == 1.0
    assert held["summary"][0]["lowest_ratio"] > 0.8
    assert "Each batch left out" in capsys.readouterr().out


def test_the_f1_of_a_kept_type_is_summed_up(load):
    def case(method: str, how: str, batch: str, f1: float) -> dict:
        return {"set": "s", "type": "t", "batch": batch, "seed": 0, "method": method, "labels": {how: {"f1": f1}}}

    runs = [case("ours", "own", "x", 0.9), case("ours", "own", "y", 0.7), case("pca50-harmony", "kmeans", "x", 0.5)]
    ours, peer = load("integration.tables").over_summary(runs)
    assert (ours["method"], ours["f1"], ours["ours_minus"]) == ("ours/own", pytest.approx(0.8), None)
    assert (peer["method"], peer["ours_minus"], peer["ours_minus_error"]) == (
        "pca50-harmony/kmeans",
        pytest.approx(0.4),
        None,
    )


@pytest.mark.slow  # two fits of the network, one of them a warm-up
def test_a_type_that_one_batch_keeps_is_found_by_this_program(load, folder):
    held = run(load, folder, "--over-correction", "--cases", "1", "--methods", "ours")
    assert held["summary"][0]["f1"] > 0.9


@pytest.mark.slow  # UMAP is compiled
def test_a_picture_is_drawn(load, folder):
    pytest.importorskip("matplotlib")
    picture = folder / "picture.png"
    arguments = ["--data", str(folder / "data"), "--picture", "two_chips=chip", "--methods", "pca50"]
    assert load("batches").main([*arguments, "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
