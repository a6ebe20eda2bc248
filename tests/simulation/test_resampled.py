"""Atlases that are resampled from labelled cells: what is kept of them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale import resample
from scamac_scale.cli.main import main
from scamac_scale.errors import ConfigError, InputError
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
    monkeypatch.setattr(resampled, "SOURCE_CELLS", 60)
    monkeypatch.setattr(resampled, "MIN_GROUP_CELLS", 20)
    monkeypatch.setattr(resampled, "BLOCK_CELLS", 64)
    group = ad.read_h5ad(source).obs["kind"].cat.codes.to_numpy().astype(np.int64)
    is_taken = resampled._sample(group, 0)
    held = np.bincount(group[is_taken])
    assert (held >= 20).all()
    assert held.sum() < 110
    assert not is_taken[group < 0].any()
    new = ad.read_zarr(resample(source, tmp_path / "a.zarr", n_cells=400, label="kind"))
    assert set(new.obs["kind"]) == {"a", "b", "c"}


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
    assert main(["simulate", "--cells", "90", "--files", "2", "--out", str(tmp_path / "b.zarr")]) == 2
    assert "--files 2 needs --from" in capsys.readouterr().err
