"""From whatever holds cells to an open `CellSource`: the one place where store, ingestion and loader meet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from scamac_scale.config import IngestConfig
from scamac_scale.csr import CsrBlock, Piece, check_rows, gather
from scamac_scale.errors import InputError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.source import NormalisedSource
from scamac_scale.ingestion.statistics import measure
from scamac_scale.loader.source import CellSource
from scamac_scale.progress import track
from scamac_scale.store.layout import is_store
from scamac_scale.store.reader import StoreReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.arrays import IntArray
    from scamac_scale.genes import GeneSpace

PIECE_CELLS = 8192
"""Cells of a cached source that lie together in memory."""


class OpenSource(CellSource, Protocol):
    """A `CellSource` with what belongs to its cells; a context manager."""

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
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each row of the source."""

    def forget(self) -> None:
        """Let go what was kept of earlier reads."""

    def close(self) -> None:
        """Close files and let go what was kept."""

    def __enter__(self) -> Self:
        """Return the source itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


def open_source(
    data: str | os.PathLike[str] | AnnData | StoreReader,
    gene_space: GeneSpace | None = None,
    *,
    ingest: IngestConfig | None = None,
    cache_bytes: int = 0,
) -> OpenSource:
    """Open cells for reading.

    Parameters
    ----------
    data
        A training store, or raw data: h5ad, AnnData zarr, 10x h5, AnnData.
    gene_space
        Of a model; None takes that of the store, or fits one to raw data by two streamed passes.
    ingest
        How raw data is read (``matrix``) and fitted; a store brings its own.
    cache_bytes
        If the cells of the chosen genes fit, they are read once and served from memory; the values are the same. How many
        bytes they take is known beforehand, but for raw data with a given `gene_space`, which costs a pass to count.

    Returns
    -------
    OpenSource
        Close it, or use it as a context manager.

    Raises
    ------
    InputError
        If the data cannot be used, or lacks more than half of the chosen genes.
    StoreError
        If a training store is damaged.
    """
    kind = "store" if isinstance(data, StoreReader) or (not _is_anndata(data) and is_store(Path(data))) else "raw"
    source = SOURCES[kind](data, gene_space, ingest or IngestConfig())
    try:
        return _cached(source, cache_bytes)
    except BaseException:
        source.close()
        raise


def _is_anndata(data: Any) -> bool:  # Any: narrowed here
    return not isinstance(data, (str, os.PathLike))


def _open_store(data: Any, gene_space: GeneSpace | None, ingest: IngestConfig) -> OpenSource:
    reader = data if isinstance(data, StoreReader) else StoreReader(data)
    if gene_space is not None and gene_space != reader.gene_space:
        shared = len(set(gene_space.chosen) & set(reader.gene_space.chosen))
        raise InputError(
            f"{reader.path} keeps other genes, or other totals, than the model ({shared} of the model's "
            f"{len(gene_space.chosen)} genes are in it), and the rest was not stored; give the data that the store was "
            f"made from: {', '.join(str(about.get('name')) for about in reader.inputs)}."
        )
    return reader


def _open_raw(data: Any, gene_space: GeneSpace | None, ingest: IngestConfig) -> OpenSource:
    raw = open_raw(data, ingest.matrix)
    try:
        if gene_space is None:
            found = measure(raw, ingest)
            return NormalisedSource(raw, found.gene_space, is_checked=True, n_values=found.n_stored)
        return NormalisedSource(raw, gene_space)
    except BaseException:
        raw.close()
        raise


SOURCES: dict[str, Callable[[Any, GeneSpace | None, IngestConfig], OpenSource]] = {
    "store": _open_store,
    "raw": _open_raw,
}
"""How each kind of input is opened: ``(data, gene_space, ingest) -> OpenSource``."""


class CachedSource:
    """All cells of another source in memory: the same values, bit for bit.

    Parameters
    ----------
    source
        Where the cells came from; closed with this one.
    pieces
        All N cells, `PIECE_CELLS` in each piece but the last.
    """

    def __init__(self, source: OpenSource, pieces: list[Piece]) -> None:
        self._source = source
        self._pieces = pieces
        self.n_cells = source.n_cells
        self.gene_names = source.gene_names
        self.gene_space = source.gene_space
        self.missing_genes = source.missing_genes

    def __enter__(self) -> Self:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source behind it."""
        self.close()

    def forget(self) -> None:
        """Keep everything: it is what this source is for."""

    def close(self) -> None:
        """Close the source behind it."""
        self._source.close()

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the input, one row per cell."""
        return self._source.obs

    @property
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each cell."""
        return self._source.source_rows

    @property
    def csr_bytes(self) -> int:
        """Bytes of all cells."""
        return self._source.csr_bytes

    def read(self, rows: IntArray) -> CsrBlock:
        """Read cells from memory; as the source behind it."""
        return gather(check_rows(rows, self.n_cells), PIECE_CELLS, self._give, len(self.gene_names))

    def _give(self, numbers: NDArray[np.int64]) -> list[Piece]:
        return [self._pieces[number] for number in numbers]


def _cached(source: OpenSource, cache_bytes: int) -> OpenSource:
    """Read all cells into memory where they fit."""
    if cache_bytes == 0 or source.csr_bytes > cache_bytes:
        return source
    pieces: list[Piece] = []
    with track("reading cells", source.n_cells, "cells") as progress:
        for start in range(0, source.n_cells, PIECE_CELLS):
            block = source.read(np.arange(start, min(start + PIECE_CELLS, source.n_cells)))
            pieces.append((block.indptr, block.indices, block.data))
            progress.advance(block.n_cells)
    source.forget()  # now twice in memory
    return CachedSource(source, pieces)
