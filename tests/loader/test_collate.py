from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.csr import CsrBlock
from scamac_scale.errors import ShapeError
from scamac_scale.loader.collate import densify


def random_block(n_cells: int, n_genes: int, density: float, seed: int, dtype: type = np.int64) -> CsrBlock:
    matrix = sparse.random(n_cells, n_genes, density, format="csr", dtype=np.float32, random_state=seed)
    return CsrBlock(matrix.indptr.astype(np.int64), matrix.indices.astype(dtype), matrix.data, n_genes)


def dense(block: CsrBlock) -> np.ndarray:
    parts = (block.data, block.indices.astype(np.int64), block.indptr)
    return sparse.csr_matrix(parts, shape=(block.n_cells, block.n_genes)).toarray()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 20),
    st.integers(1, 30),
    st.floats(0, 1),
    st.integers(0, 9),
    st.sampled_from([np.uint16, np.uint32, np.int32, np.int64]),
)
def test_dense_rows_equal_scipy(n_cells: int, n_genes: int, density: float, seed: int, dtype: type) -> None:
    block = random_block(n_cells, n_genes, density, seed, dtype)
    out = np.full((n_cells, n_genes), np.nan, np.float32)  # what an earlier batch left must not shine through
    densify(block, out)
    np.testing.assert_array_equal(out, dense(block))


def test_repeated_genes_add_up() -> None:
    block = CsrBlock(np.array([0, 3]), np.array([1, 0, 1]), np.array([1, 2, 4], np.float32), 2)
    out = np.empty((1, 2), np.float32)
    densify(block, out)
    np.testing.assert_array_equal(out, [[2, 5]])


@pytest.mark.parametrize(
    "out",
    [np.empty((3, 5), np.float32), np.empty((4, 5)), np.empty((5, 4), np.float32).T, np.empty((4, 6), np.float32)],
)
def test_buffer_that_does_not_fit_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected that shape"):
        densify(random_block(4, 5, 0.5, 0), out)
