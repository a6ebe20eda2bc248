from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.csr import Doubles, checked_block

N_GENES = 6
ROWS = st.lists(st.lists(st.integers(0, N_GENES - 1), unique=True), min_size=1, max_size=8)  # unsorted, some empty


def parts(rows: list[list[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.array([gene for row in rows for gene in row], dtype=np.uint16)
    return indptr, indices, np.arange(1, len(indices) + 1, dtype=np.float32)


@settings(max_examples=100)
@given(rows=ROWS)
def test_any_order_of_genes_gives_the_same_matrix_sorted(rows: list[list[int]]) -> None:
    indptr, indices, data = parts(rows)
    expected = np.zeros((len(rows), N_GENES))
    for cell, row in enumerate(rows):
        expected[cell, row] = data[indptr[cell] : indptr[cell + 1]]
    block = checked_block(indptr, indices, data, N_GENES, first_cell=0, name="here")
    np.testing.assert_array_equal(block.toarray(), expected)
    assert block.has_canonical_format
    for cell in range(len(rows)):
        assert (np.diff(block.indices[block.indptr[cell] : block.indptr[cell + 1]]) > 0).all()
    assert sparse.csr_matrix(block.copy()).nnz == len(data)


@settings(max_examples=100)
@given(rows=ROWS, data=st.data())
def test_a_gene_given_twice_is_summed_and_told(rows: list[list[int]], data: st.DataObject) -> None:
    filled = [cell for cell, row in enumerate(rows) if row]
    if not filled:
        return
    cell = data.draw(st.sampled_from(filled))
    rows[cell].insert(data.draw(st.integers(0, len(rows[cell]))), data.draw(st.sampled_from(rows[cell])))
    indptr, indices, values = parts(rows)
    expected = np.zeros((len(rows), N_GENES), np.float32)
    np.add.at(expected, (np.repeat(np.arange(len(rows)), np.diff(indptr)), indices), values)
    doubles = Doubles()
    block = checked_block(indptr, indices, values, N_GENES, first_cell=100, name="here", doubles=doubles)
    np.testing.assert_array_equal(block.toarray(), expected)
    assert block.has_canonical_format
    assert block.dtype == np.float32
    assert (doubles.n, doubles.example) == (1, cell + 100)


@settings(max_examples=100)
@given(rows=ROWS, data=st.data())
def test_a_gene_out_of_range_names_the_cell(rows: list[list[int]], data: st.DataObject) -> None:
    cell = data.draw(st.integers(0, len(rows) - 1))
    rows[cell].insert(data.draw(st.integers(0, len(rows[cell]))), N_GENES)
    with pytest.raises(
        InputError, match=f"here: cell {cell + 100} has a value for gene number {N_GENES}, but there are 6"
    ):
        checked_block(*parts(rows), N_GENES, first_cell=100, name="here")
