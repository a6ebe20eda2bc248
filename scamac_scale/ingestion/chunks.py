"""Chunks that are not there: zarr reads a lost file as fill values, without a word, and so does HDF5 a chunk that was never written.

zarr also leaves out, on purpose, chunks that hold nothing but the fill value; so a chunk that is not there may be meant. What an
array holds tells: stored values and genes of a CSR matrix, and names, are never all zeros or empty; codes and numbers may be, where
the chunks beside them agree.
"""

from __future__ import annotations

import itertools
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.chunk_files import ChunkFiles, chunk_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Array = Any
"""An h5py or zarr array."""

UNLIKELY = 1e-3
"""A chunk of fill values is taken as meant if a column like this one has so long a stretch with at least this probability."""
EXPECTED_VALUES = 20.0
"""Nor is a chunk of a dense matrix taken as meant that should hold so many values above zero, by other cells of the same genes."""
LOOKED_AT = 4
"""Chunks of the same genes that are read to tell."""
MOST_GENE_CHUNKS = 64
"""Of a dense matrix with gaps, that are looked at."""
MOST_COLUMNS = 200
"""Arrays of a table, of which the first chunk is read to tell whether its writer leaves out chunks of fill values."""
MOST_FILL_VALUES = 2**24
"""Of such a chunk."""
_ABSENT = np.iinfo(np.uint64).max
"""Place of a chunk that a shard does not hold."""


@dataclass(frozen=True)
class Gaps:
    """Chunks of an array that are not there.

    Attributes
    ----------
    n_chunks, n_missing
        Of the array.
    example
        The first of them: a file, or a place in the array.
    size
        Shape of a chunk.
    lost
        Grid of chunks, True where one is not there; None where it is not known, or too large to be true.
    is_meant_possible
        Whether a writer may leave out such chunks because they hold nothing but the fill value; see `Writer`.
    """

    n_chunks: int
    n_missing: int
    example: str
    size: tuple[int, ...] = ()
    lost: NDArray[np.bool_] | None = field(default=None, compare=False)
    is_meant_possible: bool = False

    def cells(self, n_cells: int) -> NDArray[np.bool_]:
        """(N,) whether a value of a one-dimensional array is in a chunk that is not there."""
        if self.lost is None or self.lost.ndim != 1:
            return np.ones(n_cells, dtype=bool)
        return np.repeat(self.lost, self.size[0])[:n_cells]


def find_gaps(array: Array) -> Gaps | None:
    """Look whether all chunks of an array are there; no value is read.

    Parameters
    ----------
    array
        Of h5py or zarr; others have no chunks.

    Returns
    -------
    Gaps or None
        None where nothing is missing.

    Notes
    -----
    A zarr array: one listing of its folder; the index of every shard. An HDF5 dataset: its number of chunks.
    """
    kind = type(array).__module__.split(".")[0]
    if 0 in tuple(getattr(array, "shape", None) or (1,)):
        return None
    if kind == "h5py":
        return _hdf5_gaps(array)
    return _zarr_gaps(array) if kind == "zarr" else None


def _hdf5_gaps(array: Array) -> Gaps | None:
    import h5py

    if array.shape is None or array.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return None
    if not array.chunks:
        is_there = array.id.get_storage_size() > 0
        return None if is_there else Gaps(1, 1, "none of it was ever written")
    n_chunks = math.prod(-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True))
    n_missing = n_chunks - array.id.get_num_chunks()
    return Gaps(n_chunks, n_missing, "they were never written") if n_missing > 0 else None


def _zarr_gaps(array: Array) -> Gaps | None:
    found = chunk_files(array)
    grid = getattr(array.metadata.chunk_grid, "chunk_shape", None)
    if found is None or grid is None:  # in memory, or chunks of uneven sizes
        return None
    files = set(found.names(len(array.shape)))
    counts = tuple(-(-n // size) for n, size in zip(array.shape, grid, strict=True))
    n_chunks = math.prod(counts)
    if n_chunks > 2 * len(files) + 2**20:  # then nearly all are missing, and a grid of them need not fit into memory
        first = next(key for key in _keys(array, counts) if key not in files)
        return Gaps(n_chunks, n_chunks - len(files), f"{found.place}/{first}")
    is_lost = np.fromiter((key not in files for key in _keys(array, counts)), dtype=bool, count=n_chunks)
    lost, size = is_lost.reshape(counts), tuple(grid)
    example = ""
    if is_lost.any():
        example = next(itertools.islice(_keys(array, counts), int(np.argmax(is_lost)), None))
    if getattr(array, "shards", None):
        lost, size = _within_shards(array, found, lost), tuple(array.chunks)
        if lost.any() and not example:
            example = f"chunk {', '.join(map(str, np.argwhere(lost)[0]))}, within its shard"
    n_missing = int(lost.sum())
    if not n_missing:
        return None
    where = f"{found.place}/{example}" if is_lost.any() else example
    return Gaps(lost.size, n_missing, where, size, lost, getattr(array, "fill_value", None) is not None)


def _keys(array: Array, counts: tuple[int, ...]) -> Iterator[str]:
    return map(array.metadata.encode_chunk_key, itertools.product(*map(range, counts)))


def _within_shards(array: Array, found: ChunkFiles, lost: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Chunks that are not there, those within shards that are there too."""
    per_shard = tuple(shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True))
    inner = np.ones(tuple(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True)), dtype=bool)
    codec = array.metadata.codecs[0]
    n_index = 16 * math.prod(per_shard)
    n_check = 4 * sum(type(part).__name__ == "Crc32cCodec" for part in codec.index_codecs)
    is_known = all(type(part).__name__ in ("BytesCodec", "Crc32cCodec") for part in codec.index_codecs)
    for at in np.argwhere(~lost):
        place = tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, per_shard, strict=True))
        present = np.ones(per_shard, dtype=bool)
        name = array.metadata.encode_chunk_key(tuple(map(int, at)))
        size = found.size(name)
        is_at_end = "end" in str(codec.index_location) and size >= n_index + n_check
        index = np.frombuffer(found.read(name, size - n_index - n_check if is_at_end else 0, n_index), dtype=np.uint8)
        index = index[: len(index) // 8 * 8].view("<u8")
        if is_known and index.size == 2 * math.prod(per_shard):  # else zarr says what is wrong with it
            present = (index.reshape(*per_shard, 2) != _ABSENT).all(axis=-1)
        part = inner[place]
        part[...] = ~present[tuple(map(slice, part.shape))]
    return inner


class Writer:
    """Who wrote the tables of a file; what is known of it is looked up once, when it is first asked for."""

    def __init__(self) -> None:
        self._writes_fill: bool | None = None

    def writes_fill(self, array: Array) -> bool:
        """Whether it wrote a chunk of fill values, as of a column that is False everywhere; then it leaves out none.

        Parameters
        ----------
        array
            Of zarr, in a folder; every call of one instance names an array of the same file.
        """
        if self._writes_fill is None:
            self._writes_fill = _some_fill_is_written(array.store_path.store)
        return self._writes_fill


def _some_fill_is_written(store: Any) -> bool:  # Any: of zarr
    import zarr

    whole: Any = zarr.open_group(store, mode="r")
    for part in ("obs", "var"):
        members = whole[part].members(max_depth=None) if isinstance(whole.get(part), zarr.Group) else ()
        for _, other in itertools.islice(members, MOST_COLUMNS):
            if isinstance(other, zarr.Array) and other.ndim == 1 and _begins_with_written_fill(other):
                return True
    return False


def _begins_with_written_fill(array: Array) -> bool:
    size = array.metadata.chunk_grid.chunk_shape[0]
    if (
        not array.shape[0]
        or getattr(array, "shards", None)
        or size > MOST_FILL_VALUES
        or array.dtype.kind not in "biuf"
    ):
        return False
    found = chunk_files(array)
    first = array.metadata.encode_chunk_key((0,))
    return (
        found is not None and first in set(found.names(1)) and bool(_equals_fill(np.asarray(array[:size]), array).all())
    )


# ------------------------------------------------------------------ what is to be thought of it


def refuse_gaps(array: Array, where: str) -> None:
    """Refuse an array that no chunk of fill values can be part of, if a chunk is missing.

    Parameters
    ----------
    array
        Of h5py or zarr: parts of a CSR matrix, names, coordinates.
    where
        The file, and its place there, for the message.

    Raises
    ------
    InputError
        Says how many chunks are missing, and of which.
    """
    if gaps := find_gaps(array):
        raise InputError(f"{_told(gaps, array, where)}.")


def refuse_column_gaps(array: Array, where: str, writer: Writer, n_categories: int | None = None) -> bool:
    """Look at the chunks of a column of numbers, booleans, codes or text, some of which may be fill values on purpose.

    Parameters
    ----------
    array
        (N,) of h5py or zarr.
    where
        The file, and its place there, for the message.
    writer
        Of the table.
    n_categories
        Of codes: how many there are.

    Returns
    -------
    bool
        Whether chunks are missing that seem to be meant so.

    Raises
    ------
    InputError
        If they seem to be lost: categories that no other cell has, a stretch of fill values that is unlikely in this column.

    Notes
    -----
    Of numbers without any chunk nothing can be told: a column that another, later writer added may be zero everywhere. Codes
    without any chunk are refused where a cell could be of more than one category, for all would be of the first.
    """
    gaps = find_gaps(array)
    if gaps is None:
        return False
    if not gaps.is_meant_possible:
        raise InputError(f"{_told(gaps, array, where)}.")
    values = np.asarray(array[...])
    is_fill = _equals_fill(values, array)
    lost = gaps.cells(len(values))
    if lost.all() and n_categories in (None, 1) and values.dtype.kind in "biuf" and not _was_written(array):
        return True
    is_wanting = n_categories is not None and len(np.unique(values[values >= 0])) < n_categories
    is_text = values.dtype.kind in "OUT" and int(lost.sum()) > 1
    if is_wanting or is_text or not _is_likely(is_fill, lost) or writer.writes_fill(array):
        unused = "if all cells are of the first category, remove_unused_categories() and write it again, or use this. "
        hint = f"The file may be sound: {unused}" if is_wanting and lost.all() else ""
        raise InputError(f"{_told(gaps, array, where)}. {hint}{_repair(array)}")
    return True


def _was_written(array: Array) -> bool:
    """Whether there is the folder that zarr makes with the first chunk (format 3), though the chunk is not in it."""
    found = chunk_files(array)
    return found is not None and found.has_folder("c")


def refuse_dense_gaps(array: Array, where: str) -> bool:
    """Look at the chunks of a dense matrix; parameters, result and errors as of `refuse_column_gaps`.

    A chunk may be meant to be all zeros where other cells show that its genes are hardly ever found. One whose genes are seen in no
    other chunk, and one that takes all genes of its cells, is lost.
    """
    gaps = find_gaps(array)
    if gaps is None:
        return False
    if not gaps.is_meant_possible or gaps.lost is None or gaps.lost.ndim != 2:
        raise InputError(f"{_told(gaps, array, where)}.")
    is_left_out = not Writer().writes_fill(array)
    is_whole_row = bool(gaps.lost.all(axis=1).any())
    columns = np.flatnonzero(gaps.lost.any(axis=0)).tolist()
    is_possible = is_left_out and not is_whole_row and len(columns) <= MOST_GENE_CHUNKS
    if not is_possible or not all(_is_rare(array, gaps, column) for column in columns):
        raise InputError(f"{_told(gaps, array, where)}. {_repair(array)}")
    return True


def _is_rare(array: Array, gaps: Gaps, column: int) -> bool:
    """Whether a chunk of these genes may well hold zeros only."""
    assert gaps.lost is not None
    n_rows, n_columns = gaps.size
    present = np.flatnonzero(~gaps.lost[:, column])
    if not present.size:
        return bool(gaps.lost.shape[0] > 1)  # all chunks of these genes: they are found in no cell
    genes = slice(column * n_columns, (column + 1) * n_columns)
    picked = present[np.linspace(0, len(present) - 1, min(LOOKED_AT, len(present))).astype(int)]
    blocks = [np.asarray(array[row * n_rows : (row + 1) * n_rows, genes]) for row in picked]
    share = sum(int(np.count_nonzero(block)) for block in blocks) / sum(block.size for block in blocks)
    return bool(share * n_rows * blocks[0].shape[1] < EXPECTED_VALUES)


def _equals_fill(values: NDArray[Any], array: Array) -> NDArray[np.bool_]:
    fill = getattr(array, "fill_value", None)
    fill = getattr(array, "fillvalue", 0) if fill is None else fill
    if isinstance(fill, float | np.floating) and np.isnan(fill):
        return np.asarray(np.isnan(values), dtype=bool)
    return np.asarray(values == fill, dtype=bool)


def _is_likely(is_fill: NDArray[np.bool_], lost: NDArray[np.bool_]) -> bool:
    """Whether the chunks that are not there look like the rest: the values around them are fill values too, and runs are so long."""
    edges = np.flatnonzero(np.diff(lost))
    beside = np.concatenate([edges[lost[edges + 1]], edges[lost[edges]] + 1])
    if not is_fill[beside].all():
        return False
    stays = is_fill[1:][is_fill[:-1]]
    share = (int(stays.sum()) + 0.5) / (stays.size + 1)
    bounds = np.flatnonzero(np.diff(lost, prepend=False, append=False))
    longest = int((bounds[1::2] - bounds[::2]).max(initial=0))
    return not beside.size or longest * math.log(share) > math.log(UNLIKELY)


def _told(gaps: Gaps, array: Array, where: str) -> str:
    of = f"{gaps.n_missing:,} of {gaps.n_chunks:,} chunks of {where} {'is' if gaps.n_missing == 1 else 'are'} missing"
    if type(array).__module__.startswith("h5py"):
        return f"{of}: {gaps.example}, so the writer was stopped; write the file again"
    return f"{of}, such as {gaps.example}, and would be read as fill values; copy the folder again, all of it"


def _repair(array: Array) -> str:
    if not hasattr(array.store_path.store, "root"):
        return "If such values are meant there, fetch the folder, write them as files, and put it back; docs/files.md says how."
    path = str(Path(array.store_path.store.root).absolute() / array.path)
    code = (
        "import zarr; zarr.config.set({'array.write_empty_chunks': True}); "
        f"a = zarr.open_array({path!r}, mode='r+'); a[:] = a[:]"
    ).replace("'", '"')
    return f"If such values are meant there, write them as files: python -c {shlex.quote(code)}"
