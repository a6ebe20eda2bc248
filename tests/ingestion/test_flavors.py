"""Every flavor chooses the genes that scanpy chooses, with and without technical batches, wherever blocks are cut."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import ConfigError, InputError, MissingExtraError
from scamac_scale.ingestion import resume
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.flavors import sums
from scamac_scale.ingestion.flavors.cell_ranger import mad_table
from scamac_scale.ingestion.flavors.choose import FLAVORS
from scamac_scale.ingestion.flavors.pearson_residuals import THETA, as_if_zeros
from scamac_scale.ingestion.flavors.seurat_v3 import expected_spread
from scamac_scale.ingestion.flavors.sums import Moments
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import RawMatrix
from scamac_scale.ingestion.statistics import measure
from scamac_scale.inspection import inspect
from scamac_scale.store.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Generator

    from scamac_scale.ingestion.engine.blocks import BlockFunction

OTHERS = [name for name in FLAVORS if name != "seurat"]
OF_COUNTS = [name for name, flavor in FLAVORS.items() if flavor.needs_counts]
COLUMNS = {
    "seurat": ["means", "dispersions", "dispersions_norm"],
    "cell_ranger": ["means", "dispersions", "dispersions_norm"],
    "seurat_v3": ["means", "variances", "variances_norm", "highly_variable_rank"],
    "seurat_v3_paper": ["means", "variances", "variances_norm", "highly_variable_rank"],
    "pearson_residuals": ["means", "variances", "residual_variances", "highly_variable_rank"],
}
CONFIG = IngestConfig(n_genes=150, block_cells=60, min_cells=2)
DATA = os.environ.get("SCAMAC_DATA")


def build_atlas(n_cells: int = 400, n_genes: int = 500) -> ad.AnnData:
    """Counts of four types at depths that differ tenfold, of three donors; donor c lacks some genes, and outliers are clipped."""
    rng = np.random.default_rng(3)
    types = rng.gamma(0.3, 2.0, (4, n_genes)) * rng.gamma(0.5, 2.0, n_genes)
    donor = rng.choice(list("abc"), n_cells, p=[0.5, 0.3, 0.2])
    values = rng.poisson(types[rng.integers(0, 4, n_cells)] * rng.lognormal(0, 0.7, (n_cells, 1)))
    values[rng.integers(0, n_cells, 40), rng.integers(0, n_genes, 40)] += 300
    values[donor == "c", :25] = 0
    values[:, -20:] = values[:, :20]  # twins, which tie
    values[values.sum(1) == 0, 5] = 1
    obs = pd.DataFrame({"donor": donor, "chip": rng.integers(0, 2, n_cells)}, [f"c{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(values.astype(np.float32)), obs, var)


@pytest.fixture(scope="module")
def _atlas() -> ad.AnnData:
    return build_atlas()


@pytest.fixture
def atlas(_atlas: ad.AnnData) -> ad.AnnData:
    return _atlas.copy()


def theirs(adata: ad.AnnData, flavor: str, n_genes: int, key: str | None, min_cells: int) -> pd.DataFrame:
    """What scanpy says."""
    adata = adata.copy()
    sc.pp.filter_genes(adata, min_cells=min_cells)
    options: dict[str, Any] = {"n_top_genes": n_genes, "batch_key": key, "inplace": False}
    if key:
        adata.obs[key] = adata.obs[key].astype(str).astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if flavor == "pearson_residuals":
            return sc.experimental.pp.highly_variable_genes(adata, **options)
        if flavor in ("seurat", "cell_ranger"):
            sc.pp.normalize_total(adata)
            sc.pp.log1p(adata)
        return sc.pp.highly_variable_genes(adata, flavor=flavor, **options)


def assert_as_scanpy(adata: ad.AnnData, flavor: str, key: str | None, config: IngestConfig, min_cells: int = 2) -> None:
    found = measure(open_raw(adata), replace(config, flavor=flavor, batch_key=key))
    table = theirs(adata, flavor, config.n_genes, key, min_cells)
    chosen = table[table["highly_variable"]]
    assert found.gene_space.chosen == tuple(chosen.index)
    columns = COLUMNS[flavor] + (["highly_variable_nbatches"] if key else [])
    assert list(found.var.columns) == ["n_cells", *columns]
    for column in columns:
        np.testing.assert_allclose(
            found.var[column], chosen[column], rtol=1e-6 if flavor in OF_COUNTS else 2e-4, atol=1e-6
        )


# --- the genes of scanpy


@pytest.mark.parametrize("key", [None, "donor", "chip"])
@pytest.mark.parametrize("flavor", OTHERS)
@pytest.mark.parametrize("n_genes", [20, 150])
def test_genes_and_statistics_are_those_of_scanpy(
    atlas: ad.AnnData, flavor: str, key: str | None, n_genes: int
) -> None:
    assert_as_scanpy(atlas, flavor, key, replace(CONFIG, n_genes=n_genes))


@pytest.mark.parametrize("flavor", OTHERS)
@pytest.mark.parametrize("kind", ["dense", "float64", "int64"])
def test_other_types_of_values_give_the_same(atlas: ad.AnnData, flavor: str, kind: str) -> None:
    expected = measure(open_raw(atlas), replace(CONFIG, flavor=flavor))
    atlas.X = atlas.X.toarray() if kind == "dense" else atlas.X.astype(kind)
    found = measure(open_raw(atlas), replace(CONFIG, flavor=flavor))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var, rtol=1e-12)


@pytest.mark.parametrize("key", [None, "donor"])
@pytest.mark.parametrize("flavor", OTHERS)
@pytest.mark.parametrize("block_cells", [7, 10_000])
def test_the_block_size_changes_nothing(atlas: ad.AnnData, flavor: str, key: str | None, block_cells: int) -> None:
    config = replace(CONFIG, flavor=flavor, batch_key=key)
    expected, found = (measure(open_raw(atlas), replace(config, block_cells=size)) for size in (60, block_cells))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var, check_exact=True)


@pytest.mark.parametrize("flavor", OTHERS)
def test_workers_elsewhere_would_sum_the_same(atlas: ad.AnnData, flavor: str) -> None:
    """What a pass is told and gives goes through pickle, as it does to the workers of a cluster."""

    class Elsewhere(LocalEngine):
        def map(
            self, raw: RawMatrix, function: BlockFunction, common: Any, label: str, first: int = 0
        ) -> Generator[tuple[int, Any], None, None]:
            there, told = pickle.loads(pickle.dumps((function, common)))
            for start, result in super().map(raw, there, told, label, first):
                yield start, pickle.loads(pickle.dumps(result))

    config = replace(CONFIG, flavor=flavor, batch_key="donor")
    with Elsewhere(60, threads=3) as engine:
        found = measure(open_raw(atlas), config, engine=engine)
    expected = measure(open_raw(atlas), config)
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var, check_exact=True)


@pytest.mark.parametrize("flavor", OTHERS)
def test_one_batch_of_all_cells_has_the_statistics_of_no_batches(atlas: ad.AnnData, flavor: str) -> None:
    atlas.obs["donor"] = "a"
    found, expected = (
        measure(open_raw(atlas), replace(CONFIG, flavor=flavor, batch_key=key)) for key in ("donor", None)
    )
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var.drop(columns="highly_variable_nbatches"), expected.var)


@pytest.mark.parametrize("flavor", OTHERS)
def test_more_genes_than_there_are_takes_all(atlas: ad.AnnData, flavor: str) -> None:
    found = measure(open_raw(atlas), replace(CONFIG, flavor=flavor, n_genes=5000))
    assert len(found.gene_space.chosen) >= 0.95 * len(found.gene_space.filtered)  # cell_ranger knows nothing of some


def test_logged_values_are_taken_as_they_are_by_cell_ranger(atlas: ad.AnnData) -> None:
    expected = measure(open_raw(atlas), replace(CONFIG, flavor="cell_ranger")).gene_space
    sc.pp.filter_genes(atlas, min_cells=2)
    sc.pp.normalize_total(atlas)
    sc.pp.log1p(atlas)
    found = measure(open_raw(atlas), replace(CONFIG, flavor="cell_ranger")).gene_space
    assert (found.kind, found.chosen) == ("log", expected.chosen)


SETS = [("baron_mouse1_822", None), ("marques2618", "batch")]


@pytest.mark.skipif(not DATA, reason="SCAMAC_DATA names no folder of real data")
@pytest.mark.parametrize("flavor", OTHERS)
@pytest.mark.parametrize(("name", "key"), SETS)
@pytest.mark.slow
def test_real_sets_give_the_genes_of_scanpy(name: str, key: str | None, flavor: str) -> None:
    path = Path(DATA or "") / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{name} is not in SCAMAC_DATA")
    adata = ad.read_h5ad(path)
    needed = math.ceil(round(0.05 * adata.n_obs, 6))
    assert_as_scanpy(adata, flavor, key, IngestConfig(n_genes=2000, block_cells=1000), needed)


# --- equations against slow references


def test_residuals_of_zeros_are_summed_over_distinct_totals() -> None:
    rng = np.random.default_rng(0)
    cells, genes = rng.integers(0, 6, 300).astype(float), rng.integers(0, 5, 40).astype(float)
    total = genes.sum()
    mu = cells[:, None] * genes / total
    with np.errstate(invalid="ignore"):
        residuals = np.nan_to_num(-mu / np.sqrt(mu + mu**2 / THETA))
    for limit in (math.sqrt(300), 0.1):
        clipped = np.clip(residuals, -limit, limit)
        found = as_if_zeros(cells, genes, np.array([limit, total]))
        np.testing.assert_allclose(found, [clipped.sum(0), (clipped**2).sum(0)], rtol=1e-12)


def test_variances_of_residuals_are_those_of_all_residuals(atlas: ad.AnnData) -> None:
    found = measure(open_raw(atlas), replace(CONFIG, flavor="pearson_residuals", min_cells=0, n_genes=10**6))
    values = atlas.X.toarray().astype(np.float64)
    mu = values.sum(1, keepdims=True) * values.sum(0) / values.sum()
    with np.errstate(invalid="ignore"):
        residuals = np.nan_to_num((values - mu) / np.sqrt(mu + mu**2 / THETA))
    expected = np.clip(residuals, -20, 20).var(axis=0)  # of 400 cells
    np.testing.assert_allclose(found.var["residual_variances"], expected, rtol=1e-9, atol=1e-12)


def test_an_empty_cell_has_no_residuals(atlas: ad.AnnData) -> None:
    """scanpy divides by zero there."""
    values = atlas.X.toarray()
    values[7] = 0
    atlas.X = sparse.csr_matrix(values)
    found = measure(open_raw(atlas), replace(CONFIG, flavor="pearson_residuals"))
    assert np.isfinite(found.var["residual_variances"]).all()
    assert found.n_empty == 1


def test_equal_percentiles_are_one_edge() -> None:
    """scanpy fails there."""
    total = np.r_[np.full(60, 10.0), np.arange(1.0, 41.0)]
    squared = total**2 / 50 + np.linspace(1, 9, 100)
    table = mad_table(Moments(100, total, squared))
    assert np.isfinite(table["means"]).all()
    assert np.isfinite(table["dispersions_norm"]).sum() > 90


def test_sums_do_not_lose_what_rounding_takes() -> None:
    into = np.zeros((2, 1, 1))
    for value in (1e16, 1.0, 1.0, -1e16):
        sums.add_exactly(into, 0, 0, value)
    assert into.sum() == 2.0


# --- batches that have no say


@pytest.mark.parametrize("flavor", OF_COUNTS)
@pytest.mark.parametrize("case", ["one cell", "two equal cells"])
def test_a_batch_that_cannot_be_ranked_has_no_say(
    atlas: ad.AnnData, flavor: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    donor, values = atlas.obs["donor"].to_numpy(dtype=object), atlas.X.toarray()
    donor[7] = "odd"
    if case == "two equal cells":
        donor[8], values[8] = "odd", values[7]
    atlas.X, atlas.obs["donor"] = sparse.csr_matrix(values), donor
    found = measure(open_raw(atlas), replace(CONFIG, flavor=flavor, batch_key="donor"))
    assert "in 1 of 4 batches" in caplog.text
    assert "odd; they have no say in the choice of genes" in caplog.text
    rest = atlas[donor != "odd"].copy()
    genes = list(found.gene_space.filtered)
    table = theirs(rest[:, genes].copy(), flavor, 150, "donor", 0)
    assert set(found.gene_space.chosen) == set(table.index[table["highly_variable"]])


@pytest.mark.parametrize("flavor", OTHERS)
def test_where_no_batch_can_be_ranked_it_is_an_error(flavor: str) -> None:
    atlas = ad.AnnData(
        sparse.csr_matrix(np.ones((4, 50), np.float32)), pd.DataFrame({"donor": list("aabb")}, list("1234"))
    )
    with pytest.raises(InputError, match=r"no gene (varies between|can be chosen by seurat_v3)"):
        measure(open_raw(atlas), replace(CONFIG, flavor=flavor, batch_key="donor"))


@pytest.mark.parametrize("n_genes", [1, 2, 3, 9, 12])
def test_too_few_genes_for_a_local_regression_are_refused(n_genes: int) -> None:
    """The library crashes the interpreter where there are three genes or fewer."""
    values = np.random.default_rng(0).poisson(3, (40, n_genes)).astype(np.float32)
    with pytest.raises(InputError, match=r"no gene can be chosen by seurat_v3: .*; choose another ingest\.flavor"):
        measure(open_raw(ad.AnnData(sparse.csr_matrix(values))), replace(CONFIG, flavor="seurat_v3", kind="counts"))


def test_genes_of_the_same_mean_cannot_be_fitted() -> None:
    values = np.zeros((200, 400), np.float32)
    values[np.arange(400) // 2, np.arange(400)] = 1  # each gene in one cell
    with pytest.raises(InputError, match=r"the local regression of variances on means fails"):
        measure(
            open_raw(ad.AnnData(sparse.csr_matrix(values))),
            replace(CONFIG, flavor="seurat_v3", min_cells=1, kind="counts"),
        )


def test_genes_that_do_not_vary_are_expected_to_have_a_deviation_of_one(atlas: ad.AnnData) -> None:
    values = atlas.X.toarray()[:, :200].astype(float)
    values[:, 3] = 2
    spread = expected_spread(Moments(400, values.sum(0), (values**2).sum(0)))
    assert spread[3] == 1
    assert (spread > 0).all()


# --- what is refused


@pytest.mark.parametrize("flavor", OF_COUNTS)
@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("is_said", [False, True])
def test_values_that_are_no_counts_are_refused(atlas: ad.AnnData, flavor: str, kind: str, *, is_said: bool) -> None:
    sc.pp.normalize_total(atlas)
    if kind == "log":
        sc.pp.log1p(atlas)
    with pytest.raises(
        InputError,
        match=rf"X holds {kind} values, and ingest\.flavor={flavor} needs counts; .* values: seurat and cell_ranger",
    ):
        measure(open_raw(atlas), replace(CONFIG, flavor=flavor, kind=kind if is_said else "auto"))


@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat_v3_paper"])
def test_without_scikit_misc_the_extra_is_named_before_any_pass(
    atlas: ad.AnnData, monkeypatch: pytest.MonkeyPatch, flavor: str
) -> None:
    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    monkeypatch.setattr(RawMatrix, "read_block", None)
    with pytest.raises(
        MissingExtraError, match=r'pip install "scamac-scale\[loess\]", or choose seurat, cell_ranger or'
    ):
        measure(open_raw(atlas), replace(CONFIG, flavor=flavor))


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger", "pearson_residuals"])
def test_other_flavors_do_not_need_scikit_misc(atlas: ad.AnnData, monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    assert len(measure(open_raw(atlas), replace(CONFIG, flavor=flavor)).gene_space.chosen) >= 150


# --- streaming, notes and stores


@pytest.mark.parametrize(
    ("flavor", "n_passes"), [("seurat", 2), ("cell_ranger", 3), ("seurat_v3", 4), ("pearson_residuals", 4)]
)
def test_the_cells_are_read_once_for_each_pass(
    atlas: ad.AnnData, monkeypatch: pytest.MonkeyPatch, flavor: str, n_passes: int
) -> None:
    asked: list[int] = []
    read = RawMatrix.read_block

    def watched(self: RawMatrix, start: int, stop: int) -> sparse.csr_matrix:
        asked.append(start)
        return read(self, start, stop)

    monkeypatch.setattr(RawMatrix, "read_block", watched)
    measure(open_raw(atlas), replace(CONFIG, flavor=flavor, block_cells=200))
    assert sorted(asked) == sorted([0, 200] * n_passes)


@pytest.mark.parametrize("flavor", OTHERS)
@pytest.mark.slow
def test_what_was_chosen_comes_back_from_the_notes_and_stands_in_the_store(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str
) -> None:
    config = replace(CONFIG, flavor=flavor, batch_key="donor")
    stored = ad.read_zarr(ingest(atlas, tmp_path / "a.zarr", config))
    with open_raw(atlas) as raw:
        expected = measure(raw, config)
        journal = Journal(tmp_path, tmp_path / "b.zarr")
        resume.measured(raw, config, journal, LocalEngine(60))
        monkeypatch.setattr(LocalEngine, "map", None)
        found = resume.measured(raw, config, journal, LocalEngine(60))
    pd.testing.assert_frame_equal(found.var, expected.var, check_exact=True)
    np.testing.assert_array_equal(stored.var[COLUMNS[flavor]], expected.var[COLUMNS[flavor]])
    assert list(stored.var_names) == list(expected.gene_space.chosen)
    told = inspect(tmp_path / "a.zarr")
    assert (told["flavor"], told["min_cells"]) == (flavor, 2)


def test_settings_at_their_defaults_are_not_written(atlas: ad.AnnData, tmp_path: Path) -> None:
    told = inspect(ingest(atlas, tmp_path / "a.zarr", IngestConfig(n_genes=20)))
    assert not {"flavor", "genes", "min_cells"} & {*told, *told["ingest"]}
    assert "flavor" not in json.dumps(IngestConfig().to_plain())


# --- the filter by a number of cells


def test_a_gene_is_kept_if_enough_cells_express_it(atlas: ad.AnnData) -> None:
    n_expressing = np.asarray((atlas.X > 0).sum(0)).ravel()
    for needed in (0, 1, 3, 40):
        found = measure(open_raw(atlas), replace(CONFIG, min_cells=needed)).gene_space.filtered
        assert found == tuple(atlas.var_names[n_expressing >= needed])


def test_no_gene_in_enough_cells_names_the_setting(atlas: ad.AnnData) -> None:
    with pytest.raises(InputError, match=r"in at least 401 of 400 cells \(ingest\.min_cells=401\)"):
        measure(open_raw(atlas), replace(CONFIG, min_cells=401))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_cells": 3, "min_cell_fraction": 0.1}, "are two filters of genes; give one of them"),
        ({"min_cells": -1}, "must not be negative"),
        (
            {"genes": "a.txt", "flavor": "cell_ranger"},
            "names the genes, and ingest.flavor=cell_ranger would choose others",
        ),
        ({"genes": "var:"}, "names no genes"),
        ({"genes": " "}, "names no genes"),
    ],
)
def test_settings_at_odds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IngestConfig(**settings)
