"""Puts rows that come as a stream into a random order, in bounded memory.

Two passes, as of Rao (1961) and Sandelius (1962): the permutation is drawn first, and the new order is cut into buckets of
consecutive places. The first pass deals the rows to the buckets, each a file that grows; the second reads one bucket after
the other and puts its rows in order. The result is the permutation itself, whatever the buckets are.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.buffer import copy_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

SHUFFLE_BYTES = 2**28
"""Bytes that are held at a time, about: a third are the rows that wait to be dealt, or one bucket; the rest are copies."""
OUT_ROWS = 8192
"""Rows that are handed out together."""

Rows = tuple["NDArray[np.int64]", "NDArray[Any]", "NDArray[Any]"]
"""Values per row, genes, values."""


class RowShuffler:
    """Takes rows in order, gives them in another.

    Parameters
    ----------
    order
        (N,) the row of the input that comes first, second, ...: a permutation.
    folder
        New folder for the buckets; the caller removes it. Made only if the rows exceed memory.
    row_bytes
        Bytes of an average row, or a guess: decides how many buckets there are.
    memory_bytes
        What is held at a time, about.

    Notes
    -----
    Memory is `memory_bytes` and 16 bytes per row; the disk holds each row once more until the end.
    """

    def __init__(
        self, order: NDArray[np.int64], folder: Path, row_bytes: float, memory_bytes: int = SHUFFLE_BYTES
    ) -> None:
        self._place = np.empty_like(order)
        self._place[order] = np.arange(order.size)
        self._folder = folder
        self._limit = max(memory_bytes // 3, 1)
        self._bucket_rows = max(1, int(self._limit / max(row_bytes, 1.0)))
        self.n_buckets = -(-order.size // self._bucket_rows)
        self._pending: list[Rows] = []
        self._n_bytes = 0
        self._n_rows = 0  # seen
        self._n_dealt = 0

    def append(self, lengths: NDArray[np.int64], genes: NDArray[Any], values: NDArray[Any]) -> None:
        """Take the next rows."""
        self._pending.append((lengths, genes, values))
        self._n_rows += lengths.size
        self._n_bytes += lengths.nbytes + genes.nbytes + values.nbytes
        if self.n_buckets > 1 and self._n_bytes >= self._limit:
            self._deal()

    def rows(self) -> Iterator[Rows]:
        """Give all rows in the new order, `OUT_ROWS` at a time."""
        if self.n_buckets > 1:
            _log.info("shuffling %d rows through %d buckets on disk", self._n_rows, self.n_buckets)
            self._deal()
            for number in range(self.n_buckets):
                path = self._path(number)
                places, rows = _read_bucket(path)
                path.unlink()  # the disk need not hold all rows a second time to the end
                yield from _in_order(places, rows)
        elif self._pending:
            rows, self._pending = _joined(self._pending), []
            yield from _in_order(self._place[: self._n_rows], rows)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.npy"

    def _deal(self) -> None:
        """Append what is pending to the buckets; the part of a bucket is four arrays, one after the other."""
        if not self._pending:
            return
        self._folder.mkdir(exist_ok=True)
        lengths, genes, values = _joined(self._pending)
        self._pending, self._n_bytes = [], 0
        places = self._place[self._n_dealt : self._n_dealt + lengths.size]
        self._n_dealt += lengths.size
        buckets = places // self._bucket_rows
        order = np.argsort(buckets, kind="stable")
        lengths, genes, values = _picked((lengths, genes, values), order)
        places, buckets = places[order], buckets[order]
        ends = np.concatenate(([0], np.cumsum(lengths)))
        edges = np.searchsorted(buckets, np.arange(self.n_buckets + 1))
        for number in np.flatnonzero(np.diff(edges)):
            rows = slice(edges[number], edges[number + 1])
            entries = slice(ends[edges[number]], ends[edges[number + 1]])
            with self._path(int(number)).open("ab") as file:
                for array in (places[rows], lengths[rows], genes[entries], values[entries]):
                    np.save(file, array, allow_pickle=False)


def _read_bucket(path: Path) -> tuple[NDArray[np.int64], Rows]:
    places: list[NDArray[np.int64]] = []
    parts: list[Rows] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            places.append(np.load(file, allow_pickle=False))
            parts.append((np.load(file), np.load(file), np.load(file)))
    return np.concatenate(places), _joined(parts)


def _joined(parts: list[Rows]) -> Rows:
    lengths, genes, values = zip(*parts, strict=True)
    return np.concatenate(lengths), np.concatenate(genes), np.concatenate(values)


def _in_order(places: NDArray[np.int64], rows: Rows) -> Iterator[Rows]:
    order = np.argsort(places)
    for start in range(0, order.size, OUT_ROWS):
        yield _picked(rows, order[start : start + OUT_ROWS])


def _picked(rows: Rows, wanted: NDArray[np.int64]) -> Rows:
    """Rows in the order of `wanted`."""
    lengths, genes, values = rows
    indptr = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    picked = lengths[wanted]
    targets = np.concatenate((np.zeros(1, np.int64), np.cumsum(picked)))
    out = np.empty(targets[-1], genes.dtype), np.empty(targets[-1], values.dtype)
    copy_rows(indptr, genes, values, wanted, targets, *out)
    return picked, *out
