"""The clusters of all cells in all members of the consensus: a table of small integers, on disk where it is large."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.buffer import near_runs, rows_of, runs_of
from scamac_scale.durable.atomic import writing
from scamac_scale.durable.digests import sha256_of_all
from scamac_scale.durable.rows import RowFile
from scamac_scale.errors import StoreError
from scamac_scale.host.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray

HELD_BYTES = 2**24
"""Size up to which a table is kept in memory."""
BLOCK_BYTES = 2**22
TABLE_CODES = 2**12
"""Codes of the columns that are counted against one another at a time: a table of 64 MiB."""
GAP_BYTES = 2**11
"""Bytes between two runs of rows that cost less to read than another call to the system."""


class CodeTable:
    """An (N, R) table of codes: in memory while it is small, else in a file.

    Parameters
    ----------
    n_cells
        N.
    sizes
        (R,) number of codes of each column; they count from 0.
    path
        The file, which several ranks may write and a later process may take up; None takes an unnamed one, if any, that is gone when
        the process ends.

    Attributes
    ----------
    known_digest
        Of the complete table, for whoever takes it up; empty before.

    Raises
    ------
    OutputError
        If it cannot be written.

    Notes
    -----
    One byte per code while no column has more than 256. Memory does not grow with N beyond `HELD_BYTES`.
    """

    def __init__(self, n_cells: int, sizes: IntArray, path: Path | None = None) -> None:
        self.n_cells = n_cells
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._dtype = np.min_scalar_type(int(self.sizes.max()) - 1)
        self._row_bytes = self.sizes.size * self._dtype.itemsize
        self._is_small = n_cells * self._row_bytes <= HELD_BYTES
        self._path = path
        self._folder = path.parent if path else Path(tempfile.gettempdir())
        self._held: NDArray[Any] | None = None
        self._file: RowFile | None = None
        self.known_digest = ""
        if path is None and self._is_small:
            self._held = np.zeros((n_cells, self.sizes.size), dtype=self._dtype)
            return
        with writing(self._folder):
            if path is not None:
                path.touch()
            self._file = RowFile(path or self._folder, self.sizes.size, self._dtype)

    @property
    def n_bytes(self) -> int:
        """Size of the complete table, and of its file."""
        return self.n_cells * self._row_bytes

    def flush(self) -> None:
        """Force what this process wrote to the disk."""
        if self._file is not None:
            with writing(self._folder):
                self._file.flush()

    def finish(self) -> None:
        """See what other ranks have written, and hold a small table in memory; after all ranks have flushed."""
        if self._path is None or self._file is None:
            return
        with writing(self._folder):
            self._file.reopen()
            size = self._file.n_bytes
            if size != self.n_bytes:
                raise OSError(errno.EIO, f"it has {size} bytes rather than {self.n_bytes}")
        self._held = self._block(0, self.n_cells) if self._is_small else None

    def digest(self, first: int = 0, stop: int | None = None) -> str:
        """SHA-256 of the codes of all rows, or of `first` to `stop` - 1."""
        stop = self.n_cells if stop is None else stop
        n_rows = max(1, BLOCK_BYTES // self._row_bytes)
        starts = range(first, stop, n_rows)
        return sha256_of_all(self._checked(start, min(start + n_rows, stop)) for start in starts)

    def is_whole(self) -> bool:
        """Tell whether the file is as long as the table at least, so that any row can be read."""
        return self._file is None or self._file.n_bytes >= self.n_bytes

    def cut(self) -> None:
        """Shorten a file that was longer before; on one rank, when the others do not write."""
        if self._path is not None:
            with writing(self._folder):
                os.truncate(self._path, self.n_bytes)

    def _checked(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows, and refuse codes that no column has: what counts them does not look."""
        block = self._block(start, stop)
        if (block.max(axis=0) >= self.sizes).any():
            raise StoreError(
                f"{self._path or 'the table of codes'} holds codes that no clustering has; start a new run."
            )
        return block

    def write(self, rows: IntArray, codes: IntArray) -> None:
        """Write (n, R) codes of (n,) ascending rows."""
        if self._held is not None:
            self._held[rows] = codes
            return
        assert self._file is not None
        with writing(self._folder):
            self._file.write(rows, codes)

    def read(self, rows: IntArray) -> NDArray[Any]:
        """(n, R) codes of (n,) rows, in any order."""
        if self._held is not None:
            return self._held[rows]
        order = np.argsort(rows, kind="stable")
        ordered = np.asarray(rows, dtype=np.int64)[order]
        codes = np.empty((len(ordered), self.sizes.size), dtype=self._dtype)
        at = 0
        pieces = near_runs(*runs_of(ordered), max(1, GAP_BYTES // self._row_bytes), BLOCK_BYTES // self._row_bytes)
        for starts, stops in pieces:
            first = int(starts[0])
            found = self._block(first, int(stops[-1]))[rows_of(starts, stops) - first]
            codes[order[at : at + len(found)]] = found
            at += len(found)
        return codes

    def _block(self, start: int, stop: int) -> NDArray[Any]:
        if self._held is not None:
            return self._held[start:stop]
        assert self._file is not None
        return self._file.read(start, stop)

    def square_of_shares(self, shares: NDArray[np.float64], n_threads: int = 1) -> float:
        """Sum over all ordered pairs of cells of the squared share of columns in which the two have the same code.

        Parameters
        ----------
        shares
            (R,) weights of the columns, of sum 1.
        n_threads
            Threads that count.

        Returns
        -------
        float
            ||U^T U||^2 of Eq. (15) for the stacked one-hot codes, each column times the root of its share.

        Notes
        -----
        O(N R^2 / 2): for each two columns the table of how many cells have which two codes, integers. The square of an entry
        counts with the product of the two shares. Very many codes are counted in several passes.
        """
        offsets = np.concatenate(([0], np.cumsum(self.sizes)))
        groups = self._groups()
        total = 0.0
        for index, (first, last) in enumerate(groups):
            for other, stop in groups[index:]:
                tables = self._tables((first, last, other, stop), offsets, n_threads)
                rows = np.add.reduceat(tables.astype(np.float64) ** 2, offsets[first:last] - offsets[first], axis=0)
                sums = np.add.reduceat(rows, offsets[other:stop] - offsets[other], axis=1)  # zero left of the diagonal
                twice = np.where(np.arange(first, last)[:, None] == np.arange(other, stop), 1.0, 2.0)
                total += float((sums * twice * np.outer(shares[first:last], shares[other:stop])).sum())
        return total

    def _groups(self) -> list[tuple[int, int]]:
        """Cut the columns into runs with at most `TABLE_CODES` codes, so that a table of two runs stays small."""
        groups = [(0, 1)]
        for column in range(1, self.sizes.size):
            first = groups[-1][0]
            if self.sizes[first : column + 1].sum() <= TABLE_CODES:
                groups[-1] = (first, column + 1)
            else:
                groups.append((column, column + 1))
        return groups

    def _tables(self, columns: tuple[int, int, int, int], offsets: NDArray[np.int64], n_threads: int) -> NDArray[Any]:
        """How many cells have which two codes, for columns `first` to `last` - 1 with `other` to `stop` - 1."""
        first, last, other, stop = columns
        shape = (int(offsets[last] - offsets[first]), int(offsets[stop] - offsets[other]))
        tables = np.zeros(shape, dtype=np.int32 if self.n_cells < 2**31 else np.int64)
        n_rows = max(1, BLOCK_BYTES // self._row_bytes)
        with ThreadPoolExecutor(n_threads) as pool:
            for start in range(0, self.n_cells, n_rows):
                codes = np.ascontiguousarray(self._block(start, min(start + n_rows, self.n_cells)).T)
                # Every thread has left columns, and so rows of the tables, of its own.
                count = partial(_count_pairs, codes, offsets, np.array(columns), n_threads, tables)
                list(pool.map(count, range(n_threads)))
        return tables

    def close(self) -> None:
        """Close the file, if there is one; an unnamed one is gone then."""
        if self._file is not None:
            self._file.close()


@compiled
def _count_pairs(
    codes: NDArray[Any],
    offsets: NDArray[np.int64],
    columns: NDArray[np.int64],
    n_threads: int,
    tables: NDArray[Any],
    thread: int,
) -> None:
    """Add the cells of (R, n) codes to the tables of every two columns.

    Columns outside and a table of its own for each two, so that what is counted in stays in the nearest cache: .8 us a cell for
    48 columns of 50 codes, where counting in the large table takes 1.2.
    """
    first, last, other, stop = columns
    for left in range(first + thread, last, n_threads):
        low, height = offsets[left] - offsets[first], offsets[left + 1] - offsets[left]
        for right in range(max(left, other), stop):
            high, width = offsets[right] - offsets[other], offsets[right + 1] - offsets[right]
            own = np.zeros((height, width), dtype=np.int32)
            for cell in range(codes.shape[1]):
                own[codes[left, cell], codes[right, cell]] += 1
            tables[low : low + height, high : high + width] += own
