"""Rows that arrive in any order, from several processes, kept in a file until all are there."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from scamac_scale.cells.arrays import FloatArray, IntArray


class RowFile:
    """A matrix in a file of its own, written by rows in any order, by several processes, and read back in order.

    Parameters
    ----------
    path
        The file, which must exist; it stays. A folder makes a file without a name: it is gone when it is closed, and when the
        process ends or is killed.
    width
        Columns.
    dtype
        Of all values.

    Attributes
    ----------
    row_bytes
        Size of a row.

    Notes
    -----
    Written by system calls and not through mapped memory: a full disk is then an OSError, and not the end of the process. A named file
    is opened for writing only: a client of a network file system that had read a page might write it back as a whole, with what
    another rank has written since.
    """

    def __init__(self, path: Path, width: int, dtype: DTypeLike = np.float32) -> None:
        self._path, self._width, self._dtype = path, width, np.dtype(dtype)
        self.row_bytes = width * self._dtype.itemsize
        self._reader: Any = None  # Any: typed by its wrapper otherwise
        if path.is_dir():
            self._writer: Any = tempfile.TemporaryFile(dir=path, buffering=0)  # noqa: SIM115  closed by `close`
            self._reader = self._writer
        else:
            self._writer = _opened(path, os.O_WRONLY)

    def write(self, rows: IntArray, block: NDArray[Any]) -> None:
        """Write some rows, in any order."""
        if len(rows) == 0:
            return
        row_bytes, writer = self.row_bytes, self._writer.fileno()
        data = np.ascontiguousarray(block, dtype=self._dtype).data.cast("B")
        ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows))  # of runs of rows that follow one another
        for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
            at, stop, place = start * row_bytes, end * row_bytes, int(rows[start]) * row_bytes
            while (written := os.pwrite(writer, data[at:stop], place)) != stop - at:
                at, place = at + written, place + written  # what still had room; the rest raises

    def flush(self) -> None:
        """Force what this process wrote to the disk; a file system over the network shows it to others then."""
        os.fsync(self._writer.fileno())

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` - 1, (n, width). What others wrote is seen if they flushed it before the first call, or `reopen`."""
        block = np.empty((stop - start, self._width), self._dtype)
        if start == stop:
            return block
        if self._reader is None:
            self._reader = _opened(self._path, os.O_RDONLY)
        if os.preadv(self._reader.fileno(), [block.data.cast("B")], start * self.row_bytes) != block.nbytes:
            raise OSError(errno.EIO, "a temporary file is shorter than it was written")
        return block

    def reopen(self) -> None:
        """Close and open a named file: a file system over the network shows what others have flushed."""
        self.close()
        self._writer = _opened(self._path, os.O_WRONLY)

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._writer.fileno()).st_size

    def close(self) -> None:
        """Close the file, which removes one without a name."""
        self._writer.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class HeldRows:
    """What a `RowFile` is, in memory, for few rows.

    Parameters
    ----------
    n_rows, width
        Of the matrix.
    dtype
        Of all values.
    """

    def __init__(self, n_rows: int, width: int, dtype: DTypeLike = np.float32) -> None:
        self._block = np.zeros((n_rows, width), dtype)

    def write(self, rows: IntArray, block: NDArray[Any]) -> None:
        """Write some rows, in any order."""
        self._block[rows] = block

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` - 1, (n, width); not to be changed."""
        return self._block[start:stop]

    def close(self) -> None:
        """Nothing to give back."""


def _opened(path: Path, flags: int) -> Any:  # Any: typed by its wrapper otherwise
    mode = "wb" if flags == os.O_WRONLY else "rb"  # of a number it neither makes nor empties the file
    return os.fdopen(os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW), mode, buffering=0)


class FieldFile:
    """Several float32 matrices of the same rows, side by side in one `RowFile`: a row is one call to the system, not one for each.

    Parameters
    ----------
    path
        As of `RowFile`.
    widths
        Name of each matrix to its columns.
    """

    def __init__(self, path: Path, widths: dict[str, int]) -> None:
        ends = np.cumsum(list(widths.values())).tolist()
        self._columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
        self._rows = RowFile(path, ends[-1])

    def write(self, rows: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Write some rows of all matrices, in any order."""
        whole = [blocks[name] for name in self._columns]
        self._rows.write(rows, whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1))

    def read(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` - 1 of one matrix; holds those of all meanwhile."""
        return np.ascontiguousarray(self._rows.read(start, stop)[:, self._columns[name]])

    def flush(self) -> None:
        """As of `RowFile`."""
        self._rows.flush()

    def close(self) -> None:
        """As of `RowFile`."""
        self._rows.close()
