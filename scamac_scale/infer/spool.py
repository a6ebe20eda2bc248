"""Rows that arrive in any order, kept on disk until all are there."""

from __future__ import annotations

import errno
import os
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
    path
        New file.
    n_rows, width
        Of the matrix.

    Notes
    -----
    Written by system calls and not through mapped memory: a full disk is then an OSError, and not the end of the process.
    """

    def __init__(self, path: Path, n_rows: int, width: int) -> None:
        self._path = path
        self._n_rows, self._width = n_rows, width
        self._file = path.open("w+b", buffering=0)

    def write(self, rows: IntArray, block: FloatArray) -> None:
        """Write some rows."""
        row_bytes = 4 * self._width
        data = np.ascontiguousarray(block, dtype=np.float32).data.cast("B")
        for at, row in enumerate(rows.tolist()):
            piece = data[at * row_bytes : (at + 1) * row_bytes]
            if os.pwrite(self._file.fileno(), piece, row * row_bytes) != row_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the system wrote what still had room

    def blocks(self, n_rows: int) -> Iterator[tuple[int, FloatArray]]:
        """Give all rows in order, `n_rows` at a time, each with the number of its first."""
        for start in range(0, self._n_rows, n_rows):
            count = min(n_rows, self._n_rows - start) * self._width
            block = np.fromfile(self._path, np.float32, count=count, offset=4 * start * self._width)
            yield start, block.reshape(-1, self._width)

    def remove(self) -> None:
        """Close and remove the file."""
        self.close()
        self._path.unlink()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
