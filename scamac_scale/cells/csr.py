"""A run of cells as compressed sparse rows: what every source of cells hands out.

Plain data, so that the store, the loader and the ingest may share it without importing one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError, PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def csr_bytes(n_cells: int, n_values: int, index_dtype: np.dtype[Any]) -> int:
    """Bytes of float32 CSR rows: row pointers, values, genes."""
    return 8 * (n_cells + 1) + n_values * (4 + index_dtype.itemsize)


@dataclass(frozen=True)
class CsrBlock:
    """B cells by G genes, compressed sparse rows, checked when made.

    Attributes
    ----------
    indptr
        (B + 1,) int64; row ``i`` lies at ``indptr[i]:indptr[i + 1]``.
    indices
        (nnz,) any integer type; genes, 0 to G - 1, none twice in a row.
    data
        (nnz,) float32.
    n_genes
        G.

    Raises
    ------
    InputError
        If the arrays do not describe such a matrix. A gene out of range would otherwise be written past the end of a
        buffer.

    Notes
    -----
    The check is O(nnz).
    """

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[np.float32]
    n_genes: int

    def __post_init__(self) -> None:
        """Check types, lengths and ranges."""
        indptr, indices, data = self.indptr, self.indices, self.data
        if indptr.dtype != np.int64 or indices.dtype.kind not in "iu" or data.dtype != np.float32:
            raise InputError(
                f"Sparse rows of types {indptr.dtype}, {indices.dtype}, {data.dtype}; expected int64 row pointers, "
                "integer genes and float32 values."
            )
        if indptr.ndim != 1 or indptr.size < 1 or indices.shape != data.shape or data.ndim != 1:
            raise InputError(
                f"Sparse rows of shapes {indptr.shape}, {indices.shape}, {data.shape}; expected (B + 1,), (nnz,), (nnz,)."
            )
        if indptr[0] != 0 or indptr[-1] != data.size or (np.diff(indptr) < 0).any():
            raise InputError(
                f"Row pointers run from {indptr[0]} to {indptr[-1]} over {data.size} values; they must start at 0, "
                "never fall, and end at the number of values. The source is damaged: write it again."
            )
        if indices.size and (int(indices.max()) >= self.n_genes or int(indices.min()) < 0):
            raise InputError(
                f"A gene index lies outside 0 to {self.n_genes - 1}. The source is damaged: write it again."
            )

    @property
    def n_cells(self) -> int:
        """Number of cells B."""
        return self.indptr.size - 1


def check_rows(rows: NDArray[Any], n_cells: int) -> NDArray[np.int64]:
    """Check the rows asked of a source.

    Parameters
    ----------
    rows
        (B,) integers, each 0 to `n_cells` - 1, in any order, repeats allowed.
    n_cells
        Cells in the source.

    Returns
    -------
    ndarray
        (B,) int64.

    Raises
    ------
    PlanError
        If a row is not in the source, or `rows` is not a list of whole numbers.
    """
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise PlanError(f"Rows of shape {rows.shape} and type {rows.dtype}; expected a list of whole numbers.")
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= n_cells):
        wrong = rows[(rows < 0) | (rows >= n_cells)][0]
        raise PlanError(f"Row {wrong} is not in the source, which has rows 0 to {n_cells - 1}.")
    return rows.astype(np.int64, copy=False)
