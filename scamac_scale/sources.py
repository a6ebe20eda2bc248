"""From whatever holds cells to an open `CellSource`: the one place where store, ingestion and loader meet."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from scamac_scale.cells.buffer import RowBuffer, read_rows, rows_of
from scamac_scale.cells.tech_batches import TechBatches, WithTechBatches, find_tech_batches, split_key
from scamac_scale.config import IngestConfig, LoaderConfig
from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError
from scamac_scale.ingestion.compare import compare_records
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.files import absolute_name, place_of
from scamac_scale.ingestion.many.inputs import is_list, list_inputs
from scamac_scale.ingestion.many.model import open_for_model
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.many.quality import without_poor
from scamac_scale.ingestion.orientation import warn_of_droplets
from scamac_scale.ingestion.raw import IN_MEMORY
from scamac_scale.ingestion.source import NormalisedSource
from scamac_scale.ingestion.statistics import measure
from scamac_scale.loader.source import CellSource
from scamac_scale.progress import track
from scamac_scale.remote.place import BucketPlace
from scamac_scale.store.reader import StoreReader
from scamac_scale.store.record import is_store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.cells.csr import CsrBlock
    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.remote.stamps import Stamp

logger = logging.getLogger(__name__)

NO_KEY = "none"
"""A batch key that means no column."""
SAMPLE_PLACES, SAMPLE_CELLS = 16, 16
"""Where a digest of cells looks at their values: places, and cells at each."""
PIECE_CELLS = 8192
"""Cells that are read at a time into memory."""


class OpenSource(CellSource, Protocol):
    """A `CellSource` with what belongs to its cells; a context manager."""

    tech_batches: TechBatches | None
    """Where the cells come from; None where nobody asked, to be set by whoever does."""

    @property
    def gene_space(self) -> GeneSpace:
        """The genes, and how values are normalised."""

    @property
    def missing_genes(self) -> tuple[str, ...]:
        """Chosen genes that the input lacks; they are zeros."""

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the input, one row per row of the source."""

    @property
    def batch_key(self) -> str | None:
        """Columns of `obs` with the technical batches, with commas between them, as the input was ingested; None has none."""

    @property
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each row of the source."""

    @property
    def totals(self) -> NDArray[Any] | None:
        """(N,) sum of each cell over the filtered genes, as they are in the input; None where nobody summed."""

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """Looks at its files before they were opened; none of values in memory."""

    @property
    def marks(self) -> list[object]:
        """What tells each input from a changed one, but those in memory: of files, objects or a store; plain values."""

    def close(self) -> None:
        """Close files."""

    def __enter__(self) -> Self:
        """Return the source itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


def open_source(
    data: str | os.PathLike[str] | AnnData | StoreReader | Sequence[str | os.PathLike[str] | AnnData],
    gene_space: GeneSpace | None = None,
    *,
    ingest: IngestConfig | None = None,
    loader: LoaderConfig | None = None,
    accepted: Collection[str] = (),
) -> OpenSource:
    """Open cells for reading.

    Parameters
    ----------
    data
        A training store, or raw data: h5ad, AnnData zarr, 10x h5, AnnData; of raw data also a pattern, a manifest, or a list.
    gene_space
        Of a model; None takes that of the store, or fits one to raw data by two streamed passes.
    ingest
        How raw data is read (``matrix``) and fitted, with its ``batch_key``; a store brings its own.
    loader
        Whether all cells are read once and then served from memory; None streams. How many bytes they take is known
        beforehand, but for raw data with a given `gene_space`, which costs a pass to count.
    accepted
        Names of `config.Accept`: in what cells may differ from those that a given `gene_space` was fitted to.

    Returns
    -------
    OpenSource
        Close it, or use it as a context manager.

    Raises
    ------
    InputError
        If the data cannot be used, lacks more than half of the chosen genes, or differs from the fit in what is not accepted.
    StoreError
        If a training store is damaged.
    """
    if isinstance(data, list | tuple) and len(data) == 1:
        data = data[0]
    is_several = is_list(data)
    if isinstance(data, str | os.PathLike) and not is_several:
        data = place_of(data)
    if isinstance(data, BucketPlace) and is_store(data):
        data = StoreReader(data)
    is_one = isinstance(data, Path) and not is_several and is_store(data)
    kind = "store" if isinstance(data, StoreReader) or is_one else "raw"
    source = SOURCES[kind](data, gene_space, ingest or IngestConfig(), accepted)
    try:
        return source if loader is None else cached(source, loader.cache, loader.cache_bytes)
    except BaseException:
        source.close()
        raise


def seen_elsewhere(data: Any) -> tuple[Any, tuple[str, ...]]:  # Any: as of `open_source`
    """Name an input so that a process elsewhere finds it.

    Returns
    -------
    data
        For `open_source`.
    paths
        All files and folders that are read.

    Raises
    ------
    InputError
        If some are values in memory.
    """

    def absolute(one: Any) -> Any:
        if isinstance(one, list | tuple):
            return [absolute(part) for part in one]
        return absolute_name(place_of(one))

    paths = []
    for one in list_inputs(data.path if isinstance(data, StoreReader) else data):
        if not isinstance(one.data, str | os.PathLike):
            raise InputError(
                f"workers cannot read {type(one.data).__name__} values in memory; write it to a file that all of them see."
            )
        paths.append(absolute_name(place_of(one.data)))
    return absolute(data.path if isinstance(data, StoreReader) else data), tuple(paths)


def tell_tech_batches(source: OpenSource, key: str | None) -> None:
    """Tell a source which technical batches its cells are from.

    Parameters
    ----------
    source
        Open.
    key
        Columns of its obs, with commas between them; None takes those that it was ingested with, ``none`` tells nothing.

    Raises
    ------
    InputError
        If a column cannot be used.
    """
    columns = () if key == NO_KEY else split_key(source.batch_key if key is None else key)
    if not columns:
        return
    found = find_tech_batches(source.obs, columns, where="obs of the input")
    one = [column for column, count in zip(columns, found.counts, strict=True) if count < 2]
    if one:
        logger.warning("all cells have the same value in %s: there is nothing to correct by it", ", ".join(one))
    if len(one) < len(columns):
        kept = tuple(column for column in columns if column not in one)
        source.tech_batches = found if not one else find_tech_batches(source.obs, kept, where="obs of the input")


def _open_store(data: Any, gene_space: GeneSpace | None, ingest: IngestConfig, accepted: Collection[str]) -> OpenSource:
    reader = data if isinstance(data, StoreReader) else StoreReader(data)
    if gene_space is not None and gene_space != reader.gene_space:
        shared = len(set(gene_space.chosen) & set(reader.gene_space.chosen))
        raise InputError(
            f"{reader.path} keeps other genes, or other totals, than the model ({shared} of the model's "
            f"{len(gene_space.chosen)} genes are in it), and the rest was not stored; give the data that the store was "
            f"made from: {', '.join(str(about.get('name')) for about in reader.inputs)}."
        )
    if gene_space is not None:
        compare_records(str(reader.path), reader.gene_space, gene_space, accepted)
    return reader


def _open_raw(data: Any, gene_space: GeneSpace | None, ingest: IngestConfig, accepted: Collection[str]) -> OpenSource:
    raw = open_inputs(data, ingest) if gene_space is None else open_for_model(data, ingest, gene_space, accepted)
    try:
        if gene_space is None:
            with LocalEngine(ingest.block_cells) as engine:
                raw = without_poor(raw, ingest, engine)
                found = measure(raw, ingest, engine=engine)
            warn_of_droplets(found.totals, found.gene_space.kind, raw.name)
            return NormalisedSource(
                raw,
                found.gene_space,
                is_checked=True,
                n_values=found.n_stored,
                totals=found.totals,
                batch_key=ingest.batch_key,
            )
        return NormalisedSource(raw, gene_space, batch_key=ingest.batch_key, accepted=accepted)
    except BaseException:
        raw.close()
        raise


SOURCES: dict[str, Callable[[Any, GeneSpace | None, IngestConfig, Collection[str]], OpenSource]] = {
    "store": _open_store,
    "raw": _open_raw,
}
"""How each kind of input is opened: ``(data, gene_space, ingest, accepted) -> OpenSource``."""


def cells_digest(source: OpenSource) -> str:
    """Tell cells from others, before work on them is taken up again.

    Parameters
    ----------
    source
        Open.

    Returns
    -------
    str
        SHA-256 of the number and order of the cells, their names, the genes and how they are normalised, the technical batches if it was
        told of them, and the values of some cells at `SAMPLE_PLACES` places. A value that was changed elsewhere is not seen.
    """
    import pandas as pd

    about = [source.n_cells, source.csr_bytes, list(source.gene_names), source.gene_space.to_dict()]
    if source.tech_batches is not None:
        about += [source.tech_batches.columns, source.tech_batches.names, sha256_of(source.tech_batches.levels)]
    order = np.asarray(source.source_rows, dtype=np.int64)
    names = pd.util.hash_pandas_object(source.obs.index, index=False).to_numpy()
    starts = np.linspace(0, max(source.n_cells - SAMPLE_CELLS, 0), SAMPLE_PLACES).astype(np.int64)
    rows = np.unique(starts[:, None] + np.arange(SAMPLE_CELLS))
    block = source.read(rows[rows < source.n_cells])
    return sha256_of(about, order, names, block.indptr, block.indices, block.data)


def origin(source: OpenSource) -> dict[str, Any]:
    """Say where cells come from, for a person: ``store``, the training store or None, and ``inputs``, the files that were read first.

    Values in memory are no files; what lies in several files, such as a Matrix Market folder, is each of them.
    """
    held = source.held if isinstance(source, CachedSource) else source
    if isinstance(held, StoreReader):
        names = [about.get("path") or about.get("name") for about in held.inputs]
        return {"store": absolute_name(held.path), "inputs": [name for name in names if name and name != IN_MEMORY]}
    return {"store": None, "inputs": [stamp.path for stamp in held.stamps]}


class CachedSource(WithTechBatches):
    """All cells of another source in memory: the same values, bit for bit.

    Parameters
    ----------
    source
        Where the cells come from; read once, and closed with this one.

    Attributes
    ----------
    held
        The source behind it.
    resident
        All N cells, as the source loads them; the feed takes batches from it without copying windows.
    """

    def __init__(self, source: OpenSource) -> None:
        self.held = source
        self.n_cells = source.n_cells
        self.gene_names = source.gene_names
        self.gene_space = source.gene_space
        self.missing_genes = source.missing_genes
        self.batch_key = source.batch_key
        self.totals = source.totals
        self.csr_bytes = source.csr_bytes
        self.load_bytes = source.load_bytes
        self.resident = _read_all(source)

    def __enter__(self) -> Self:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source behind it."""
        self.close()

    @property
    def marks(self) -> list[object]:
        """What tells the inputs from changed ones."""
        return self.held.marks

    def close(self) -> None:
        """Close the source behind it."""
        self.held.close()

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """Those of the source behind it."""
        return self.held.stamps

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the input, one row per cell."""
        return self.held.obs

    @property
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each cell."""
        return self.held.source_rows

    def read(self, rows: IntArray) -> CsrBlock:
        """Read cells from memory; as the source behind it."""
        return read_rows(self.load, rows, self.n_cells, len(self.gene_names))

    def load(self, starts: NDArray[np.int64], stops: NDArray[np.int64], into: RowBuffer) -> None:
        """Copy runs of cells from memory; as the source behind it."""
        into.take(self.resident, rows_of(starts, stops))


def _read_all(source: OpenSource) -> RowBuffer:
    """Load all cells, piece by piece: a source may hold more than a piece while it loads one."""
    whole, piece = RowBuffer(), RowBuffer()
    with track("reading cells", source.n_cells, "cells") as progress:
        row = at = 0
        for start in range(0, source.n_cells, PIECE_CELLS):
            stop = min(start + PIECE_CELLS, source.n_cells)
            source.load(np.array([start]), np.array([stop]), piece)
            if start == 0:
                types = piece.genes.dtype, piece.values.dtype
                n_values = _count_values(source.load_bytes, source.n_cells, piece)
                whole.allot(source.n_cells, n_values, *types, is_scaled=piece.scale is not None)
            whole.indptr[row + 1 : row + piece.n_rows + 1] = piece.indptr[1:] + at
            whole.genes[at : at + piece.genes.size] = piece.genes
            whole.values[at : at + piece.values.size] = piece.values
            if whole.scale is not None and piece.scale is not None:
                whole.scale[row : row + piece.n_rows] = piece.scale
            row, at = row + piece.n_rows, at + piece.genes.size
            progress.advance(piece.n_rows)
    return whole


def _count_values(load_bytes: int, n_cells: int, piece: RowBuffer) -> int:
    """Values of a source that has so many bytes, when its arrays are of the types of `piece`."""
    row_bytes = 8 if piece.scale is None else 16
    return (load_bytes - 8 - row_bytes * n_cells) // (piece.genes.itemsize + piece.values.itemsize)


def cached(source: OpenSource, cache: str, cache_bytes: int) -> OpenSource:
    """Keep all cells of a source in memory, if that is asked for.

    Parameters
    ----------
    source
        Open; closed by what is returned.
    cache
        Key of `CACHES`.
    cache_bytes
        Budget of ``auto``.

    Returns
    -------
    OpenSource
        The source itself, or one that holds its cells. The values, and the order of a plan, are the same.
    """
    return CachedSource(source) if CACHES[cache](source, cache_bytes) else source


CACHES: dict[str, Callable[[OpenSource, int], bool]] = {
    "auto": lambda source, budget: budget > 0 and source.load_bytes <= budget,
    "none": lambda source, budget: False,
    "host": lambda source, budget: True,
    "device": lambda source, budget: True,  # by way of the host; the feed then copies it to the device
}
"""Whether all cells of a source are kept in memory, given a number of bytes."""
