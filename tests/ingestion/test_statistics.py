from __future__ import annotations

import dataclasses
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion import statistics
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.flavors.filter import min_cells
from scamac_scale.ingestion.flavors.over_batches import variable_genes
from scamac_scale.ingestion.flavors.seurat import dispersion_table
from scamac_scale.ingestion.flavors.sums import Moments
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.raw import RawMatrix
from scamac_scale.ingestion.statistics import Census, measure
from scamac_scale.progress import show_progress

DATA = os.environ.get("SCAMAC_DATA")
REAL = sorted(Path(DATA).glob("*.h5ad")) if DATA else []


def config(**changes: Any) -> IngestConfig:
    return IngestConfig(**{"n_genes": 50, "block_cells": 128, **changes})


def of_anndata(values: np.ndarray[Any, Any]) -> ad.AnnData:
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(values.shape[0])])
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(values.shape[1])])
    return ad.AnnData(sparse.csr_matrix(values.astype(np.float32)), obs=cells, var=genes)


def of(values: np.ndarray[Any, Any]) -> RawMatrix:
    return open_raw(of_anndata(values))


def scanpy_genes(adata: ad.AnnData, n_genes: int, *, is_log: bool = False) -> tuple[ad.AnnData, pd.DataFrame]:
    sc.pp.filter_genes(adata, min_cells=math.ceil(0.05 * adata.n_obs))
    if not is_log:
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
    n_top = min(n_genes, adata.n_vars)
    return adata, sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat", inplace=False)


# --- the genes of scanpy


@pytest.mark.parametrize("n_genes", [20, 50, 100, 1000])
def test_genes_and_statistics_are_those_of_scanpy(tiny_adata: ad.AnnData, n_genes: int) -> None:
    found = measure(open_raw(tiny_adata), config(n_genes=n_genes))
    filtered, table = scanpy_genes(tiny_adata.copy(), n_genes)
    assert found.gene_space.kind == "counts"
    assert found.gene_space.filtered == tuple(filtered.var_names)
    assert found.gene_space.chosen == tuple(filtered.var_names[table["highly_variable"]])
    assert found.gene_space.target_sum == np.median(np.asarray(tiny_adata[:, filtered.var_names].X.sum(1)))
    theirs = table[table["highly_variable"]]
    assert list(found.var.columns) == ["n_cells", "means", "dispersions", "dispersions_norm"]
    for column in ("means", "dispersions", "dispersions_norm"):  # scanpy computes in float32
        np.testing.assert_allclose(found.var[column], theirs[column], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.var["n_cells"], filtered.var["n_cells"][table["highly_variable"]])


@pytest.mark.parametrize("n_genes", [2000, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "path",
    [path if at % 5 == 0 else pytest.param(path, marks=pytest.mark.slow) for at, path in enumerate(REAL or [None])],
    ids=lambda path: path.stem if path else "none",
)
def test_real_sets_give_the_genes_of_scanpy(path: Path | None, n_genes: int) -> None:
    if path is None:
        pytest.skip("SCAMAC_DATA is not set: it names a folder of labelled real sets")
    with open_raw(path) as raw:
        found = measure(raw, IngestConfig(n_genes=n_genes, block_cells=1000))
    filtered, table = scanpy_genes(ad.read_h5ad(path), n_genes)
    assert found.gene_space.kind == ("linear" if "rpkm" in path.stem else "counts")
    assert found.gene_space.filtered == tuple(filtered.var_names)
    assert found.gene_space.chosen == tuple(filtered.var_names[table["highly_variable"]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logged_values_give_the_genes_of_scanpy(tiny_adata: ad.AnnData, dtype: type) -> None:
    sc.pp.normalize_total(tiny_adata)
    sc.pp.log1p(tiny_adata)
    tiny_adata.X = tiny_adata.X.astype(dtype)
    found = measure(open_raw(tiny_adata), config())
    filtered, table = scanpy_genes(tiny_adata.copy(), 50, is_log=True)
    assert (found.gene_space.kind, found.gene_space.target_sum) == ("log", None)
    assert found.gene_space.chosen == tuple(filtered.var_names[table["highly_variable"]])


def test_equal_genes_at_the_cut_are_all_taken(tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    values = tiny_adata.X.toarray()
    twins = np.hstack([values, values])  # each gene twice: the 31st varies as the 32nd
    with caplog.at_level(logging.INFO):
        found = measure(of(twins), config(n_genes=31))
    filtered, table = scanpy_genes(of_anndata(twins), 31)
    assert len(found.gene_space.chosen) == 32
    assert found.gene_space.chosen == tuple(filtered.var_names[table["highly_variable"]])
    assert "32 genes for 31 asked, for some vary equally" in caplog.text


def test_ties_are_not_broken() -> None:
    norm = np.array([3.0, 1.0, np.nan, 2.0, 1.0, 0.0])
    assert variable_genes(norm, 3).tolist() == [True, True, False, True, True, False]
    assert variable_genes(norm, 100).tolist() == [True, True, False, True, True, True]


def test_fewer_genes_than_asked_are_all_taken_and_said(
    tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = measure(open_raw(tiny_adata), config(n_genes=2000))
    assert found.gene_space.chosen == found.gene_space.filtered
    assert f"2000 genes asked for, {len(found.gene_space.chosen)} pass the filter and vary; all of them" in caplog.text


EQUAL = np.tile(np.arange(1.0, 41.0), (50, 1))
EQUAL[:25] = EQUAL[:25, ::-1]
RNG = np.random.default_rng(0)
CORNERS = {
    "fewer genes than bins": RNG.poisson(3, (40, 3)),
    "bins with one gene": RNG.poisson(np.geomspace(1, 1e4, 12), (40, 12)),
    "some genes do not vary": np.hstack([np.full((40, 5), 3), RNG.poisson(4, (40, 6))]),
    "one gene varies": np.column_stack([np.full(40, 5), RNG.poisson(5, 40)]),
}


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.parametrize("n_genes", [2, 1000])
@pytest.mark.parametrize("is_log", [False, True])
def test_corners_of_the_choice_are_as_in_scanpy(name: str, n_genes: int, *, is_log: bool) -> None:
    values = CORNERS[name].astype(float)
    adata = of_anndata(np.log1p(values) if is_log else values)
    found = measure(open_raw(adata), config(n_genes=n_genes, kind="log" if is_log else "counts"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filtered, table = scanpy_genes(adata.copy(), n_genes, is_log=is_log)
    assert found.gene_space.chosen == tuple(filtered.var_names[table["highly_variable"]])


@pytest.mark.parametrize("is_log", [False, True])
def test_means_that_are_equal_up_to_rounding_are_one_bin(*, is_log: bool) -> None:
    values = np.log1p(EQUAL) if is_log else EQUAL
    found = measure(of(values), config(n_genes=4, kind="log" if is_log else "counts"))
    assert found.gene_space.chosen == ("gene0", "gene1", "gene38", "gene39")
    np.testing.assert_allclose(found.var["means"], found.var["means"].iloc[0], rtol=1e-6)


def test_genes_that_vary_alike_are_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="no gene varies between cells more than others do"):
        measure(of(np.array([[1.0, 3.0], [3.0, 1.0]] * 10)), config())


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(1, 299), max_size=3), data=st.data())
def test_moments_of_any_split_add_up(cuts: list[int], data: st.DataObject) -> None:
    values = np.random.default_rng(3).gamma(1.0, 2.0, (300, 6))
    whole = Moments(300, values.sum(0), (values**2).sum(0))
    parts = np.split(values, sorted(cuts))
    added = Moments(0, np.zeros(6), np.zeros(6))
    for part in parts:
        added = added + Moments(len(part), part.sum(0), (part**2).sum(0))
    assert added.n_cells == 300
    np.testing.assert_allclose(added.total, whole.total, rtol=1e-12)
    np.testing.assert_allclose(dispersion_table(added), dispersion_table(whole), rtol=1e-9)


def test_moments_add_to_nothing_else() -> None:
    with pytest.raises(TypeError):
        _ = Moments(1, np.ones(1), np.ones(1)) + 1


@pytest.mark.parametrize("block_cells", [1, 7, 299, 300, 10_000])
def test_the_block_size_changes_nothing(tiny_adata: ad.AnnData, block_cells: int) -> None:
    expected = measure(open_raw(tiny_adata), config())
    found = measure(open_raw(tiny_adata), config(block_cells=block_cells))
    assert found.gene_space == expected.gene_space
    np.testing.assert_array_equal(found.totals, expected.totals)


def test_dense_values_give_the_same(tiny_adata: ad.AnnData) -> None:
    expected = measure(open_raw(tiny_adata), config())
    tiny_adata.X = tiny_adata.X.toarray()
    found = measure(open_raw(tiny_adata), config())
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var)


def test_what_the_store_needs_is_right(tiny_adata: ad.AnnData) -> None:
    found = measure(open_raw(tiny_adata), config())
    space = found.gene_space
    chosen = tiny_adata[:, list(space.chosen)].X
    assert found.n_stored == (chosen > 0).sum()
    assert found.largest == chosen.max()
    np.testing.assert_array_equal(found.totals, np.asarray(tiny_adata[:, list(space.filtered)].X.sum(1)).ravel())
    assert list(found.var.index) == list(space.chosen)


# --- cells and the filter


@pytest.mark.parametrize(
    ("fraction", "n_cells", "expected"),
    [(0.05, 140, 7), (0.05, 141, 8), (0.05, 100, 5), (0.0, 10, 0), (1.0, 10, 10), (0.1, 30, 3), (1e-5, 10, 1)],
)
def test_a_share_of_cells_is_the_decimal_number(fraction: float, n_cells: int, expected: int) -> None:
    assert min_cells(fraction, n_cells) == expected


@settings(max_examples=200)
@given(thousandths=st.integers(0, 1000), n_cells=st.integers(1, 10**9))
def test_a_share_of_cells_is_exact(thousandths: int, n_cells: int) -> None:
    assert min_cells(thousandths / 1000, n_cells) == -(-thousandths * n_cells // 1000)


def test_a_gene_in_exactly_five_percent_of_cells_passes() -> None:
    values = np.zeros((140, 4))
    values[:, 0] = np.arange(140) % 5
    values[:, 3] = np.arange(140) % 3
    values[:7, 1] = 1  # 7 of 140 cells are 5 %
    values[:6, 2] = 1
    space = measure(of(values), config(min_cell_fraction=0.05)).gene_space
    assert space.filtered == ("gene0", "gene1", "gene3")


def test_explicit_zeros_are_not_expression() -> None:
    matrix = sparse.csr_matrix(np.array([[1.0, 5.0, 2.0], [2.0, 5.0, 1.0], [3.0, 5.0, 1.0]]))
    matrix.data[matrix.indices == 1] = 0.0
    assert measure(open_raw(ad.AnnData(matrix)), config(min_cell_fraction=0.5)).gene_space.filtered == ("0", "2")


def test_an_empty_cell_stays_and_is_counted(tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    values = tiny_adata.X.toarray()
    values[[4, 200]] = 0
    found = measure(of(values), config())
    assert found.n_empty == 2
    assert len(found.totals) == 300
    assert found.totals[[4, 200]].tolist() == [0.0, 0.0]
    assert "2 of 300 cells have no counts in the genes that pass; they stay, as zeros" in caplog.text
    filled = np.delete(values, [4, 200], axis=0)[:, [int(g.removeprefix("gene")) for g in found.gene_space.filtered]]
    assert found.gene_space.target_sum == np.median(filled.sum(1))  # as scanpy says, and does for dense input


def test_the_target_may_be_given(tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    assert measure(open_raw(tiny_adata), config(target_sum=1e4)).gene_space.target_sum == 1e4
    tiny_adata.X.data = np.log1p(tiny_adata.X.data)
    assert measure(open_raw(tiny_adata), config(target_sum=1e4)).gene_space.target_sum is None
    assert "ingest.target_sum=10000 is not used, for the values are logged already" in caplog.text


def test_no_gene_left_says_how_far_it_is(tiny_adata: ad.AnnData) -> None:
    values = np.zeros((40, 3))
    values[0] = values[1, 1] = 1
    message = (
        r"no gene is left: none of 3 is above zero in at least 20 of 40 cells \(ingest\.min_cell_fraction=0\.5\), "
        r"the commonest is in 2; lower it, take the filtered matrix if most cells are empty droplets, or check X"
    )
    with pytest.raises(InputError, match=message):
        measure(of(values), config(min_cell_fraction=0.5))


def test_all_zeros_leave_no_cell() -> None:
    with pytest.raises(InputError, match=r"no gene is left: none of 3 is above zero in at least 1 of 4 cells"):
        measure(of(np.zeros((4, 3))), config())
    with pytest.raises(InputError, match=r"no cell is left: all 4 are empty; check X"):
        measure(of(np.zeros((4, 3))), config(min_cell_fraction=0.0))


@pytest.mark.parametrize("n_cells", [0, 1])
def test_too_few_cells_are_refused(n_cells: int) -> None:
    with pytest.raises(InputError, match=f"has {n_cells} cells; at least 2 are needed"):
        measure(of(np.ones((n_cells, 3))), config())


def test_genes_that_do_not_vary_are_refused() -> None:
    with pytest.raises(InputError, match="no gene varies between cells"):
        measure(of(np.ones((4, 4))), config())


# --- wrong values


@pytest.mark.parametrize(
    ("value", "text"), [(-1.0, "-1"), (-0.25, r"-0\.25"), (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
@pytest.mark.parametrize("is_dense", [False, True])
def test_a_wrong_value_names_its_cell_and_gene(
    tiny_adata: ad.AnnData, value: float, text: str, *, is_dense: bool
) -> None:
    values = tiny_adata.X.toarray()
    values[217, 42] = value
    values[250, 3] = value
    tiny_adata.X = values if is_dense else sparse.csr_matrix(values)
    with pytest.raises(
        InputError, match=rf"X holds {text} for cell 'cell217' \(number 217\), gene 'gene042'; expected"
    ):
        measure(open_raw(tiny_adata), config())


def test_a_wrong_value_of_some_of_the_cells_is_named_by_its_row_alone(tiny_adata: ad.AnnData) -> None:
    values = tiny_adata.X.toarray()
    values[217, 42] = -1
    tiny_adata.X = values
    tiny_adata.obs["late"] = np.arange(300) >= 200
    asked = dataclasses.replace(config(), where="late == True")
    with (
        open_inputs(tiny_adata, asked) as raw,
        pytest.raises(InputError, match=r"for cell 'cell217' \(row 217 of the AnnData in memory\), gene 'gene042'"),
    ):
        measure(raw, asked)


def test_a_wrong_value_of_a_layer_in_a_file_is_named(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.layers["scaled"] = tiny_adata.X.toarray() - 1
    tiny_adata.write_h5ad(tmp_path / "a.h5ad")
    with (
        open_raw(tmp_path / "a.h5ad", "scaled") as raw,
        pytest.raises(InputError, match=r"a\.h5ad: scaled holds -1 for"),
    ):
        measure(raw, config(matrix="scaled"))


# --- kinds


@pytest.mark.parametrize(
    ("largest", "fraction", "expected"),
    [(9.0, False, "counts"), (1e6, False, "counts"), (9.0, True, "linear"), (25.5, True, "linear")],
)
def test_the_kind_is_detected_from_all_values(
    largest: float, fraction: bool, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.ones((300, 5))
    values[::3] = 2.0
    values[299, 1] = 0.5 if fraction else 3.0  # in the last block only
    values[150, 0] = largest
    with caplog.at_level(logging.INFO):
        assert measure(of(values), config(block_cells=100)).gene_space.kind == expected
    assert f"values taken as {expected} (" in caplog.text


@pytest.mark.parametrize("kind", ["counts", "linear", "log"])
def test_a_kind_that_is_said_is_believed(tiny_adata: ad.AnnData, kind: str) -> None:
    tiny_adata.X.data = np.minimum(tiny_adata.X.data, 9)
    assert measure(open_raw(tiny_adata), config(kind=kind)).gene_space.kind == kind


def test_fractions_are_no_counts(tiny_adata: ad.AnnData) -> None:
    tiny_adata.X.data[0] += 0.5
    gene = tiny_adata.var_names[tiny_adata.X.indices[0]]
    with pytest.raises(
        InputError, match=rf"ingest\.kind=counts, but X holds .*\.5 for cell 'cell000' \(number 0\), gene '{gene}'"
    ):
        measure(open_raw(tiny_adata), config(kind="counts"))


def test_large_values_are_no_logarithms(tiny_adata: ad.AnnData) -> None:
    tiny_adata.X.data[0] = 100.0
    with pytest.raises(InputError, match=r"ingest\.kind=log, but X holds .* which is no logarithm"):
        measure(open_raw(tiny_adata), config(kind="log"))


# --- streaming


def test_no_more_than_a_block_is_read_at_a_time(tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    read = RawMatrix.read_block

    def watched(self: RawMatrix, start: int, stop: int) -> sparse.csr_matrix:
        asked.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(RawMatrix, "read_block", watched)
    measure(open_raw(tiny_adata), config(block_cells=128))
    assert asked == [(0, 128), (128, 256), (256, 300)] * 2


def test_both_passes_report_their_progress(tiny_adata: ad.AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(every_s=0.0)
    try:
        measure(open_raw(tiny_adata), config(block_cells=128))
    finally:
        show_progress(False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" cells")[0] for line in lines] == [
        f"{label}: {done}/300" for label in ("checking values", "measuring genes") for done in (128, 256, 300)
    ]


def test_the_census_counts_what_numpy_counts(tiny_adata: ad.AnnData) -> None:
    census: Census = statistics.take_census(open_raw(tiny_adata), LocalEngine(77))
    values = tiny_adata.X.toarray()
    np.testing.assert_array_equal(census.n_expressing, (values > 0).sum(0))
    np.testing.assert_array_equal(census.largest, values.max(0))
    assert census.fraction is None


@pytest.mark.parametrize("value", [2.0**70, 5e-324, 1e-40])
def test_values_that_are_no_amounts_of_rna_are_refused(value: float) -> None:
    adata = ad.AnnData(np.array([[0.0, value], [value, 0.0]]))
    with pytest.raises(InputError, match=r"X holds .* for gene '0', and no value is larger; expected amounts of RNA"):
        measure(open_raw(adata), IngestConfig())


def test_one_cell_with_hardly_any_rna_is_named() -> None:
    values = np.random.default_rng(0).random((20, 30))
    values[7] = 0
    values[7, 3] = 5e-324  # has no inverse
    with pytest.raises(
        InputError, match=r"X of cell '7' \(number 7\) sums to 4\.94066e-324; no cell has so little RNA"
    ):
        measure(open_raw(ad.AnnData(values)), IngestConfig(kind="linear"))
