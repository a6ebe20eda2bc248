"""An out-of-core transpose: values that come in any order, as rows of cells, in memory that does not grow with them.

One pass over the values deals them into buckets, each of a run of cells; then every bucket is sorted by itself. Buckets and the result lie
in scratch files that have no name, so that nothing is left behind, whatever ends the process. What is small stays in memory.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.durable.atomic import check_room, writing
from scamac_scale.errors import InputError, OutputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.csr import Doubles, checked_block
from scamac_scale.ingestion.raw import closing
from scamac_scale.ingestion.rows import SparseRows, value_dtype
from scamac_scale.progress import track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from scipy import sparse

logger = logging.getLogger(__name__)

CHUNK_VALUES = 2**21
"""Values that a source hands out at a time, about."""
BUCKET_VALUES = 2**22
"""Of a bucket, about, which is sorted in memory; a matrix of no more values stays there."""
MOST_BUCKETS = 512
"""Each is an open file."""
NS_PER_VALUE = 250
"""What a value costs, about, on one core."""


class Entries(NamedTuple):
    """Some values of a matrix, in any order, and where they belong; both places were checked.

    Attributes
    ----------
    cells, genes
        (n,) row and column of each, int64.
    values
        (n,).
    """

    cells: NDArray[np.int64]
    genes: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Unsorted:
    """A matrix whose values do not lie by cells.

    Attributes
    ----------
    name
        Where it lies, for messages.
    shape
        (N, G).
    n_values
        So many come, at most.
    dtype
        Of the values, as stored.
    why
        To stand behind the name in the log, such as ``is stored by genes (CSC)``.
    read
        Hands all of them out, once from the beginning, in pieces of about `CHUNK_VALUES`.
    is_summed
        Whether several values of one place are meant to be summed; otherwise this is warned of.
    n_likely
        How many values are not zero, about, where that is less than `n_values`.
    """

    name: str
    shape: tuple[int, int]
    n_values: int
    dtype: np.dtype[Any]
    why: str
    read: Callable[[], Iterator[Entries]]
    is_summed: bool = False
    n_likely: int | None = None


@dataclass(eq=False)
class TransposedRows:
    """Rows of an `Unsorted` matrix, which is transposed when the first of them is read, once for all readers.

    Attributes
    ----------
    source
        Of the values.
    """

    source: Unsorted
    _rows: SparseRows | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        return value_dtype(self.source.dtype, self.source.name)

    @property
    def n_stored(self) -> int:
        """Values of the source."""
        return self.source.n_values

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive); the first call transposes.

        Raises
        ------
        InputError
            If the source is damaged.
        OutputError
            If there is no room for scratch files.
        """
        with self._lock:
            if self._rows is None:
                self._rows = transpose(self.source)
            rows = self._rows
        return rows.read(start, stop)

    def close(self) -> None:
        """Give back the scratch files."""
        with self._lock:
            rows, self._rows = self._rows, None
            if rows is not None:
                closing(rows.indices, rows.data)()


def transpose(source: Unsorted) -> SparseRows:
    """Sort the values of a matrix by cells.

    Parameters
    ----------
    source
        Of the values.

    Returns
    -------
    SparseRows
        Genes rise in each cell; several values of one place are summed, which a warning counts.

    Raises
    ------
    InputError
        If the source is damaged, or a sum does not fit the type of the values.
    OutputError
        If there is no room for scratch files.

    Notes
    -----
    Memory: about 100 bytes for each of `CHUNK_VALUES` and `BUCKET_VALUES`, and 8 for each cell. Disk: 8 to 14 bytes a value.
    """
    n_cells, n_genes = source.shape
    is_small = source.n_values <= BUCKET_VALUES
    n_likely = source.n_values if source.n_likely is None else source.n_likely
    n_buckets = 1 if is_small else min(-(-max(1, n_likely) // BUCKET_VALUES), _most_files(), max(1, n_cells))
    width = max(1, -(-n_cells // n_buckets))
    n_buckets = max(1, -(-n_cells // width))
    dtype = value_dtype(source.dtype, source.name)
    gene_type = np.dtype(np.uint16 if n_genes <= 2**16 else np.uint32)
    cell_type = np.dtype(np.uint16 if width <= 2**16 else np.uint32 if width <= 2**32 else np.uint64)
    record = np.dtype([("cell", cell_type), ("gene", gene_type), ("value", dtype)])
    if not is_small:
        _announce(source, n_likely, n_likely * (record.itemsize + 1))
    folder = Path(tempfile.gettempdir())
    with writing(folder), contextlib.ExitStack() as stack:
        files = [stack.enter_context(_scratch(is_small)) for _ in range(n_buckets)]
        genes, values = (stack.enter_context(_scratch(is_small)) for _ in range(2))
        _deal(source, files, width, record)
        doubles, indptr = Doubles(), np.zeros(n_cells + 1, np.int64)
        for number, file in enumerate(files):
            first = number * width
            for low, block in _sorted(file, record, min(width, n_cells - first), source, doubles, first):
                indptr[first + low + 1 : first + low + block.shape[0] + 1] = np.diff(block.indptr)
                genes.write(np.ascontiguousarray(block.indices, gene_type).data)
                values.write(np.ascontiguousarray(block.data, dtype).data)
            file.close()
        np.cumsum(indptr, out=indptr)
        parts = _Array(genes, gene_type, int(indptr[-1])), _Array(values, dtype, int(indptr[-1]))
    if doubles.n and not source.is_summed:
        doubles.tell(source.name)
    return SparseRows.check((indptr, *parts), source.shape, source.name)


def _most_files() -> int:
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        return MOST_BUCKETS // 4
    return max(1, min(MOST_BUCKETS, soft // 3)) if soft > 0 else MOST_BUCKETS


def _announce(source: Unsorted, n_values: int, n_bytes: int) -> None:
    """Say what it costs, before; refuse where the disk has no room."""
    folder = Path(tempfile.gettempdir())
    minutes = n_values * NS_PER_VALUE / 60e9
    logger.info(
        "%s %s: its %s values are sorted by cells once, in up to %.1f GB of scratch files in %s, which takes about %s",
        source.name,
        source.why,
        f"{n_values:,}",
        n_bytes / 1e9,
        folder,
        f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{max(1, round(60 * minutes))} seconds",
    )
    try:
        check_room(folder, n_bytes)
    except OutputError as error:
        raise OutputError(
            f"{source.name} {source.why}, and is sorted by cells first: {error} TMPDIR names it."
        ) from error


def _scratch(is_small: bool) -> IO[bytes]:
    return io.BytesIO() if is_small else tempfile.TemporaryFile(prefix="scamac-")


def _deal(source: Unsorted, files: list[IO[bytes]], width: int, record: np.dtype[Any]) -> None:
    """Write all values into the buckets of their cells, in the order in which they come."""
    n_left = source.n_values
    with track("sorting by cells", source.n_values, "values") as progress:
        for cells, genes, values in source.read():
            n_left -= len(values)
            if n_left < 0:
                raise InputError(
                    f"{source.name} holds more than the {source.n_values:,} values that it promises; the file is damaged."
                )
            bucket = cells // width
            entries = np.empty(len(values), record)
            entries["cell"], entries["gene"], entries["value"] = cells - bucket * width, genes, values
            if len(files) == 1:
                files[0].write(entries.view(np.uint8).data)
            else:
                order, bounds = _order(bucket, len(files))
                entries = entries[order]
                for number in np.flatnonzero(np.diff(bounds)):
                    files[number].write(entries[bounds[number] : bounds[number + 1]].view(np.uint8).data)
            progress.advance(len(values))


def _sorted(
    file: IO[bytes], record: np.dtype[Any], n_cells: int, source: Unsorted, doubles: Doubles, first: int
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Sort one bucket; one with far more values than others goes in several parts. Yields the first cell, and its cells."""
    n_values = file.tell() // record.itemsize
    if n_values <= 2 * BUCKET_VALUES:
        bounds = np.array([0, n_cells])
    else:
        counts = np.zeros(n_cells, np.int64)
        for entries in _pieces(file, record):
            counts += np.bincount(entries["cell"], minlength=n_cells)
        most = int(counts.argmax())
        if counts[most] > max(2 * BUCKET_VALUES, 2 * source.shape[1]):
            raise InputError(
                f"{source.name}: cell {first + most} has {counts[most]:,} values for {source.shape[1]:,} genes; the file is damaged."
            )
        part = np.concatenate([[0], np.cumsum(counts)]) // BUCKET_VALUES
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(part)) + 1, [n_cells]])
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if low == high:
            continue
        found = [piece[(piece["cell"] >= low) & (piece["cell"] < high)] for piece in _pieces(file, record)]
        entries = np.concatenate(found) if found else np.empty(0, record)
        order, indptr = _order(entries["cell"].astype(np.int64) - low, high - low)
        entries = entries[order]
        genes, values = entries["gene"].astype(np.int32 if source.shape[1] <= 2**31 else np.int64), entries["value"]
        yield (
            low,
            checked_block(
                indptr,
                genes,
                np.ascontiguousarray(values),
                source.shape[1],
                first_cell=first + low,
                name=source.name,
                doubles=doubles,
            ),
        )


def _pieces(file: IO[bytes], record: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    file.seek(0)
    while content := file.read(CHUNK_VALUES * record.itemsize):
        yield np.frombuffer(content, record)


def _order(keys: NDArray[np.int64], n_keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort by counting: the order, in which equal keys stay as they came, and (n_keys + 1,) where each key begins."""
    bounds = np.zeros(n_keys + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=n_keys), out=bounds[1:])
    order = np.empty(len(keys), np.int64)
    _place(keys, bounds[:-1].copy(), order)
    return order, bounds


@compiled
def _place(
    keys: NDArray[np.int64], places: NDArray[np.int64], order: NDArray[np.int64]
) -> None:  # pragma: no cover  compiled
    for at in range(len(keys)):
        key = keys[at]
        order[places[key]] = at
        places[key] += 1


class _Array:
    """One array in a file without a name, or in memory; slices are read from there, by any number of threads."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
        self.dtype, self.shape = dtype, (length,)
        self._held = np.frombuffer(file.getvalue(), dtype) if isinstance(file, io.BytesIO) else None
        if self._held is None:
            file.flush()
            self._handle = os.dup(file.fileno())
            self.close = weakref.finalize(self, os.close, self._handle)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        if self._held is not None:
            return self._held[start:stop]
        found = np.empty(max(0, stop - start), self.dtype)
        left, at = memoryview(found.view(np.uint8).data), start * self.dtype.itemsize
        while left:
            n_bytes = os.preadv(self._handle, [left[: 2**30]], at)
            if not n_bytes:
                raise InputError("a scratch file has lost its end; was its folder (TMPDIR) emptied? Begin anew.")
            left, at = left[n_bytes:], at + n_bytes
        return found
