"""Rows that arrive in any order, kept on disk until all are there."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.arrays import FloatArray, IntArray


class RowSpool:
    """A float32 matrix in a file of its own, written by rows in any order and read back in order.

    Parameters
    ----------
    folder
        Where the file lies. It has no name there: it is gone when it is closed, and when the process ends or is killed.
    n_rows, width
        Of the matrix.

    Notes
    -----
    Written by system calls and not through mapped memory: a full disk is then an OSError, and not the end of the process.
    """

    def __init__(self, folder: Path, n_rows: int, width: int) -> None:
        self._n_rows, self._width = n_rows, width
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by `close`

    def write(self, rows: IntArray, block: FloatArray) -> None:
        """Write some rows, in any order."""
        if len(rows) == 0:
            return
        row_bytes = 4 * self._width
        data = np.ascontiguousarray(block, dtype=np.float32).data.cast("B")
        ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows))  # of runs of rows that follow one another
        for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
            piece = data[start * row_bytes : end * row_bytes]
            if os.pwrite(self._file.fileno(), piece, int(rows[start]) * row_bytes) != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the system wrote what still had room

    def read(self, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` - 1, (n, width) float32."""
        row_bytes = 4 * self._width
        block = np.empty((stop - start, self._width), np.float32)
        if start == stop:
            return block
        if os.preadv(self._file.fileno(), [block.data.cast("B")], start * row_bytes) != block.nbytes:
            raise OSError(errno.EIO, "a temporary file is shorter than it was written")
        return block

    def blocks(self, n_rows: int) -> Iterator[tuple[int, FloatArray]]:
        """Give all rows in order, `n_rows` at a time, each with the number of its first."""
        for start in range(0, self._n_rows, n_rows):
            yield start, self.read(start, min(start + n_rows, self._n_rows))

    def close(self) -> None:
        """Close the file, which removes it."""
        self._file.close()
