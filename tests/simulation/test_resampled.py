"""Atlases that are resampled from labelled cells: what is kept of them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale import resample
from scamac_scale.cli.main import main
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.simulation import resampled

if TYPE_CHECKING:
    from pathlib import Path


def counts_of(n_cells: int = 300, n_genes: int = 40) -> ad.AnnData:
    """Three types, the genes of each apart; one type has two batches, and some cells have no label or no counts."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, n_cells, p=[0.6, 0.3, 0.1])
    mean = np.full((n_cells, n_genes), 0.0)
    for k in range(3):
        mean[kind == k, 10 * k : 10 * k + 10] = 3.0
    counts = rng.poisson(mean * rng.lognormal(0, 0.3, (n_cells, 1)))
    counts[:4] = 0
    labels = pd.Categorical.from_codes(kind, ["a", "b", "c"])
    labels[4:8] = np.nan
    batch = np.where(kind == 0, rng.choice(["x", "y"], n_cells), "x")
    obs = pd.DataFrame({"kind": labels, "plate": batch}, index=[f"cell{i}" for i in range(n_cells)])
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs, genes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "real.h5ad"
    counts_of().write_h5ad(path)
    return path


def test_new_cells_have_the_groups_genes_and_depths_of_the_source(source: Path, tmp_path: Path) -> None:
    real, new = (
        ad.read_h5ad(source),
        ad.read_zarr(resample(source, tmp_path / "a.zarr", n_cells=3000, label="kind", batch_key="plate")),
    )
    assert new.shape == (3000, 40)
    assert list(new.var_names) == list(real.var_names)
    known = real[real.obs["kind"].notna()]
    expected = known.obs["kind"].value_counts(normalize=True)
    found = new.obs["kind"].value_counts(normalize=True)
    assert (found - expected).abs().max() < 0.04  # four standard errors
    assert set(zip(new.obs["kind"], new.obs["plate"], strict=True)) == {("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")}
    for k, kind in enumerate("abc"):
        assert new[new.obs["kind"] == kind].X[:, np.r_[: 10 * k, 10 * k + 10 : 40]].nnz == 0  # no genes but its own
    depth = np.asarray(known.X.sum(axis=1)).ravel()
    assert np.median(np.asarray(new.X.sum(axis=1))) == pytest.approx(np.median(depth[depth > 0]), rel=0.1)
    assert (new.X.data == np.rint(new.X.data)).all()
    assert "Resampled" in str(new.uns["simulation"]["note"])


def test_many_files_hold_the_cells_of_the_one(source: Path, tmp_path: Path) -> None:
    one = ad.read_zarr(resample(source, tmp_path / "one.zarr", n_cells=2500, label="kind"))
    folder = resample(source, tmp_path / "many", n_cells=2500, label="kind", n_files=3)
    parts = [ad.read_zarr(path) for path in sorted(folder.iterdir())]
    assert [path.name for path in sorted(folder.iterdir())] == ["part-001.zarr", "part-002.zarr", "part-003.zarr"]
    joined = ad.concat(parts)
    assert (joined.X != one.X).nnz == 0
    assert list(joined.obs_names) == list(one.obs_names)
    assert list(joined.obs["kind"]) == list(one.obs["kind"])


def test_an_atlas_begins_as_a_shorter_one_does_and_the_seed_decides(source: Path, tmp_path: Path) -> None:
    long, short, other = (
        ad.read_zarr(resample(source, tmp_path / f"{n}-{seed}.zarr", n_cells=n, label="kind", seed=seed))
        for n, seed in ((1500, 1), (1200, 1), (1200, 2))
    )
    assert (long.X[:1200] != short.X).nnz == 0
    assert (other.X != short.X).nnz > 0


def test_of_a_large_source_a_sample_of_every_group_is_held(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampled, "SOURCE_CELLS", 80)
    monkeypatch.setattr(resampled, "MIN_GROUP_CELLS", 20)
    monkeypatch.setattr(resampled, "BLOCK_CELLS", 64)
    group = ad.read_h5ad(source).obs["kind"].cat.codes.to_numpy().astype(np.int64)
    is_taken = resampled._sample(group, 0)
    held, sizes = np.bincount(group[is_taken]), np.bincount(group[group >= 0])
    assert (held >= 20).all()
    assert 77 <= held.sum() <= 80
    assert np.ptp((held - 20) / (sizes - 20)) < 0.05  # of what is left of each the same share
    assert not is_taken[group < 0].any()
    new = ad.read_zarr(resample(source, tmp_path / "a.zarr", n_cells=400, label="kind"))
    assert set(new.obs["kind"]) == {"a", "b", "c"}


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), most=st.integers(30, 100), least=st.integers(1, 200)
)
def test_never_are_more_cells_held_and_of_each_group_one(sizes: list[int], most: int, least: int) -> None:
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(-1, len(sizes)), [3, *sizes]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampled, "SOURCE_CELLS", most)
        patch.setattr(resampled, "MIN_GROUP_CELLS", least)
        held = np.bincount(group[resampled._sample(group, 0)], minlength=len(sizes))
    assert held.sum() <= most
    assert (held >= 1).all()
    assert (held <= sizes).all()


def test_more_groups_than_cells_can_be_held_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampled, "SOURCE_CELLS", 3)
    with pytest.raises(InputError, match=r"make 4 groups of cells, and 3 cells .* \(--label, --batch-key\)"):
        resample(source, tmp_path / "a.zarr", n_cells=10, label="kind", batch_key="plate")
    resample(source, tmp_path / "a.zarr", n_cells=10, label="kind")


def test_counts_are_poisson_around_the_mixture_whatever_their_mean() -> None:
    """Of one cell mixed with itself: means and variances of genes of small and large means, and no gene follows another."""
    counts = np.array([0.02, 0.5, 0.5, 3, 11, 13, 400], np.float32)
    source = np.array([0, 7]), np.arange(7, dtype=np.int32), counts
    n, rng = 20_000, np.random.default_rng(0)
    indptr, genes, drawn = np.zeros(n + 1, np.int64), np.empty(7 * n, np.int32), np.empty(7 * n, np.float32)
    mixed, factors = np.zeros((n, 3), np.int64), np.tile([0.2, 0.3, 0.5], (n, 1))
    resampled._pour(mixed, factors, source, rng, (indptr, genes, drawn))
    found = sparse.csr_matrix((drawn[: indptr[-1]], genes[: indptr[-1]], indptr), (n, 7)).toarray().astype(np.float64)
    error = np.sqrt(counts / n)
    assert (np.abs(found.mean(axis=0) - counts) < 4.5 * error).all()
    np.testing.assert_allclose(found.var(axis=0), counts, rtol=0.2)
    np.testing.assert_allclose((found == 0).mean(axis=0), np.exp(-counts), atol=4.5 * 0.5 / np.sqrt(n))
    assert np.abs(np.corrcoef(found.T) - np.eye(7)).max() < 4.5 / np.sqrt(n)


def test_the_depths_of_a_type_do_not_drift(source: Path) -> None:
    with open_raw(source) as raw:
        codes, _ = resampled._coded(raw, ("kind",))
        cells = resampled._read_source(raw, codes, 0)
    runs = [resampled._draw(cells, ("kind",), slice(0, resampled.DRAWN_CELLS), 0, block) for block in range(60)]
    label = np.concatenate([run.codes["kind"] for run in runs])
    depth = np.concatenate([np.add.reduceat(run.data.astype(np.float64), run.indptr[:-1]) for run in runs])
    for group, member in enumerate(cells.members):
        own = depth[label == group]
        error = own.std() / np.sqrt(len(own))
        assert abs(own.mean() - cells.totals[member].mean()) < 4 * error
        assert error < 0.006 * own.mean()  # a drift of 2 % would be seen


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"label": "type"}, InputError, "obs has no column 'type' .*; known are kind, plate"),
        ({"label": "kind", "batch_key": "donor"}, InputError, "obs has no column 'donor'"),
        ({"label": "kind", "n_files": 0}, ConfigError, "n_files=0"),
        ({"label": "kind", "n_files": 200}, ConfigError, "n_files=200 for n_cells=100"),
        ({"label": "kind", "seed": -1}, ConfigError, "seed=-1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_left(
    source: Path, tmp_path: Path, options: dict[str, object], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        resample(source, tmp_path / "a.zarr", n_cells=100, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_counts_are_refused(tmp_path: Path) -> None:
    adata = counts_of()
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(InputError, match="does not hold counts"):
        resample(tmp_path / "log.h5ad", tmp_path / "a.zarr", n_cells=100, label="kind")
    assert [path.name for path in tmp_path.iterdir()] == ["log.h5ad"]


def test_the_command_deals_cells_among_files(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "many"
    argv = ["simulate", "--from", str(source), "--label", "kind", "--cells", "90", "--files", "2", "--out", str(out)]
    assert main(argv) == 0
    assert sorted(path.name for path in out.iterdir()) == ["part-001.zarr", "part-002.zarr"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--files", "2"], "--files is of no use without --from"),
        (["--files", "1"], "--files is of no use without --from"),
        (["--label", "x", "--batch-key", "y"], "--label and --batch-key are of no use without --from"),
        (["--from", "SOURCE", "--genes", "2000"], "--genes is of no use with --from"),
        (["--from", "SOURCE", "--types", "3", "--label", "kind"], "--types is of no use with --from"),
    ],
)
def test_options_of_the_other_kind_of_atlas_are_refused(
    options: list[str], said: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(source) if option == "SOURCE" else option for option in options]
    assert main(["simulate", "--cells", "90", "--out", str(tmp_path / "b.zarr"), *argv]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
