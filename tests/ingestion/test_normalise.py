from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import sparse

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.errors import ShapeError
from scamac_scale.ingestion.csr import take_columns
from scamac_scale.ingestion.normalise import GeneColumns, cell_totals

if TYPE_CHECKING:
    import anndata as ad

NAMES = ("a", "b", "c", "d", "e")
COUNTS = arrays.arrays(
    np.uint16,
    st.tuples(st.integers(1, 6), st.just(5)),
    elements=st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 60000)),
)


def space(**changes: Any) -> GeneSpace:
    return GeneSpace(
        **{"kind": "counts", "target_sum": 50.0, "filtered": ("a", "b", "d"), "chosen": ("b", "d"), **changes}
    )


def by_hand(counts: np.ndarray[Any, Any], genes: GeneSpace) -> np.ndarray[Any, Any]:
    total = counts[:, [NAMES.index(gene) for gene in genes.filtered]].sum(axis=1, dtype=float)
    assert genes.target_sum is not None
    values = np.zeros((len(counts), len(genes.chosen)))
    for cell in range(len(counts)):
        for column, gene in enumerate(genes.chosen):
            if total[cell] > 0:
                values[cell, column] = np.log1p(counts[cell, NAMES.index(gene)] * genes.target_sum / total[cell])
    return values


@settings(max_examples=60)
@given(counts=COUNTS, order=st.permutations(range(5)))
def test_the_formula_holds_whatever_the_order_of_the_genes(counts: np.ndarray[Any, Any], order: list[int]) -> None:
    columns = GeneColumns.locate(space(), [NAMES[i] for i in order])
    block = columns.normalised(sparse.csr_matrix(counts[:, order]))
    assert block.dtype == np.float32
    assert block.has_sorted_indices
    np.testing.assert_allclose(block.toarray(), by_hand(counts, space()), rtol=1e-6)  # float32 rounding


@settings(max_examples=30)
@given(counts=COUNTS)
def test_every_type_of_counts_gives_the_same_bits(counts: np.ndarray[Any, Any]) -> None:
    columns = GeneColumns.locate(space(), NAMES)
    expected = columns.normalised(sparse.csr_matrix(counts)).toarray()
    for dtype in (np.float32, np.float64, np.int64):
        block = columns.normalised(sparse.csr_matrix(counts.astype(dtype)))
        np.testing.assert_array_equal(block.toarray(), expected)


def test_the_values_are_those_of_scanpy(tiny_adata: ad.AnnData) -> None:
    raw = tiny_adata.X.copy()
    genes = tiny_adata.var_names
    sc.pp.normalize_total(tiny_adata, target_sum=300.0)
    sc.pp.log1p(tiny_adata)
    whole = GeneSpace("counts", 300.0, tuple(genes), tuple(genes))
    np.testing.assert_allclose(
        GeneColumns.locate(whole, genes).normalised(raw).toarray(), tiny_adata.X.toarray(), rtol=1e-6, atol=1e-7
    )


def test_missing_genes_are_zeros_and_reported() -> None:
    columns = GeneColumns.locate(space(), ["d", "x", "a"])
    assert columns.missing_filtered == ("b",)
    assert columns.missing_chosen == ("b",)
    block = columns.normalised(sparse.csr_matrix([[3.0, 9.0, 1.0]]))
    np.testing.assert_allclose(block.toarray(), [[0.0, np.log1p(3 * 50.0 / 4.0)]], rtol=1e-6)


def test_an_empty_cell_stays_zeros() -> None:
    columns = GeneColumns.locate(space(), NAMES)
    assert columns.normalised(sparse.csr_matrix([[0.0, 0.0, 7.0, 0.0, 0.0]])).nnz == 0
    explicit = sparse.csr_matrix((np.zeros(1), [1], [0, 1]), shape=(1, 5))
    np.testing.assert_array_equal(columns.normalised(explicit).toarray(), [[0.0, 0.0]])


def test_log_values_stay_as_they_are() -> None:
    genes = space(kind="log", target_sum=None)
    values = np.array([[0.5, 1.25, 3.0, 0.0, 2.0]])
    block = GeneColumns.locate(genes, NAMES).normalised(sparse.csr_matrix(values))
    np.testing.assert_array_equal(block.toarray(), values[:, [1, 3]].astype(np.float32))


def test_linear_values_are_rounded_as_the_store_rounds_them() -> None:
    genes = space(kind="linear")
    values = np.random.default_rng(0).gamma(1.0, 10.0, (4, 5))
    columns = GeneColumns.locate(genes, NAMES)
    block = sparse.csr_matrix(values)
    stored = columns.raw_values(block)
    stored.data = stored.data.astype(np.float32)
    from scamac_scale.cells.normalisation import cell_scale, normalise_values

    expected = normalise_values(stored.indptr, stored.data, cell_scale(columns.totals(block), 50.0))
    np.testing.assert_array_equal(columns.normalised(block).data, expected)


def test_a_block_of_another_width_is_refused() -> None:
    columns = GeneColumns.locate(space(), NAMES)
    with pytest.raises(ShapeError, match="a block of 4 genes, expected the 5 that were located"):
        columns.raw_values(sparse.csr_matrix((2, 4)))
    with pytest.raises(ShapeError, match="a block of 4 genes, but 5 are marked"):
        cell_totals(sparse.csr_matrix((2, 4)), np.ones(5, dtype=bool))


@settings(max_examples=60)
@given(counts=COUNTS, kept=st.lists(st.integers(0, 4), unique=True))
def test_picked_columns_are_those_of_the_dense_matrix(counts: np.ndarray[Any, Any], kept: list[int]) -> None:
    target = np.full(5, -1)
    target[kept] = np.arange(len(kept))
    block = take_columns(sparse.csr_matrix(counts), target, len(kept))
    np.testing.assert_array_equal(block.toarray(), counts[:, kept])
    assert block.dtype == counts.dtype
