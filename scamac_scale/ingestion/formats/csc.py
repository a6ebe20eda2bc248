"""Matrices that lie by genes (CSC), in a file or in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.csr import check_indptr
from scamac_scale.ingestion.formats.transpose import CHUNK_VALUES, Entries, TransposedRows, Unsorted
from scamac_scale.ingestion.rows import check_parts, value_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Array = Any
"""A NumPy, h5py or zarr array: ``shape``, ``dtype``, slices."""


def open_csc(parts: tuple[Array, Array, Array], shape: tuple[int, int], name: str) -> TransposedRows:
    """Open a CSC matrix of cells by genes, to be read by cells.

    Parameters
    ----------
    parts
        indptr, indices and data, sliceable.
    shape
        (N, G) from the header.
    name
        Where the matrix came from, for messages.

    Returns
    -------
    TransposedRows
        Transposes at the first read.

    Raises
    ------
    InputError
        If the parts do not fit each other; indices are checked when they are read.
    """
    n_genes = shape[1]
    indptr, indices, data = check_parts(parts, n_genes, "genes", name)
    pointer = check_indptr(np.asarray(indptr[:]), n_genes, int(data.shape[0]), name, "genes")
    if indices.dtype.kind not in "iu":
        raise InputError(f"{name}: indices are {indices.dtype}, expected whole numbers; the file is damaged.")
    dtype = value_dtype(data.dtype, name)

    def read() -> Iterator[Entries]:
        for low in range(0, int(pointer[-1]), CHUNK_VALUES):
            high = min(low + CHUNK_VALUES, int(pointer[-1]))
            genes = _genes(pointer, low, high)
            cells = np.asarray(indices[low:high])
            _check_cells(cells, genes, shape[0], name)
            yield Entries(cells.astype(np.int64), genes, np.asarray(data[low:high]).astype(dtype, copy=False))

    return TransposedRows(Unsorted(name, shape, int(pointer[-1]), data.dtype, "is stored by genes (CSC)", read))


def _genes(pointer: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Name the gene of each stored value from `low` to `high`."""
    first = int(np.searchsorted(pointer, low, side="right")) - 1
    last = int(np.searchsorted(pointer, high, side="left"))
    bounds = np.clip(pointer[first : last + 1], low, high)
    return np.repeat(np.arange(first, last, dtype=np.int64), bounds[1:] - bounds[:-1])


def _check_cells(cells: NDArray[Any], genes: NDArray[np.int64], n_cells: int, name: str) -> None:
    if not cells.size:
        return
    low, high = int(cells.min()), int(cells.max())
    if low < 0 or high >= n_cells:
        wrong = low if low < 0 else high
        gene = int(genes[int(np.argmax(cells == wrong))])
        raise InputError(
            f"{name}: gene number {gene} has a value for cell {wrong}, but there are {n_cells} cells (0 to {n_cells - 1}); the file "
            "is damaged, write it again."
        )
