"""Technical batches: their columns are checked before any pass, kept as categories, and genes are ranked within each."""

from __future__ import annotations

import logging
import math
import os
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

from scamac_scale.cells.tech_batches import find_tech_batches
from scamac_scale.config import IngestConfig
from scamac_scale.errors import ConfigError, InputError, ResumeError
from scamac_scale.ingestion import resume
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import RawMatrix
from scamac_scale.ingestion.statistics import measure
from scamac_scale.store.journal import Journal
from scamac_scale.store.reader import StoreReader
from tests.support.failing import contents

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIG = IngestConfig(n_genes=60, block_cells=50, batch_key="donor")
REAL = [("mix_cel_4batch", "batch"), ("kang_scgen1975_6998g", "condition"), ("marques2618", "batch")]


@pytest.fixture
def atlas(tiny_adata: ad.AnnData) -> ad.AnnData:
    """300 cells of three donors on two chips; no cell of donor c expresses genes 100 to 129, and the donors differ in others."""
    rng = np.random.default_rng(5)
    donor, chip = rng.choice(list("abc"), 300, p=[0.5, 0.3, 0.2]), rng.integers(0, 2, 300)
    values = tiny_adata.X.toarray()
    values[donor == "a", 130:150] *= rng.integers(1, 6, (int((donor == "a").sum()), 20))
    values[donor == "c", 100:130] = 0
    tiny_adata.X = sparse.csr_matrix(values)
    tiny_adata.obs["donor"], tiny_adata.obs["chip"] = donor, chip
    return tiny_adata


def prepared(adata: ad.AnnData, key: str, *, is_log: bool = False) -> ad.AnnData:
    """What scanpy ranks the genes of: filtered, normalised and logged, with the joint levels of `key` as ``batch``."""
    adata = adata.copy()
    sc.pp.filter_genes(adata, min_cells=math.ceil(0.05 * adata.n_obs))
    if not is_log:
        adata.X = adata.X.astype(np.float64)  # the rounding of float32 ranks genes that do not vary among ten cells
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some cells have zero counts")
            sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
    adata.obs["batch"] = pd.Categorical(adata.obs[key.split(",")].astype(str).agg(" x ".join, axis=1))
    return adata


def scanpy_table(adata: ad.AnnData, n_genes: int) -> pd.DataFrame:
    return sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, batch_key="batch", flavor="seurat", inplace=False)


def assert_genes_of_scanpy(adata: ad.AnnData, key: str, n_genes: int, *, is_log: bool = False) -> None:
    found = measure(open_raw(adata), IngestConfig(n_genes=n_genes, batch_key=key, block_cells=77))
    table = scanpy_table(prepared(adata, key, is_log=is_log), n_genes)
    theirs = table[table["highly_variable"]]
    assert found.gene_space.chosen == tuple(theirs.index)
    for column in ("means", "dispersions", "dispersions_norm"):  # scanpy computes in float32
        np.testing.assert_allclose(found.var[column], theirs[column], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.var["highly_variable_nbatches"], theirs["highly_variable_nbatches"])


# --- the genes of scanpy


@pytest.mark.parametrize("n_genes", [10, 60, 100, 185, 1000])
@pytest.mark.parametrize("key", ["donor", "chip", "donor,chip"])
def test_genes_and_statistics_are_those_of_scanpy(atlas: ad.AnnData, key: str, n_genes: int) -> None:
    assert_genes_of_scanpy(atlas, key, n_genes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_small_batches_give_the_genes_of_scanpy_but_for_rounding(tiny_adata: ad.AnnData, seed: int) -> None:
    tiny_adata.obs["plate"] = np.random.default_rng(seed).integers(0, 30, 300)  # about ten cells each
    found = measure(open_raw(tiny_adata), IngestConfig(n_genes=50, batch_key="plate"))
    table = scanpy_table(prepared(tiny_adata, "plate"), 50)
    # in scanpy a gene that does not vary among ten cells, or varies as the others of its bin do, is ranked by what rounding leaves
    assert len(set(found.gene_space.chosen) & set(table.index[table["highly_variable"]])) >= 49


def test_logged_values_give_the_genes_of_scanpy(atlas: ad.AnnData) -> None:
    sc.pp.normalize_total(atlas)
    sc.pp.log1p(atlas)
    assert_genes_of_scanpy(atlas, "donor", 60, is_log=True)


def test_equal_genes_are_taken_in_the_order_of_their_names(atlas: ad.AnnData) -> None:
    values = atlas.X.toarray()
    names = [f"{kind}{i}" for kind, i in zip(["b"] * 200 + ["a"] * 200, [*range(200)] * 2, strict=True)]
    twins = ad.AnnData(sparse.csr_matrix(np.hstack([values, values])), atlas.obs, pd.DataFrame(index=names))
    assert_genes_of_scanpy(twins, "donor", 31)
    chosen = measure(open_raw(twins), replace(CONFIG, n_genes=31)).gene_space.chosen
    assert len(chosen) == 31  # where all cells are one batch, the twin would be the 32nd
    odd = [name for name in chosen if f"{'ab'[name[0] == 'a']}{name[1:]}" not in chosen]
    assert [name[0] for name in odd] == ["a"]


@pytest.mark.skipif("SCAMAC_DATA" not in os.environ, reason="SCAMAC_DATA names no folder of real data")
@pytest.mark.parametrize("n_genes", [500, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "key"), [*REAL, ("mix_cel_4batch", "batch,cell_type")])
@pytest.mark.slow
def test_real_sets_give_the_genes_of_scanpy(name: str, key: str, n_genes: int) -> None:
    path = Path(os.environ["SCAMAC_DATA"]) / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{name} is not in SCAMAC_DATA")
    assert_genes_of_scanpy(ad.read_h5ad(path), key, n_genes)


# --- batches that have no say


@pytest.mark.parametrize("case", ["one cell", "the same cell twice", "empty cells"])
def test_a_batch_in_which_no_gene_varies_has_no_say(
    atlas: ad.AnnData, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """scanpy ranks the rounding of its float32 squares there, or fails."""
    donor = atlas.obs["donor"].to_numpy(dtype=object)
    donor[7:9] = "odd"
    if case == "one cell":
        donor[8] = "a"
    else:
        values = atlas.X.toarray()
        values[8] = 3 * values[7]
        values[7:9] *= case != "empty cells"
        atlas.X = sparse.csr_matrix(values)
    atlas.obs["donor"] = donor
    with caplog.at_level(logging.INFO):
        found = measure(open_raw(atlas), CONFIG)
    rest = prepared(atlas, "donor")
    rest = rest[(rest.obs["donor"] != "odd").to_numpy()].copy()
    rest.obs["batch"] = rest.obs["batch"].cat.remove_unused_categories()
    table = scanpy_table(rest, 60)
    assert found.gene_space.chosen == tuple(table.index[table["highly_variable"]])
    assert "genes are ranked in each of 4 batches (donor)" in caplog.text
    assert "in 1 of 4 batches no gene varies (one cell, say): odd; they have no say" in caplog.text


def test_no_batch_in_which_a_gene_varies_is_an_error() -> None:
    atlas = ad.AnnData(
        sparse.csr_matrix(np.ones((4, 5), np.float32)), pd.DataFrame({"donor": list("aabb")}, list("1234"))
    )
    with pytest.raises(InputError, match="no gene varies between the cells of any technical batch"):
        measure(open_raw(atlas), CONFIG)


def test_many_batches_without_a_say_are_not_all_named(atlas: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    atlas.obs["donor"] = [f"d{min(i, 9)}" for i in range(300)]
    measure(open_raw(atlas), CONFIG)
    assert "in 9 of 10 batches no gene varies (one cell, say): d0, d1, d2, d3, d4, ...; they have" in caplog.text


# --- streaming


@pytest.mark.parametrize("block_cells", [1, 7, 300, 10_000])
def test_the_block_size_changes_nothing(atlas: ad.AnnData, block_cells: int) -> None:
    expected = measure(open_raw(atlas), CONFIG)
    found = measure(open_raw(atlas), replace(CONFIG, block_cells=block_cells))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var, check_exact=True)


def test_the_cells_are_read_twice_as_without_batches(atlas: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = RawMatrix.read_block

    def watched(self: RawMatrix, start: int, stop: int) -> sparse.csr_matrix:
        asked.append(start)
        return read(self, start, stop)

    monkeypatch.setattr(RawMatrix, "read_block", watched)
    measure(open_raw(atlas), replace(CONFIG, block_cells=100))
    assert asked == [0, 100, 200] * 2


def test_one_batch_of_all_cells_has_the_statistics_of_no_batches(atlas: ad.AnnData) -> None:
    atlas.obs["donor"] = "a"
    found, expected = (measure(open_raw(atlas), replace(CONFIG, batch_key=key)) for key in ("donor", None))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var.drop(columns="highly_variable_nbatches"), expected.var)


# --- notes


def test_what_the_passes_found_comes_back_from_the_notes_exactly(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_raw(atlas) as raw:
        expected = measure(raw, CONFIG)
        journal = Journal(tmp_path, tmp_path / "a.zarr")
        resume.measured(raw, CONFIG, journal, LocalEngine(CONFIG.block_cells))
        monkeypatch.setattr(LocalEngine, "map", None)
        found = resume.measured(raw, CONFIG, journal, LocalEngine(CONFIG.block_cells))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var, check_exact=True)


def test_an_interrupted_ingest_goes_on_with_its_batches_only(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas.write_h5ad(tmp_path / "x.h5ad")
    expected = contents(ingest(tmp_path / "x.h5ad", tmp_path / "b.zarr", CONFIG))
    with monkeypatch.context() as patch:
        patch.setattr("scamac_scale.ingestion.pipeline.fill_store", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", CONFIG)
    for key in ("chip", None):
        with pytest.raises(ResumeError, match=rf"config\.batch_key={key!r} \(it was 'donor'\)"):
            ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", replace(CONFIG, batch_key=key), resume=True)
    assert contents(ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", CONFIG, resume=True)) == expected
    with pytest.raises(ResumeError, match=r"is complete, and of another ingest: config\.batch_key='chip'"):
        ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", replace(CONFIG, batch_key="chip"), resume=True)


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# --- the store


COLUMNS: dict[str, Any] = {
    "integers": np.arange(300) % 12,
    "bools": np.arange(300) % 2 == 0,
    "text": [f"d{i % 7}" for i in range(300)],
    "category": pd.Categorical([f"d{i % 7}" for i in range(300)], categories=[f"d{i}" for i in range(9)][::-1]),
    "category of integers": pd.Categorical(np.arange(300) % 3 + 10),
    "whole floats": (np.arange(300) % 4).astype(np.float64),
    "float objects": np.array([float(i % 2) for i in range(300)], object),
    "times": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"] * 100),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.slow
def test_a_column_is_kept_as_categories_and_has_the_same_levels(
    tiny_adata: ad.AnnData, tmp_path: Path, name: str
) -> None:
    tiny_adata.obs[name] = COLUMNS[name]
    with StoreReader(ingest(tiny_adata, tmp_path / "a.zarr", replace(CONFIG, batch_key=name))) as store:
        obs, rows = store.obs, store.source_rows
        assert store.batch_key == name
    assert isinstance(obs[name].dtype, pd.CategoricalDtype)
    expected, found = (find_tech_batches(frame, (name,)) for frame in (tiny_adata.obs, obs))
    assert found.names == expected.names
    np.testing.assert_array_equal(found.codes, expected.codes[rows])
    if name not in ("times", "float objects"):  # these are text in the store
        assert obs[name].tolist() == tiny_adata.obs[name].iloc[rows].tolist()
    assert list(obs) == [*tiny_adata.obs]


def test_a_store_without_batches_says_nothing_of_them(atlas: ad.AnnData, tmp_path: Path) -> None:
    with StoreReader(ingest(atlas, tmp_path / "a.zarr", replace(CONFIG, batch_key=None))) as store:
        assert store.batch_key is None
        assert "batch_key" not in store.config  # as in the stores of earlier programs
        assert store.obs["chip"].dtype == np.int64
        assert "highly_variable_nbatches" not in ad.read_zarr(store.path).var


def test_the_store_tells_in_how_many_batches_a_gene_varies(atlas: ad.AnnData, tmp_path: Path) -> None:
    stored = ad.read_zarr(ingest(atlas, tmp_path / "a.zarr", CONFIG))
    counts: NDArray[np.int64] = stored.var["highly_variable_nbatches"].to_numpy()
    assert counts.min() >= 0
    assert counts.max() == 3
    assert stored.shape == (300, 60)


# --- what is refused, before any pass


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("donr", r"obs has no column 'donr' \(batch key\); it has cell_type, depth, donor, chip, .*\."),
        ("donor,chp", r"obs has no column 'chp'"),
        ("gaps", r"obs: 2 of 300 cells have no value in the batch column 'gaps', the first is 'cell003'"),
        ("depth", r"the batch column 'depth' holds measurements"),
        ("barcode", r"every cell has a value of its own in the batch column 'barcode'"),
        ("donor,donor", r"names donor more than once"),
        ("a/b", r"a store cannot keep the batch column 'a/b' under this name; rename it"),
        ("scamac_row", r"a store cannot keep the batch column 'scamac_row'"),
    ],
)
@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.slow
def test_a_wrong_key_is_refused_before_any_pass_and_nothing_is_written(
    atlas: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, message: str, is_resumed: bool
) -> None:
    atlas.obs["gaps"] = [None if i in (3, 5) else "x" for i in range(300)]
    atlas.obs["barcode"] = [f"b{i}" for i in range(300)]
    atlas.obs["scamac_row"] = 1
    atlas.write_h5ad(tmp_path / "x.h5ad")
    if key == "a/b":  # a file cannot have it
        atlas.obs["a/b"] = "x"
        is_resumed = False
    monkeypatch.setattr(RawMatrix, "read_block", None)
    with pytest.raises(InputError, match=message):
        ingest(
            atlas if key == "a/b" else tmp_path / "x.h5ad",
            tmp_path / "a.zarr",
            replace(CONFIG, batch_key=key),
            resume=is_resumed,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


@pytest.mark.parametrize("key", ["", " ", ",", " , "])
def test_a_key_that_names_nothing_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"names no column of obs; null has no batches"):
        IngestConfig(batch_key=key)
