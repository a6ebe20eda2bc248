"""benchmarks/imputation.py on the tiny atlas: what is hidden or held out, what it is compared with, and one real fit each."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scamac_scale.cells.genes import GeneSpace

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def imputation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("imputation")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_exactly_the_share_of_the_nonzeros_is_hidden_and_nothing_else_changes(
    imputation: ModuleType, tiny_adata: ad.AnnData, share: float
) -> None:
    counts = tiny_adata.X
    before = counts.toarray()
    damaged, hidden = imputation.hide(counts, share, np.random.default_rng(0))
    is_hidden = hidden.toarray()
    assert is_hidden.sum() == round(share * np.count_nonzero(before))
    assert (before[is_hidden] > 0).all()
    np.testing.assert_array_equal(damaged.toarray(), np.where(is_hidden, 0, before))
    np.testing.assert_array_equal(counts.toarray(), before)
    assert damaged.nnz == np.count_nonzero(before) - is_hidden.sum()


def test_stored_zeros_are_not_there_to_be_hidden(imputation: ModuleType) -> None:
    counts = sparse.csr_matrix((np.array([1.0, 0.0, 2.0, 3.0, 4.0]), ([0, 0, 0, 1, 1], [0, 1, 2, 0, 2])), shape=(2, 3))
    _, hidden = imputation.hide(counts, 0.5, np.random.default_rng(0))
    assert hidden.nnz == 2
    assert not hidden[0, 1]


def test_seed_decides_what_is_hidden(imputation: ModuleType, tiny_adata: ad.AnnData) -> None:
    first, again, other = (imputation.hide(tiny_adata.X, 0.3, np.random.default_rng(seed))[1] for seed in (0, 0, 1))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


def test_truth_is_scaled_by_its_own_totals_over_the_filtered_genes(
    imputation: ModuleType, tiny_adata: ad.AnnData
) -> None:
    names = list(tiny_adata.var_names)
    genes = GeneSpace("counts", 1.0, tuple(names[:150]), tuple(names[10:30]))  # a target that must not be used
    counts = tiny_adata.X.toarray().astype(np.float64)
    totals = counts[:, :150].sum(axis=1)
    expected = np.log1p(counts[:, 10:30] * np.median(totals) / totals[:, None])
    found = imputation.log_normalised(tiny_adata.X, names, genes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32


def test_pca_goes_from_the_gene_means_to_the_values(imputation: ModuleType) -> None:
    values = np.random.default_rng(0).random((30, 8)).astype(np.float32)
    means, middle, whole = imputation.pca_reconstructions(values, [0, 3, 8])
    np.testing.assert_allclose(means, np.tile(values.mean(axis=0), (30, 1)), rtol=1e-6)  # float32
    np.testing.assert_allclose(whole, values, atol=1e-6)  # float32
    assert 0 < ((middle - values) ** 2).sum() < ((means - values) ** 2).sum()
    assert min(middle.min(), whole.min()) >= 0


@pytest.fixture
def denoisers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("denoisers")


def test_thinned_parts_add_up_and_hold_no_zeros(denoisers: ModuleType, tiny_adata: ad.AnnData) -> None:
    counts = tiny_adata.X.copy()
    counts.eliminate_zeros()
    kept, held_out = denoisers.thin(counts, 0.1, np.random.default_rng(0))
    assert (kept + held_out != counts).nnz == 0
    assert kept.data.min() > 0
    assert held_out.data.min() > 0
    assert held_out.sum() / counts.sum() == pytest.approx(0.1, abs=0.01)


def test_log_values_and_counts_are_each_other_s_inverse(denoisers: ModuleType, tiny_adata: ad.AnnData) -> None:
    totals = np.asarray(tiny_adata.X.sum(axis=1)).reshape(-1, 1)
    values, scale = denoisers.log_values(tiny_adata.X)
    np.testing.assert_allclose(denoisers.to_counts(values, totals, scale), tiny_adata.X.toarray(), atol=1e-9)


def test_alra_finds_the_rank_keeps_what_was_seen_and_most_true_zeros(denoisers: ModuleType) -> None:
    rng = np.random.default_rng(0)
    types = rng.gamma(2.0, 1.0, (4, 150)) * (rng.random((4, 150)) < 0.5)  # half of the genes are off in each type
    of = np.arange(400) % 4
    values = np.log1p(rng.poisson(2 * types[of]).astype(float))
    assert 4 <= denoisers.alra_rank(values, 0) < 12  # the first gaps of the noise are wider than its last ones
    found = denoisers.alra_values(values, 4, 0)
    assert (found[values > 0] > 0).all()
    is_off = types[of] == 0
    assert (found[is_off] == 0).mean() > 0.9
    assert (found[~is_off] == 0).mean() < 0.5 * (values[~is_off] == 0).mean()


@pytest.mark.slow
def test_methods_are_scored_on_the_same_held_out_molecules(
    imputation: ModuleType, tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "imputation.json"
    methods = ["scamac", "none", "gene-mean", "pca", "alra", "magic", "scamac-poisson"]
    arguments = ["--data", str(tiny_atlas.parent), "--sets", "tiny", "--seeds", "1", "--methods", *methods]
    imputation.main([*arguments, "--out", str(out)])
    runs = {run["method"]: run for run in json.loads(out.read_text())["runs"]}
    assert runs.keys() == set(methods) - {"magic"}
    assert len({(run["scored_cells"], run["scored_genes"], run["held_out_zeros"]) for run in runs.values()}) == 1
    assert all(run["poisson"] < runs["none"]["poisson"] for name, run in runs.items() if name != "none")
    for name in ("scamac", "pca", "scamac-poisson"):
        assert runs[name]["poisson"] < runs["gene-mean"]["poisson"]
    assert runs["gene-mean"]["poisson"] == pytest.approx(runs["gene-mean"]["poisson_totals"])
    printed = capsys.readouterr().out
    assert "magic is left out" in printed
    assert "zeros too" in printed
    assert str(tiny_atlas.parent) not in out.read_text() + printed


@pytest.mark.slow
def test_every_method_is_scored_on_the_same_hidden_entries(
    imputation: ModuleType, tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "imputation.json"
    arguments = [
        "--data",
        str(tiny_atlas.parent),
        "--sets",
        "tiny",
        "--protocol",
        "hidden",
        "--shares",
        "0.3",
        "--seeds",
        "1",
    ]
    imputation.main([*arguments, "--out", str(out)])
    held = json.loads(out.read_text())
    runs = {run["method"]: run for run in held["runs"]}
    assert runs.keys() == imputation.TITLES.keys()
    assert len({(run["n_hidden"], run["n_scored"], run["n_genes"]) for run in runs.values()}) == 1
    assert 0 < runs["scamac"]["n_scored"] < runs["scamac"]["n_hidden"]  # ten rare genes are not kept
    assert runs["zeros"]["cosine"] == 0  # the fit saw nothing there
    assert runs["scamac"]["rmse"] < runs["zeros"]["rmse"]
    assert held["sets"]["tiny"]["classes"] == 4
    printed = capsys.readouterr().out
    assert "Hidden: raw counts, before the fit." in printed
    assert str(tiny_atlas.parent) not in out.read_text() + printed
