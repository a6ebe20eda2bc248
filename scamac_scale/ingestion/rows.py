"""Rows of a matrix that lies in a file or in memory: any run of cells as a checked CSR block.

``SparseRows`` and ``DenseRows`` take whatever is sliced like an array (NumPy, h5py, zarr); which file it came from is the
business of ``open.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.csr import Doubles, check_indptr, checked_block, take_columns
from scamac_scale.ingestion.shared_chunks import share_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array = Any
"""A NumPy, h5py or zarr array: has ``shape``, ``dtype`` and slices."""

DENSE_SLAB_VALUES = 2**24
"""Values of a dense matrix held at a time while a block is turned into CSR."""


class Rows(Protocol):
    """A matrix of N cells by G genes, read by runs of cells."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""

    @property
    def n_stored(self) -> int:
        """Stored values, all N G of them where the matrix is dense."""

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive) as (stop - start, G)."""


def value_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Choose the type that values of a matrix are read as.

    Parameters
    ----------
    dtype
        As stored.
    name
        Where the matrix came from, for the message.

    Returns
    -------
    dtype
        `dtype` in native byte order; float32 for half floats (scipy takes none), float64 for long doubles.

    Raises
    ------
    InputError
        If values are not real numbers.
    """
    if dtype.kind == "b":
        raise InputError(
            f"{name} holds values of type bool, which tell where genes were found, not how much; give the matrix of counts."
        )
    if dtype.kind not in "iuf":
        raise InputError(f"{name} holds values of type {dtype}; expected real numbers.")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return dtype.newbyteorder("=")


def check_parts(parts: tuple[Array, Array, Array], n_lines: int, what: str, name: str) -> tuple[Array, Array, Array]:
    """Check the parts of a sparse matrix as far as their headers tell.

    Parameters
    ----------
    parts
        indptr, indices and data, sliceable.
    n_lines
        Cells of a CSR matrix, genes of a CSC one.
    what
        Which of the two.
    name
        Where the matrix came from, for messages.

    Returns
    -------
    tuple
        `parts`.

    Raises
    ------
    InputError
        If they do not fit each other, or values are no numbers.
    """
    indptr, indices, data = parts
    if len(indices.shape) != 1 or indices.shape != data.shape:
        raise InputError(
            f"{name}: {data.shape} values with {indices.shape} indices; expected one index for each value. "
            "The file is damaged, write it again."
        )
    if tuple(indptr.shape) != (n_lines + 1,):  # before reading it: a damaged header may promise terabytes
        raise InputError(
            f"{name}: indptr has shape {tuple(indptr.shape)}, expected ({n_lines + 1},) for {n_lines} {what}; "
            "the file is damaged, write it again."
        )
    value_dtype(data.dtype, name)
    return parts


def below_one_another(parts: list[sparse.csr_matrix], n_genes: int, dtype: np.dtype[Any]) -> sparse.csr_matrix:
    """Put runs of cells below one another: (all of their cells, n_genes), also where there are none."""
    if not parts:
        return sparse.csr_matrix((0, n_genes), dtype=dtype)
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


@dataclass(frozen=True)
class SparseRows:
    """A CSR matrix whose three arrays may lie on disk; only `indptr` is held in memory.

    Attributes
    ----------
    indptr
        (N + 1,) int64, checked.
    indices, data
        Sliceable arrays of equal length.
    n_genes
        Columns G of the stored matrix.
    name
        Where it came from, for messages.
    kept
        (G,) new column of each stored one, or -1 to leave it out; None keeps all.
    doubles
        Counts values of a gene that a cell has already, which are summed.
    """

    indptr: NDArray[np.int64]
    indices: Array
    data: Array
    n_genes: int
    name: str
    kept: NDArray[np.int64] | None = None
    doubles: Doubles = field(default_factory=Doubles, compare=False)

    @classmethod
    def check(cls, parts: tuple[Array, Array, Array], shape: tuple[int, int], name: str) -> SparseRows:
        """Check the parts of a CSR matrix that are cheap to check, and hold them.

        Parameters
        ----------
        parts
            indptr, indices and data, sliceable.
        shape
            (N, G) from the header.
        name
            Where the matrix came from, for messages.

        Raises
        ------
        InputError
            If they do not fit each other.
        """
        indptr, indices, data = check_parts(parts, shape[0], "cells", name)
        checked = check_indptr(np.asarray(indptr[:]), shape[0], data.shape[0], name)
        return cls(checked, share_chunks(indices), share_chunks(data), shape[1], name)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G) of what is read."""
        n_genes = self.n_genes if self.kept is None else int((self.kept >= 0).sum())
        return len(self.indptr) - 1, n_genes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        return value_dtype(self.data.dtype, self.name)

    @property
    def n_stored(self) -> int:
        """Stored values, explicit zeros and left-out columns included."""
        return int(self.indptr[-1])

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive); raises InputError where an index cannot be right."""
        low, high, is_told = int(self.indptr[start]), int(self.indptr[stop]), self.doubles.n > 0
        block = checked_block(
            self.indptr[start : stop + 1] - low,
            np.asarray(self.indices[low:high]),
            np.asarray(self.data[low:high]).astype(self.dtype, copy=False),
            self.n_genes,
            first_cell=start,
            name=self.name,
            doubles=self.doubles,
        )
        if self.doubles.n and not is_told:
            self.doubles.tell(self.name, f" in cells {start} to {stop - 1}")
        return block if self.kept is None else take_columns(block, self.kept, self.shape[1])


@dataclass(frozen=True)
class DenseRows:
    """A dense matrix that may lie on disk, read in slabs.

    Attributes
    ----------
    values
        (N, G) sliceable array.
    name
        Where it came from, for messages.
    """

    values: Array
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return int(self.values.shape[0]), int(self.values.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        return value_dtype(self.values.dtype, self.name)

    @property
    def n_stored(self) -> int:
        """N G: a dense matrix stores its zeros too."""
        return self.shape[0] * self.shape[1]

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive); NaN counts as a value."""
        slab_cells = max(1, DENSE_SLAB_VALUES // max(1, self.shape[1]))
        slabs = [
            sparse.csr_matrix(np.asarray(self.values[low : min(low + slab_cells, stop)]).astype(self.dtype, copy=False))
            for low in range(start, stop, slab_cells)
        ]
        return below_one_another(slabs, self.shape[1], self.dtype)


@dataclass(frozen=True)
class JoinedRows:
    """Matrices of the same cells beside each other: as one with the columns of all.

    Attributes
    ----------
    parts
        One or more of N cells each, in the order of their columns.
    """

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G), G of all parts together."""
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    @property
    def dtype(self) -> np.dtype[Any]:
        """One that holds the values of all parts."""
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def n_stored(self) -> int:
        """Stored values of all parts."""
        return sum(part.n_stored for part in self.parts)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive) of all parts."""
        joined = sparse.hstack([part.read(start, stop) for part in self.parts], format="csr", dtype=self.dtype)
        joined.has_canonical_format = True  # each part is, and they do not overlap
        return joined
