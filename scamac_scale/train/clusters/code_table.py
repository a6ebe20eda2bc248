"""The landmark of every cell: one small integer a cell, on disk where they are many."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.buffer import near_runs, rows_of, runs_of
from scamac_scale.durable.atomic import writing
from scamac_scale.durable.digests import sha256_of_all
from scamac_scale.durable.rows import RowFile
from scamac_scale.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray

HELD_BYTES = 2**24
"""Size up to which a table is kept in memory."""
BLOCK_BYTES = 2**22
GAP_BYTES = 2**11
"""Bytes between two runs of rows that cost less to read than another call to the system."""


class CodeTable:
    """One code for each of N cells: in memory while they are few, else in a file.

    Parameters
    ----------
    n_cells
        N.
    n_codes
        They count from 0.
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
    One or two bytes a cell, up to 65,536 codes. Memory does not grow with N beyond `HELD_BYTES`.
    """

    def __init__(self, n_cells: int, n_codes: int, path: Path | None = None) -> None:
        self.n_cells, self.n_codes = n_cells, n_codes
        self._dtype = np.min_scalar_type(max(n_codes, 1) - 1)
        self._is_small = self.n_bytes <= HELD_BYTES
        self._path = path
        self._folder = path.parent if path else Path(tempfile.gettempdir())
        self._held: NDArray[Any] | None = None
        self._file: RowFile | None = None
        self.known_digest = ""
        if path is None and self._is_small:
            self._held = np.zeros(n_cells, dtype=self._dtype)
            return
        with writing(self._folder):
            if path is not None:
                path.touch()
            self._file = RowFile(path or self._folder, 1, self._dtype)

    @property
    def n_bytes(self) -> int:
        """Size of the complete table, and of its file."""
        return self.n_cells * self._dtype.itemsize

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
        n_rows = BLOCK_BYTES // self._dtype.itemsize
        starts = range(first, stop, n_rows)
        return sha256_of_all(self._checked(start, min(start + n_rows, stop)) for start in starts)

    def is_whole(self) -> bool:
        """Tell whether the file is as long as the table at least, so that any row can be read."""
        return self._file is None or self._file.n_bytes >= self.n_bytes

    def cut(self) -> None:
        """Shorten a file that was longer before; on one rank, when the others do not write. A shorter one stays: something is lost."""
        if self._path is not None and self.is_whole():
            with writing(self._folder):
                os.truncate(self._path, self.n_bytes)

    def _checked(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows, and refuse codes that there are not: what takes them for places does not look."""
        block = self._block(start, stop)
        if int(block.max()) >= self.n_codes:
            raise StoreError(f"{self._path or 'the table of codes'} holds codes that no landmark has; start a new run.")
        return block

    def write(self, rows: IntArray, codes: IntArray) -> None:
        """Write (n,) codes of (n,) ascending rows."""
        if self._held is not None:
            self._held[rows] = codes
            return
        assert self._file is not None
        with writing(self._folder):
            self._file.write(rows, codes[:, None])

    def read(self, rows: IntArray) -> NDArray[Any]:
        """(n,) codes of (n,) rows, in any order."""
        if self._held is not None:
            return self._held[rows]
        order = np.argsort(rows, kind="stable")
        ordered = np.asarray(rows, dtype=np.int64)[order]
        codes = np.empty(len(ordered), dtype=self._dtype)
        at = 0
        size = self._dtype.itemsize
        pieces = near_runs(*runs_of(ordered), GAP_BYTES // size, BLOCK_BYTES // size)
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
        return self._file.read(start, stop).ravel()

    def close(self) -> None:
        """Close the file, if there is one; an unnamed one is gone then."""
        if self._file is not None:
            self._file.close()
