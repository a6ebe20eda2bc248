from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from scamac_scale.config import IngestConfig
from scamac_scale.errors import ConfigError, OutputError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.statistics import measure
from scamac_scale.simulation import atlas as writing
from scamac_scale.simulation import drawn
from scamac_scale.simulation.drawn import DROPOUT, SHAPE, CellModel, draw_cells, simulate

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.simulation.atlas import CellRun


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "a.zarr", 2500, n_genes=400, n_types=5)


def test_it_is_a_valid_anndata(atlas: Path) -> None:
    adata = read(atlas)
    assert adata.shape == (2500, 400)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.obs_names[1500] == "cell00001501"
    assert list(adata.obs["cell_type"].cat.categories) == [f"type{k}" for k in range(1, 6)]
    assert adata.X.has_canonical_format
    assert adata.X.indptr.dtype == adata.X.indices.dtype == np.int32  # scikit-learn wants one type
    assert (adata.X.data > 0).all()
    assert (adata.X.data == np.floor(adata.X.data)).all()


def test_it_can_be_ingested(atlas: Path) -> None:
    with open_raw(atlas) as raw:
        space = measure(raw, IngestConfig(n_genes=100)).gene_space
        assert (raw.n_cells, raw.n_genes) == (2500, 400)
        np.testing.assert_array_equal(raw.read_block(1000, 1100).toarray(), read(atlas).X[1000:1100].toarray())
    assert space.kind == "counts"


def test_types_are_uneven_and_marked(atlas: Path) -> None:
    adata = read(atlas)
    sizes = adata.obs["cell_type"].value_counts(sort=False).to_numpy()
    assert sizes[0] > 2 * sizes[-1] > 0
    for kind in adata.obs["cell_type"].cat.categories:
        markers = adata.X[:, (adata.var["marker_of"] == kind).to_numpy()]
        inside = (adata.obs["cell_type"] == kind).to_numpy()
        assert markers[inside].mean() > 2 * markers[~inside].mean()


def test_the_types_can_be_found_again(atlas: Path) -> None:
    adata = read(atlas)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10)
    found = KMeans(5, n_init=5, random_state=0).fit_predict(adata.obsm["X_pca"])
    assert adjusted_rand_score(adata.obs["cell_type"], found) > 0.8  # 12 markers a type, 300 counts a cell


def test_an_atlas_is_as_dense_as_it_shall_be(tmp_path: Path) -> None:
    thin, thick = (
        read(simulate(tmp_path / f"{counts}.zarr", 1000, n_genes=300, counts_per_gene=counts)) for counts in (0.1, 1.0)
    )
    assert 7 < thick.X.sum() / thin.X.sum() < 14  # ten times, but for the dropout, which takes small counts


def test_depth_differs_between_cells(atlas: Path) -> None:
    depth = np.asarray(read(atlas).X.sum(axis=1)).ravel()
    assert 0.3 < np.log(depth).std() < 0.6
    assert 0.6 * 300 < np.median(depth) < 300  # 0.75 counts a gene, less what is lost


def test_counts_follow_the_distribution_that_is_promised() -> None:
    model = CellModel(np.array([[0.9, 0.1]]), np.array([-1, -1]), np.ones(1))
    means, zeros, squares = np.zeros(2), np.zeros(2), np.zeros(2)
    expected_zero, expected_mean, expected_square = np.zeros(2), np.zeros(2), np.zeros(2)
    n = 0
    for block in range(60):
        cells = draw_cells(model, 1024, 5, block)
        counts = np.zeros((1024, 2))
        for cell in range(1024):
            part = slice(cells.indptr[cell], cells.indptr[cell + 1])
            counts[cell, cells.indices[part]] = cells.data[part]
        means, zeros, squares = means + counts.sum(0), zeros + (counts == 0).sum(0), squares + (counts**2).sum(0)
        from scamac_scale.randomness import numpy_generator

        rng = numpy_generator(5, "simulated cells", block)
        rng.choice(1, size=1024, p=np.ones(1))
        mean = rng.lognormal(np.log(1.5), 0.4, 1024)[:, None] * model.profile
        none = (SHAPE / (SHAPE + mean)) ** SHAPE
        kept = 1 - DROPOUT / (1 + mean)  # of what is above zero
        expected_zero += (1 - (1 - none) * kept).sum(0)
        expected_mean += (mean * kept).sum(0)
        expected_square += ((mean + mean**2 * (1 + 1 / SHAPE)) * kept).sum(0)
        n += 1024
    np.testing.assert_allclose(zeros / n, expected_zero / n, atol=0.008)  # four standard errors
    np.testing.assert_allclose(means / n, expected_mean / n, rtol=0.04)
    np.testing.assert_allclose(squares / n, expected_square / n, rtol=0.08)


@pytest.mark.slow
def test_the_seed_decides_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"n_genes": 50, "n_types": 3}
    first = read(simulate(tmp_path / "a.zarr", 1500, seed=1, **sizes))
    monkeypatch.setattr(writing, "CHUNK_CELLS", 64)
    again = read(simulate(tmp_path / "b.zarr", 1500, seed=1, **sizes))
    longer = read(simulate(tmp_path / "c.zarr", 2100, seed=1, **sizes))
    other = read(simulate(tmp_path / "d.zarr", 1500, seed=2, **sizes))
    for same in (again, longer[:1500]):
        assert (same.X != first.X).nnz == 0
        assert (same.obs["cell_type"] == first.obs["cell_type"]).all()
        assert (same.obs_names == first.obs_names).all()
    assert (other.X != first.X).nnz > 0


def test_memory_holds_a_chunk_and_not_the_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    monkeypatch.setattr(writing, "CHUNK_CELLS", 1)
    root: Any = zarr.open_group(str(simulate(tmp_path / "a.zarr", 9000, n_genes=30, n_types=2)), mode="r")
    assert root["X/data"].nchunks > 50
    assert root["X/indptr"].shape == (9001,)
    assert root["X/indptr"][-1] == root["X/data"].shape[0] == root["X/indices"].shape[0]


@pytest.mark.parametrize("name", ["n_cells", "n_genes", "n_types", "counts_per_gene"])
def test_sizes_must_be_positive(name: str, tmp_path: Path) -> None:
    sizes = {"n_cells": 10, name: 0}
    with pytest.raises(ConfigError, match=f"simulate: {name}=0; it must be (at least 1|positive)"):
        simulate(tmp_path / "a.zarr", **sizes)
    assert list(tmp_path.iterdir()) == []


def test_more_types_than_genes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_types=4 for n_genes=3"):
        simulate(tmp_path / "a.zarr", 10, n_genes=3, n_types=4)


def test_an_existing_atlas_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = simulate(tmp_path / "a.zarr", 5, n_genes=8, n_types=2)
    with pytest.raises(OutputError, match="is already there"):
        simulate(out, 6, n_genes=8, n_types=2)
    assert read(out).n_obs == 5
    assert read(simulate(out, 6, n_genes=8, n_types=2, overwrite=True)).n_obs == 6
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    draw = drawn.draw_cells

    def stop(model: CellModel, n_cells: int, seed: int, block: int) -> CellRun:
        if block == 1:
            raise KeyboardInterrupt
        return draw(model, n_cells, seed, block)

    monkeypatch.setattr(drawn, "draw_cells", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a.zarr", 3000, n_genes=8, n_types=2)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="simulate: seed=-1; it must not be negative"):
        simulate(tmp_path / "a.zarr", 10, seed=-1)
    assert list(tmp_path.iterdir()) == []
