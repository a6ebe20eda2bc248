"""Sources in memory: one that counts what is loaded, one of a dense array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scamac_scale.cells.buffer import RowBuffer, read_rows, rows_of

if TYPE_CHECKING:
    from scamac_scale.cells.csr import CsrBlock


class MatrixSource:
    """Cells of a random SciPy matrix, finished or, where `is_scaled`, counts with a scale."""

    resident: RowBuffer | None = None
    levels = None

    def __init__(self, n_cells: int = 500, n_genes: int = 20, *, is_scaled: bool = False) -> None:
        self.n_cells = n_cells
        self.gene_names = tuple(f"gene{i}" for i in range(n_genes))
        self.matrix = sparse.random(n_cells, n_genes, 0.3, format="csr", dtype=np.float32, random_state=0)
        self.loaded: list[np.ndarray] = []
        self._whole = RowBuffer()
        dtype = np.dtype(np.uint8 if is_scaled else np.float32)
        self._whole.allot(n_cells, self.matrix.nnz, np.dtype(np.uint16), dtype, is_scaled=is_scaled)
        if self._whole.scale is not None:
            self.matrix.data = np.ceil(self.matrix.data * 20)
            self._whole.scale[:] = np.random.default_rng(0).random(n_cells)
        self._whole.indptr[:] = self.matrix.indptr
        self._whole.genes[:], self._whole.values[:] = self.matrix.indices, self.matrix.data
        self.csr_bytes = 8 * (n_cells + 1) + 6 * self.matrix.nnz
        self.load_bytes = self.csr_bytes

    def read(self, rows: Any) -> CsrBlock:
        return read_rows(self.load, rows, self.n_cells, len(self.gene_names))

    def load(self, starts: np.ndarray, stops: np.ndarray, into: RowBuffer) -> None:
        rows = rows_of(starts, stops)
        self.loaded.append(rows)
        into.take(self._whole, rows)

    def dense(self, rows: Any) -> np.ndarray:
        out = np.empty((len(rows), len(self.gene_names)), np.float32)
        self._whole.to_dense(np.asarray(rows, dtype=np.int64), out)
        return out


class ResidentSource(MatrixSource):
    """The same, held in memory as a cached source is."""

    def __init__(self, n_cells: int = 500, n_genes: int = 20, *, is_scaled: bool = False) -> None:
        super().__init__(n_cells, n_genes, is_scaled=is_scaled)
        self.resident = self._whole


class ArraySource:
    """Cells from a dense array."""

    resident = None
    levels = None

    def __init__(self, values: np.ndarray) -> None:
        self.values = values.astype(np.float32)
        self.n_cells = len(values)
        self.gene_names = [f"gene{index}" for index in range(values.shape[1])]
        self.csr_bytes = self.load_bytes = 6 * int(np.count_nonzero(values))

    def read(self, rows: np.ndarray) -> CsrBlock:
        return read_rows(self.load, rows, *self.values.shape)

    def load(self, starts: np.ndarray, stops: np.ndarray, into: RowBuffer) -> None:
        block = sparse.csr_matrix(self.values[rows_of(starts, stops)])
        into.allot(block.shape[0], block.nnz, np.dtype(np.uint16), np.dtype(np.float32), is_scaled=False)
        into.indptr[:], into.genes[:], into.values[:] = block.indptr, block.indices, block.data
