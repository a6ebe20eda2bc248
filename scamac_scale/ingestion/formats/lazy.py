"""Matrices of dask, as of ``anndata.experimental.read_lazy``: computed by their own chunks of cells, each of which is kept while it is read."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scamac_scale.errors import InputError, ScamacError
from scamac_scale.ingestion.csr import Doubles, checked_block
from scamac_scale.ingestion.formats.transpose import Entries, TransposedRows, Unsorted
from scamac_scale.ingestion.raw import reason
from scamac_scale.ingestion.rows import below_one_another, value_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scamac_scale.ingestion.rows import Rows

MOST_KEPT = 2
"""Chunks of cells that are kept: a run of cells often ends in one and begins in the one before."""


def is_dask(values: Any) -> bool:
    """Tell whether something is an array of dask; dask is not imported for that."""
    return type(values).__module__.startswith("dask.") and hasattr(values, "chunks")


def open_dask(values: Any, name: str) -> Rows:
    """Open an array of dask, of NumPy arrays or of sparse matrices of SciPy.

    Parameters
    ----------
    values
        (N, G).
    name
        For messages.

    Returns
    -------
    Rows
        By chunks of cells; where chunks are of genes, as those of a CSC matrix are, all values are sorted by cells once.

    Raises
    ------
    InputError
        If it is no table of numbers, or its chunks are of unknown sizes.
    """
    if len(values.shape) != 2:
        raise InputError(f"{name} has {len(values.shape)} dimensions; expected cells by genes.")
    if any(math.isnan(size) for sizes in values.chunks for size in sizes):
        raise InputError(
            f"{name} is an array of dask whose chunks are of unknown sizes; call compute_chunk_sizes() on it."
        )
    value_dtype(values.dtype, name)
    rows = LazyRows(values, name)
    n_by_cells, n_by_genes = (len(sizes) for sizes in values.chunks)
    return rows if n_by_genes <= max(n_by_cells, 1) else _by_genes(rows)


@dataclass(eq=False)
class LazyRows:
    """An array of dask, read by its chunks of cells; several threads may read, one computes.

    Attributes
    ----------
    values
        (N, G) of dask.
    name
        Where it came from, for messages.
    """

    values: Any
    name: str
    doubles: Doubles = field(default_factory=Doubles)
    _kept: dict[int, sparse.csr_matrix] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

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
        """N G: how many values there are is known only when they are computed."""
        return self.shape[0] * self.shape[1]

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive)."""
        edges = np.concatenate([[0], np.cumsum(self.values.chunks[0])]).tolist()
        parts = [
            self._chunk(number, low)[max(start - low, 0) : min(stop, high) - low]
            for number, (low, high) in enumerate(itertools.pairwise(edges))
            if low < stop and start < high
        ]
        block = below_one_another(parts, self.shape[1], self.dtype)
        block.has_canonical_format = True  # each part is
        return block

    def close(self) -> None:
        """Forget the chunks that are kept."""
        with self._lock:
            self._kept.clear()

    def _chunk(self, number: int, first: int) -> sparse.csr_matrix:
        with self._lock:
            if number not in self._kept:
                block = self._computed(number, first)
                while len(self._kept) >= MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[number] = block
            return self._kept[number]

    def _computed(self, number: int, first: int) -> sparse.csr_matrix:
        parts = [self.part(number, column) for column in range(len(self.values.chunks[1]))]
        whole = parts[0] if len(parts) == 1 else sparse.hstack(parts, format="csr")
        is_told = self.doubles.n > 0
        block = checked_block(
            whole.indptr.astype(np.int64),
            whole.indices,
            whole.data,
            self.shape[1],
            first_cell=first,
            name=self.name,
            doubles=self.doubles,
        )
        if self.doubles.n and not is_told:
            self.doubles.tell(self.name, f" in cells {first} to {first + block.shape[0] - 1}")
        return block

    def part(self, row: int, column: int) -> sparse.csr_matrix:
        """Compute one chunk; its type and shape are those that were promised, or it is refused."""
        try:
            found = self.values.blocks[row, column].compute()
        except (ScamacError, MemoryError):
            raise
        except Exception as error:  # whatever it is made of raises anything
            raise InputError(
                f"{self.name}: its array of dask fails at chunk ({row}, {column}): {type(error).__name__}: {reason(error)}; mend what it is "
                "made of, or give a file."
            ) from error
        wanted = self.values.chunks[0][row], self.values.chunks[1][column]
        if tuple(found.shape) != wanted:
            raise InputError(f"{self.name}: a chunk of dask has shape {tuple(found.shape)}, {wanted} was promised.")
        value_dtype(found.dtype, self.name)
        if not sparse.issparse(found):
            found = np.asarray(found)
        return sparse.csr_matrix(found.astype(self.dtype, copy=False))


def _by_genes(lazy: LazyRows) -> TransposedRows:
    """Sort values of chunks of genes by cells."""

    def read() -> Iterator[Entries]:
        starts = [np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64) for sizes in lazy.values.chunks]
        for column in range(len(lazy.values.chunks[1])):
            for row in range(len(lazy.values.chunks[0])):
                part = lazy.part(row, column).tocoo()
                yield Entries(part.row + starts[0][row], part.col + starts[1][column], part.data)

    return TransposedRows(
        Unsorted(
            lazy.name,
            lazy.shape,
            lazy.n_stored,
            lazy.dtype,
            "is an array of dask in chunks of genes",
            read,
            n_likely=lazy.n_stored // 10,
        )
    )


def in_memory(table: Any) -> pd.DataFrame:  # Any: a DataFrame, or what read_lazy has in its place
    """Take a table of an AnnData into memory, if it is not there."""
    frame: pd.DataFrame = table.to_memory() if hasattr(table, "to_memory") else table
    return frame
