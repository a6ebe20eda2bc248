"""Blocks of cells as CSR: checks before use, and picking columns.

A CSR matrix from a file is data from a stranger: an index out of range crashes the interpreter as soon as compiled code
uses it, so every block is checked here first. Nothing in this module knows a file, a config or the paper.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = Any
"""A NumPy, h5py or zarr array: ``shape``, ``dtype``, slices."""


@dataclass
class Doubles:
    """Counts values for a gene that a cell has already; they are summed, as scipy does.

    Attributes
    ----------
    n
        So many were found.
    example
        The first cell that has one.
    """

    n: int = 0
    example: int = -1
    _until: int = 0

    def add(self, entries: int, first_cell: int, stop: int, example: int) -> bool:
        """Count those of a block, unless its cells were counted before; tells whether they are the first."""
        is_first = self.n == 0
        if stop > self._until:
            self.n += entries
            self._until = stop
        self.example = example if is_first else self.example
        return is_first

    def tell(self, name: str, cells: str = "") -> None:
        """Warn of them."""
        logger.warning(
            "%s: %s values are second ones for a gene of the same cell%s, such as of cell %d; they are summed, as scanpy does",
            name,
            f"{self.n:,}",
            cells,
            self.example,
        )


def check_indptr(
    indptr: NDArray[Any], n_cells: int, n_stored: int, name: str, what: str = "cells"
) -> NDArray[np.int64]:
    """Check the row pointer of a whole matrix.

    Parameters
    ----------
    indptr
        (n_cells + 1,) row pointer as read.
    n_cells
        Cells that the header promises.
    n_stored
        Length of the value and index arrays.
    name
        Where the matrix came from, for the message.
    what
        What the pointer counts.

    Returns
    -------
    ndarray
        (n_cells + 1,) int64.

    Raises
    ------
    InputError
        If it does not start at 0, end at `n_stored`, and never fall.
    """
    if indptr.dtype.kind not in "iu" or indptr.shape != (n_cells + 1,):
        raise InputError(
            f"{name}: indptr is {indptr.dtype} of shape {indptr.shape}, expected {n_cells + 1} whole numbers for "
            f"{n_cells} {what}; the file is damaged, write it again."
        )
    pointer = indptr.astype(np.int64)
    if pointer[0] != 0 or pointer[-1] != n_stored or (np.diff(pointer) < 0).any():
        raise InputError(
            f"{name}: indptr must rise from 0 to the {n_stored} stored values, it goes from {pointer[0]} to "
            f"{pointer[-1]}{' and falls in between' if (np.diff(pointer) < 0).any() else ''}; the file is damaged, "
            "write it again."
        )
    return pointer


def checked_block(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
    n_genes: int,
    *,
    first_cell: int,
    name: str,
    doubles: Doubles | None = None,
) -> sparse.csr_matrix:
    """Build a CSR block from arrays that have not been checked.

    Parameters
    ----------
    indptr
        (n + 1,) row pointer of this block, from 0 to the number of values; checked by `check_indptr`.
    indices, data
        Column and value of each stored entry.
    n_genes
        Columns.
    first_cell
        Row of the block's first cell in the whole matrix, for the message.
    name
        Where the block came from, for the message.
    doubles
        Counts values of the same gene in a cell; None warns of those of this block.

    Returns
    -------
    csr_matrix
        (n, n_genes), indices sorted within each row; values of the same gene in a cell are summed.

    Raises
    ------
    InputError
        If an index is out of range, or a sum is beyond the type of the values.
    """
    if indices.dtype.kind not in "iu":
        raise InputError(f"{name}: indices are {indices.dtype}, expected whole numbers; the file is damaged.")
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= n_genes:
            wrong = low if low < 0 else high
            entry = int(np.argmax(indices == wrong))
            cell = first_cell + int(np.searchsorted(indptr, entry, side="right")) - 1
            raise InputError(
                f"{name}: cell {cell} has a value for gene number {wrong}, but there are {n_genes} genes "
                f"(0 to {n_genes - 1}); the file is damaged, write it again."
            )
    indices = np.ascontiguousarray(indices, dtype=_index_dtype(n_genes))
    if not _steps_back(indptr, indices).size:
        block = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))
        block.has_canonical_format = True
        return block
    block = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes), copy=True)
    block.has_sorted_indices = False
    block.sort_indices()
    repeated = _steps_back(indptr, block.indices)  # what does not rise once sorted is there twice
    if repeated.size:
        cell = first_cell + int(np.searchsorted(indptr, repeated[0], side="right")) - 1
        counted = Doubles() if doubles is None else doubles
        if counted.add(len(repeated), first_cell, first_cell + block.shape[0], cell) and doubles is None:
            counted.tell(name)
        block = _summed(block, cell, name)
    block.has_canonical_format = True
    return block


def _summed(block: sparse.csr_matrix, cell: int, name: str) -> sparse.csr_matrix:
    """Sum values of the same place; refuse where the type of the values does not hold a sum."""
    dtype = block.dtype
    wide = block.astype(np.int64 if dtype.kind in "iu" else np.float64)
    wide.has_canonical_format = False
    wide.sum_duplicates()
    if dtype.kind in "iu" and wide.nnz:
        low, high = int(wide.data.min()), int(wide.data.max())
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise InputError(
                f"{name}: several values of one gene in a cell, as in cell {cell}, sum to more than {dtype} holds; write the matrix "
                "again after sum_duplicates(), with wider numbers."
            )
    return wide.astype(dtype)


def take_columns(block: sparse.csr_matrix, target: NDArray[np.int64], n_target: int) -> sparse.csr_matrix:
    """Pick and renumber columns of a block.

    Parameters
    ----------
    block
        (n, G) CSR, indices sorted within each row.
    target
        (G,) new column of each old one, or -1 to leave it out; no two alike.
    n_target
        New number of columns; one that no old column maps to stays zero.

    Returns
    -------
    csr_matrix
        (n, n_target), dtype of `block`, indices sorted within each row; explicit zeros are kept.
    """
    indptr, entries, columns = _pick(block.indptr.astype(np.int64), block.indices, target)
    taken = sparse.csr_matrix(
        (block.data[entries], columns.astype(_index_dtype(n_target)), indptr), shape=(block.shape[0], n_target)
    )
    kept = target[target >= 0]
    taken.has_sorted_indices = bool((np.diff(kept) > 0).all())
    taken.sort_indices()
    return taken


def _index_dtype(n_columns: int) -> type[np.signedinteger[Any]]:
    return np.int32 if n_columns < 2**31 else np.int64


def _steps_back(indptr: NDArray[np.int64], indices: NDArray[Any]) -> NDArray[np.int64]:
    """Find entries whose column is not beyond that of the entry before them in the same row."""
    stays = indices[1:] <= indices[:-1]
    first = indptr[1:-1]
    first = first[(first > 0) & (first < len(indices))]
    stays[first - 1] = False  # the first entry of a row follows none
    return np.flatnonzero(stays) + 1


@compiled
def _pick(
    indptr: NDArray[np.int64], indices: NDArray[Any], target: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover  compiled
    picked = np.zeros(len(indptr), dtype=np.int64)
    n_kept = 0
    for entry in range(len(indices)):
        n_kept += target[indices[entry]] >= 0
    entries = np.empty(n_kept + 1, dtype=np.int64)  # counted first: several threads pick at a time, and few are kept
    columns = np.empty(n_kept + 1, dtype=np.int64)
    n = 0
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            column = target[indices[entry]]
            entries[n] = entry  # overwritten by the next one where it is not kept: a branch would be guessed wrong
            columns[n] = column
            n += column >= 0
        picked[row + 1] = n
    return picked, entries[:n], columns[:n]
