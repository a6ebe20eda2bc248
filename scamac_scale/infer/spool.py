"""Rows that arrive in any order, kept on disk until all are there."""

from __future__ import annotations

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
        New file; all of its space is taken at once, so that a full disk is an error here and not later.
    n_rows, width
        Of the matrix.

    Raises
    ------
    OSError
        If there is no room.
    """

    def __init__(self, path: Path, n_rows: int, width: int) -> None:
        self._path = path
        self._shape = n_rows, width
        with path.open("wb") as file:
            if n_rows * width and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, 4 * n_rows * width)
            file.truncate(4 * n_rows * width)

    def write(self, rows: IntArray, block: FloatArray) -> None:
        """Write some rows. The file is mapped for this call only, so what was written does not count as memory."""
        mapped = np.memmap(self._path, np.float32, "r+", shape=self._shape)
        mapped[rows] = block

    def blocks(self, n_rows: int) -> Iterator[tuple[int, FloatArray]]:
        """Give all rows in order, `n_rows` at a time, each with the number of its first."""
        for start in range(0, self._shape[0], n_rows):
            mapped = np.memmap(self._path, np.float32, "r", shape=self._shape)
            yield start, np.array(mapped[start : start + n_rows])

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink()
