from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.cells.buffer import RowBuffer, read_rows, rows_of, runs_of
from scamac_scale.errors import PlanError

N_ROWS, N_GENES = 40, 30


def filled(dtype: Any, *, largest: int = 20, seed: int = 0) -> tuple[RowBuffer, np.ndarray]:
    """A buffer of counts (or, of float32, of finished values), and what its rows must be as float64."""
    rng = np.random.default_rng(seed)
    matrix = sparse.random(N_ROWS, N_GENES, 0.3, format="csr", random_state=seed)
    matrix.data = rng.integers(1, largest, matrix.nnz)
    buffer = RowBuffer()
    is_scaled = np.dtype(dtype).kind == "u"
    buffer.allot(N_ROWS, matrix.nnz, np.dtype(np.uint16), np.dtype(dtype), is_scaled=is_scaled)
    buffer.indptr[:], buffer.genes[:], buffer.values[:] = matrix.indptr, matrix.indices, matrix.data
    expected = matrix.toarray().astype(np.float64)
    if buffer.scale is not None:
        buffer.scale[:] = rng.random(N_ROWS) * 3
        expected = np.log1p(expected * buffer.scale[:, None])
    return buffer, expected


@pytest.mark.parametrize(("dtype", "largest"), [("u1", 256), ("u2", 60_000), ("u4", 2**31), ("u8", 2**40), ("f4", 20)])
def test_dense_rows_are_the_formula_in_float64(dtype: str, largest: int) -> None:
    buffer, expected = filled(dtype, largest=largest)
    places = np.random.default_rng(1).integers(0, N_ROWS, 100)
    out = np.full((100, N_GENES), np.nan, np.float32)  # what an earlier batch left must not shine through
    buffer.to_dense(places, out)
    np.testing.assert_allclose(out, expected[places], rtol=6e-8, atol=0)  # float32 rounds once, at the end


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, N_ROWS - 1), max_size=50), st.sampled_from(["u1", "f4"]), st.integers(0, 5))
def test_sparse_rows_have_the_bits_of_dense_ones(rows: list[int], dtype: str, seed: int) -> None:
    buffer, _ = filled(dtype, seed=seed)
    places = np.array(rows, dtype=np.int64)
    dense = np.empty((places.size, N_GENES), np.float32)
    buffer.to_dense(places, dense)
    indptr = np.concatenate(([0], np.cumsum(buffer.lengths(places))))
    genes, values = np.empty(indptr[-1], np.uint16), np.empty(indptr[-1], np.float32)
    buffer.to_sparse(places, indptr, genes, values)
    parts = (values, genes.astype(np.int64), indptr)
    np.testing.assert_array_equal(sparse.csr_matrix(parts, shape=dense.shape).toarray(), dense)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_rows_taken_from_another_buffer_are_the_same(dtype: str) -> None:
    buffer, expected = filled(dtype)
    places = np.array([3, 3, 39, 0])
    taken = RowBuffer()
    taken.take(buffer, places)
    out = np.empty((4, N_GENES), np.float32)
    taken.to_dense(np.arange(4), out)
    np.testing.assert_allclose(out, expected[places], rtol=6e-8, atol=0)


def test_memory_is_used_again_unless_it_is_too_small() -> None:
    buffer = RowBuffer()
    types = np.dtype(np.uint16), np.dtype(np.uint8)
    buffer.allot(10, 1000, *types, is_scaled=True)
    first, n_bytes = buffer.genes.ctypes.data, buffer.nbytes
    buffer.allot(5, 700, *types, is_scaled=True)
    assert (buffer.genes.ctypes.data, buffer.nbytes, buffer.n_rows, buffer.genes.size) == (first, n_bytes, 5, 700)
    buffer.allot(10, 2000, *types, is_scaled=True)
    assert buffer.genes.size == 2000
    assert n_bytes + 3 * 1000 <= buffer.nbytes < n_bytes + 3 * 1.2 * 1000 + 100


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_rows_again(rows: set[int]) -> None:
    wanted = np.array(sorted(rows), dtype=np.int64)
    starts, stops = runs_of(wanted)
    np.testing.assert_array_equal(rows_of(starts, stops), wanted)
    assert (starts[1:] > stops[:-1]).all()  # no two of them touch


def test_rows_are_read_in_the_order_asked_for_and_loaded_once() -> None:
    buffer, expected = filled("u1")
    loaded = []

    def load(starts: np.ndarray, stops: np.ndarray, into: RowBuffer) -> None:
        loaded.append((starts.tolist(), stops.tolist()))
        into.take(buffer, rows_of(starts, stops))

    block = read_rows(load, np.array([7, 2, 3, 7]), N_ROWS, N_GENES)
    assert loaded == [([2, 7], [4, 8])]
    parts = (block.data, block.indices.astype(np.int64), block.indptr)
    found = sparse.csr_matrix(parts, shape=(4, N_GENES)).toarray()
    np.testing.assert_allclose(found, expected[[7, 2, 3, 7]], rtol=6e-8, atol=0)
    with pytest.raises(PlanError, match="Row 40 "):
        read_rows(load, np.array([40]), N_ROWS, N_GENES)
