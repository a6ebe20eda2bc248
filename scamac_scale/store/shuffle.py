"""Puts rows that come as a stream into a random order, in bounded memory.

Two passes, as of Rao (1961) and Sandelius (1962): the permutation is drawn first, and the new order is cut into buckets of
consecutive places. The first pass deals the rows to the buckets, each a file that grows; the second reads one bucket after
the other and puts its rows in order. The result is the permutation itself, whatever the buckets are.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.buffer import copy_rows
from scamac_scale.durable.atomic import flush
from scamac_scale.durable.faults import reach
from scamac_scale.store.journal import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    from numpy.typing import NDArray

    from scamac_scale.store.rows import Rows

_log = logging.getLogger(__name__)

DURABLE_SHARE = 4
"""Multiple of `memory_bytes` that is dealt between two times that the buckets are flushed: each bucket costs a flush."""
OUT_ROWS = 8192
"""Rows that are handed out together."""


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
        What is held at a time, about: a third are the rows that wait to be dealt, or one bucket; the rest are copies.

    Notes
    -----
    Memory is `memory_bytes` and 16 bytes per row; the disk holds each row once more until the end.
    """

    def __init__(self, order: NDArray[np.int64], folder: Path, row_bytes: float, memory_bytes: int) -> None:
        self._place = np.empty_like(order)
        self._place[order] = np.arange(order.size)
        self._folder = folder
        self._limit = max(memory_bytes // 3, 1)
        self._bucket_rows = max(1, int(self._limit / max(row_bytes, 1.0)))
        self.n_buckets = -(-order.size // self._bucket_rows)
        self._pending: list[Rows] = []
        self._n_bytes = 0
        self.n_dealt = 0
        self._n_loose = 0  # bytes dealt since `sizes`

    def append(self, lengths: NDArray[np.int64], genes: NDArray[Any], values: NDArray[Any]) -> None:
        """Take the next rows."""
        self._pending.append((lengths, genes, values))
        self._n_bytes += lengths.nbytes + genes.nbytes + values.nbytes
        if self.n_buckets > 1 and self._n_bytes >= self._limit:
            self._deal()

    def end(self) -> None:
        """Deal what is left, after the last rows."""
        if self.n_buckets > 1:
            self._deal()

    def rows(self, start: int = 0, is_out: Callable[[], None] | None = None) -> Iterator[Rows]:
        """Give the rows in the new order, `OUT_ROWS` at a time.

        Parameters
        ----------
        start
            Rows that are not asked for again: none, or as many as had been taken at a call of `is_out`.
        is_out
            Called when all rows of a bucket have been taken, before the bucket is removed.
        """
        self.end()
        if self.n_buckets > 1:
            _log.info("shuffling %d rows through %d buckets on disk", self.n_dealt, self.n_buckets)
            paths = [self._path(number) for number in range(-(-start // self._bucket_rows), self.n_buckets)]
            with ThreadPoolExecutor(1) as reader:  # reads a bucket while the caller writes the one before
                reads = (reader.submit(_read_bucket, path) for path in paths)
                following = next(reads, None)
                for path in paths:
                    assert following is not None
                    places, rows = following.result()
                    following = next(reads, None)
                    if is_out is None:
                        path.unlink()  # the disk need not hold all rows a second time to the end
                    yield from _in_order(places, rows)
                    if is_out is not None:
                        is_out()
                        path.unlink()
        elif self._pending:
            rows, self._pending = _joined(self._pending), []
            yield from _in_order(self._place[: rows[0].size], rows)

    @property
    def n_rows(self) -> int:
        """Rows N that are going to come."""
        return self._place.size

    @property
    def is_loose(self) -> bool:
        """Whether so much was dealt since `sizes` that it is time for it."""
        return not self._pending and self._n_loose >= DURABLE_SHARE * 3 * self._limit

    def sizes(self) -> NDArray[np.int64]:
        """Flush what was dealt to the disk, and tell the bytes of every bucket, for `restore`."""
        self._n_loose = 0
        paths = [self._path(number) for number in range(self.n_buckets)]
        for path in filter(Path.exists, paths):
            flush(path)
        if self._folder.exists():
            flush(self._folder)
        return np.array([path.stat().st_size if path.exists() else 0 for path in paths], np.int64)

    def restore(self, n_rows: int, sizes: NDArray[np.int64], start: int = 0) -> bool:
        """Go back to where the first `n_rows` rows were dealt.

        Parameters
        ----------
        n_rows
            `n_dealt` when `sizes` was called.
        sizes
            (n_buckets,) what `sizes` said.
        start
            As of `rows`.

        Returns
        -------
        bool
            Whether the buckets hold what they must.
        """
        self.n_dealt = n_rows
        if len(sizes) != self.n_buckets:
            return False
        first = -(-start // self._bucket_rows)
        for number, size in enumerate(sizes.tolist()):
            path = self._path(number)
            if number < first or not size:
                path.unlink(missing_ok=True)
            elif not cut(path, size):
                return False
        return True

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.npy"

    def _deal(self) -> None:
        """Append what is pending to the buckets; the part of a bucket is four arrays, one after the other."""
        if not self._pending:
            return
        self._folder.mkdir(exist_ok=True)
        lengths, genes, values = _joined(self._pending)
        self._n_loose += self._n_bytes
        self._pending, self._n_bytes = [], 0
        places = self._place[self.n_dealt : self.n_dealt + lengths.size]
        self.n_dealt += lengths.size
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
        reach("ingest.deal")


def _read_bucket(path: Path) -> tuple[NDArray[np.int64], Rows]:
    """Places, values per row, genes and values of all rows of a bucket, each read straight to where it stays."""
    with path.open("rb") as file:
        pieces = list(_pieces(file, path.stat().st_size))
        arrays = []
        for kind in range(4):
            own = pieces[kind::4]
            array = np.empty(sum(n for _, _, n in own), own[0][1])
            at = 0
            for offset, _, n in own:
                file.seek(offset)
                part: Any = array[at : at + n].view(np.uint8)  # Any: an array is a buffer, which its type does not say
                if file.readinto(part) != n * array.itemsize:
                    raise ValueError(f"{path} is shorter than it says")
                at += n
            arrays.append(array)
    places, lengths, genes, values = arrays
    return places, (lengths, genes, values)


def _pieces(file: BufferedReader, size: int) -> Iterator[tuple[int, np.dtype[Any], int]]:
    """Tell where the values of each array lie in a file of many, their type and number."""
    while file.tell() < size:
        np.lib.format.read_magic(file)
        (n,), _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
        yield offset, dtype, n
        file.seek(offset + n * dtype.itemsize)


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
