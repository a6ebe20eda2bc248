"""Cells in memory that is used again and again: what a source loads into, and what batches are gathered from.

A buffer holds whole cells as sparse rows, raw or finished, and two compiled kernels take cells out of it: as dense rows or
as sparse ones, log-normalised on the way. Plain data, so that the store, the loader and the ingest share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from scamac_scale.cells.csr import CsrBlock, check_rows
from scamac_scale.cells.normalisation import TABLE, fill_table, log_scaled
from scamac_scale.host.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_LINE_BYTES = 64
_ROWS_AHEAD = 2  # rows that are fetched into the cache before their turn
_SLACK = 1.1  # a buffer that must grow grows a little beyond


class RowBuffer:
    """Cells as sparse rows in reused memory.

    Attributes
    ----------
    indptr
        (n + 1,) int64; row ``i`` lies at ``indptr[i]:indptr[i + 1]``.
    genes
        (nnz,) unsigned integers, 0 to G - 1, none twice in a row.
    values
        (nnz,) counts of an unsigned type where there is a `scale`; otherwise float32 log-normalised values.
    scale
        (n,) float64 factor of each cell, see `scamac_scale.cells.normalisation`; None where `values` are finished.
    """

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[Any]] = {}
        self.allot(0, 0, np.dtype(np.uint16), np.dtype(np.float32), is_scaled=False)

    def allot(
        self, n_rows: int, n_values: int, gene_dtype: np.dtype[Any], value_dtype: np.dtype[Any], *, is_scaled: bool
    ) -> None:
        """Make room; what was held is lost. Memory is taken anew only where there is too little of it."""
        self.indptr = self._room("indptr", n_rows + 1, np.dtype(np.int64))
        self.indptr[0] = 0
        self.genes = self._room("genes", n_values, gene_dtype)
        self.values = self._room("values", n_values, value_dtype)
        self.scale = self._room("scale", n_rows, np.dtype(np.float64)) if is_scaled else None

    def take(self, other: RowBuffer, places: NDArray[np.int64]) -> None:
        """Copy rows of another buffer in, as they are."""
        targets = np.concatenate((np.zeros(1, np.int64), np.cumsum(other.lengths(places))))
        is_scaled = other.scale is not None
        self.allot(places.size, int(targets[-1]), other.genes.dtype, other.values.dtype, is_scaled=is_scaled)
        self.indptr[:] = targets
        copy_rows(other.indptr, other.genes, other.values, places, targets, self.genes, self.values)
        if self.scale is not None and other.scale is not None:
            self.scale[:] = other.scale[places]

    def _room(self, name: str, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        held = self._memory.get(name)
        if held is None or held.dtype != dtype or held.size < size:
            is_first = held is None or held.dtype != dtype
            self._memory[name] = held = np.empty(size if is_first else int(size * _SLACK), dtype)
        return held[:size]

    @property
    def n_rows(self) -> int:
        """Rows held."""
        return int(self.indptr.size) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, used or not."""
        return sum(array.nbytes for array in self._memory.values())

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the values of some rows."""
        found: NDArray[np.int64] = self.indptr[places + 1] - self.indptr[places]
        return found

    def to_dense(self, places: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Write rows, log-normalised, into a dense array.

        Parameters
        ----------
        places
            (B,) rows of this buffer, in any order, repeats allowed; not checked.
        out
            (B, G) float32, C order; overwritten, zeros included.

        Notes
        -----
        O(B G + nnz), without the interpreter lock. Genes must lie below G, which a source checks when it loads.
        """
        if self.scale is None:
            _dense_values(self.indptr, self.genes, self.values, places, out)
        else:
            _dense_counts(self.indptr, self.genes, self.values, self.scale, places, out)

    def to_sparse(
        self, places: NDArray[np.int64], indptr: NDArray[np.int64], genes: NDArray[Any], values: NDArray[np.float32]
    ) -> None:
        """Write rows, log-normalised, into the arrays of a sparse block.

        Parameters
        ----------
        places
            (B,) rows of this buffer, in any order, repeats allowed; not checked.
        indptr
            (B + 1,) where each row goes in `genes` and `values`: read, not written.
        genes, values
            Written at ``indptr[0]:indptr[B]``.
        """
        if self.scale is None:
            copy_rows(self.indptr, self.genes, self.values, places, indptr, genes, values)
        else:
            _sparse_counts(self.indptr, self.genes, self.values, self.scale, places, indptr, genes, values)


def runs_of(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find runs of consecutive rows.

    Parameters
    ----------
    rows
        (n,) ascending, no two alike.

    Returns
    -------
    tuple of ndarray
        (R,) first row of each run, and (R,) the one after its last.
    """
    if rows.size == 0:
        return rows, rows
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return rows[np.concatenate(([0], breaks))], rows[np.concatenate((breaks - 1, [rows.size - 1]))] + 1


def rows_of(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """List the rows of some runs, one run after the other: the inverse of `runs_of`."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    rows: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return rows


def near_runs(
    starts: NDArray[np.int64], stops: NDArray[np.int64], gap: int, most: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Put runs together that are cheaper to read in one piece, with what lies between them.

    Parameters
    ----------
    starts, stops
        (R,) runs, in any order.
    gap
        Rows that may lie between two runs, which must ascend, at most less one.
    most
        Rows of a piece; a longer run is split.

    Returns
    -------
    list of (starts, stops)
        The runs of each piece, in the order given.
    """
    pieces: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    if (stops - starts > most).any():
        cuts = [np.append(np.arange(start, stop, most), stop) for start, stop in zip(starts, stops, strict=True)]
        starts = np.concatenate([cut[:-1] for cut in cuts])
        stops = np.concatenate([cut[1:] for cut in cuts])
    first = 0
    for run in range(1, starts.size + 1):
        is_near = run < starts.size and 0 <= starts[run] - stops[run - 1] < gap
        if not is_near or stops[run] - starts[first] > most:
            pieces.append((starts[first:run], stops[first:run]))
            first = run
    return pieces if starts.size else []


def read_rows(
    load: Callable[[NDArray[np.int64], NDArray[np.int64], RowBuffer], None],
    rows: NDArray[Any],
    n_cells: int,
    n_genes: int,
) -> CsrBlock:
    """Read any rows through the `load` of a source.

    Parameters
    ----------
    load
        Fills a buffer with runs of rows.
    rows
        (B,) integers, in any order, repeats allowed.
    n_cells, n_genes
        Of the source.

    Returns
    -------
    CsrBlock
        (B, G) log-normalised values, in the order of `rows`.

    Raises
    ------
    PlanError
        If a row is not in the source.
    """
    wanted, places = np.unique(check_rows(rows, n_cells), return_inverse=True)
    buffer = RowBuffer()
    load(*runs_of(wanted), buffer)
    indptr = np.concatenate((np.zeros(1, np.int64), np.cumsum(buffer.lengths(places))))
    genes, values = np.empty(indptr[-1], buffer.genes.dtype), np.empty(indptr[-1], np.float32)
    buffer.to_sparse(places, indptr, genes, values)
    return CsrBlock(indptr, genes, values, n_genes)


@intrinsic
def _prefetch(context: Any, array: Any, index: Any) -> Any:
    """Ask the processor to fetch the cache line of an element; does nothing to the result."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, index_type = signature.args
        made = context.make_array(array_type)(context, builder, arguments[0])
        element = builder.gep(made.data, [context.cast(builder, arguments[1], index_type, types.intp)])
        pointer = ir.PointerType(ir.IntType(8))
        number = ir.IntType(32)
        signature_of = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function: Any = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]  # numba is not typed
            builder.module, signature_of, "llvm.prefetch.p0i8"
        )
        builder.call(function, [builder.bitcast(element, pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), emit


# What was measured for the kernels, 455 counts of 2 bytes a cell, 3,000 genes, two threads, microseconds a cell and thread:
# 1.25 as it is; 1.63 without fetching rows ahead, for they lie anywhere in a window that exceeds the cache; 1.34 with a table
# of 8; 1.9 where a row is built in a small buffer and copied, or all rows are cleared first. Rows are sliced, since an index
# that starts at 0 needs no test for negative ones, which cost a third.


@numba.njit(nogil=True)
def _fetch_row(indptr: Any, genes: Any, values: Any, place: Any) -> None:  # pragma: no cover  compiled
    for at in range(indptr[place], indptr[place + 1], _LINE_BYTES // genes.itemsize):
        _prefetch(genes, at)  # type: ignore[call-arg]  # numba gives the context
    for at in range(indptr[place], indptr[place + 1], _LINE_BYTES // values.itemsize):
        _prefetch(values, at)  # type: ignore[call-arg]  # numba gives the context


@compiled
def _dense_counts(
    indptr: Any, genes: Any, counts: Any, scale: Any, places: Any, out: Any
) -> None:  # pragma: no cover  compiled
    table = np.empty(TABLE, np.float32)
    for i in range(places.size):
        if i + _ROWS_AHEAD < places.size:
            _fetch_row(indptr, genes, counts, places[i + _ROWS_AHEAD])
        place = places[i]
        row_genes = genes[indptr[place] : indptr[place + 1]]
        row_counts = counts[indptr[place] : indptr[place + 1]]
        fill_table(scale[place], table)
        row = out[i]
        row[:] = 0.0
        for at in range(row_genes.size):
            count = row_counts[at]
            row[row_genes[at]] = table[count] if count < TABLE else log_scaled(count, scale[place])


@compiled
def _dense_values(indptr: Any, genes: Any, values: Any, places: Any, out: Any) -> None:  # pragma: no cover  compiled
    for i in range(places.size):
        if i + _ROWS_AHEAD < places.size:
            _fetch_row(indptr, genes, values, places[i + _ROWS_AHEAD])
        place = places[i]
        row_genes = genes[indptr[place] : indptr[place + 1]]
        row_values = values[indptr[place] : indptr[place + 1]]
        row = out[i]
        row[:] = 0.0
        for at in range(row_genes.size):
            row[row_genes[at]] = row_values[at]


@compiled
def _sparse_counts(
    indptr: Any, genes: Any, counts: Any, scale: Any, places: Any, targets: Any, out_genes: Any, out_values: Any
) -> None:  # pragma: no cover  compiled
    table = np.empty(TABLE, np.float32)
    for i in range(places.size):
        if i + _ROWS_AHEAD < places.size:
            _fetch_row(indptr, genes, counts, places[i + _ROWS_AHEAD])
        place = places[i]
        row_genes = genes[indptr[place] : indptr[place + 1]]
        row_counts = counts[indptr[place] : indptr[place + 1]]
        fill_table(scale[place], table)
        out_genes[targets[i] : targets[i + 1]] = row_genes
        to_values = out_values[targets[i] : targets[i + 1]]
        for at in range(row_genes.size):
            count = row_counts[at]
            to_values[at] = table[count] if count < TABLE else log_scaled(count, scale[place])


@compiled
def copy_rows(
    indptr: Any, genes: Any, values: Any, places: Any, targets: Any, out_genes: Any, out_values: Any
) -> None:  # pragma: no cover  compiled
    """Copy rows as they are to ``targets[i]:targets[i + 1]``."""
    for i in range(places.size):
        place = places[i]
        out_genes[targets[i] : targets[i + 1]] = genes[indptr[place] : indptr[place + 1]]
        out_values[targets[i] : targets[i + 1]] = values[indptr[place] : indptr[place + 1]]
