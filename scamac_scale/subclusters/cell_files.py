"""The cells of each cluster with its own genes, in plain files: written by one pass over the input, which can be gone on with."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scamac_scale.durable.atomic import atomic_file, flush
from scamac_scale.durable.faults import reach
from scamac_scale.durable.plain import read_sealed, sealed
from scamac_scale.errors import InputError
from scamac_scale.ingestion.csr import take_columns
from scamac_scale.ingestion.passes import Entry, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix

JOURNAL = "cells.json"
JOURNAL_S = 30.0
"""Seconds between two notes of how far the pass has come."""
READ_CELLS = 4096
"""Cells that are read back at a time."""
TYPES: dict[str, np.dtype[Any]] = {
    "sizes": np.dtype(np.uint32),
    "genes": np.dtype(np.uint16),
    "values": np.dtype(np.float32),
}
"""Of the three files of a cluster: values of each cell, their genes, themselves."""


class Wanted(NamedTuple):
    """What `pick_block` is told.

    Attributes
    ----------
    codes
        (N,) cluster of each cell; those from `len(columns)` on are left out.
    columns
        Of each cluster: its columns of the input.
    scale
        (N,) what values are multiplied by before the logarithm; None for counts and for logarithms, which stay as they are.
    """

    codes: IntArray
    columns: list[IntArray]
    scale: NDArray[np.float64] | None


class Picked(NamedTuple):
    """Cells of one cluster in a block: numbers of values, genes and values."""

    code: int
    sizes: NDArray[np.uint32]
    genes: NDArray[np.uint16]
    values: NDArray[np.float32]


def pick_block(index: int, block: sparse.csr_matrix, start: int, wanted: Wanted) -> list[Picked] | Entry:
    """Take the cells of each cluster out of a block (B, G), with its own genes; or the first value that is none."""
    wrong = np.flatnonzero(~(np.isfinite(block.data) & (block.data >= 0)))
    if wrong.size:
        at = int(wrong[0])
        cell = int(np.searchsorted(block.indptr, at, side="right")) - 1
        return Entry(start + cell, int(block.indices[at]), float(block.data[at]))
    codes = wanted.codes[start : start + block.shape[0]]
    found = []
    for code in np.unique(codes[codes < len(wanted.columns)]):
        columns, rows = wanted.columns[code], np.flatnonzero(codes == code)
        target = np.full(block.shape[1], -1, dtype=np.int64)
        target[columns] = np.arange(len(columns))
        part = take_columns(block[rows], target, len(columns))
        part.eliminate_zeros()
        sizes = np.diff(part.indptr)
        values = part.data.astype(np.float64)
        if wanted.scale is not None:
            values = np.log1p(values * np.repeat(wanted.scale[start + rows], sizes))
        found.append(
            Picked(int(code), sizes.astype(np.uint32), part.indices.astype(np.uint16), values.astype(np.float32))
        )
    return found


class CellFiles:
    """Cells of all clusters in a folder.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, code: int, name: str) -> Path:
        """Name one of the files of a cluster."""
        return self.folder / f"{code}.{name}"

    def write(self, raw: RawMatrix, wanted: Wanted, engine: Engine) -> None:
        """Write what is not there yet: the second pass.

        Parameters
        ----------
        raw
            (N, G) values.
        wanted
            Of all clusters.
        engine
            Maps over blocks.

        Raises
        ------
        InputError
            If a value is negative or not finite.
        """
        first, lengths = self._begun(engine.block_cells, len(wanted.columns))
        if first >= raw.n_cells:
            return
        noted = time.monotonic()
        with closing(engine.map(raw, pick_block, wanted, "writing cells of clusters", first)) as parts:
            for start, found in parts:
                if isinstance(found, Entry):
                    raise InputError(
                        f"{raw.name}: {raw.matrix} holds {found.value:g} for {place_of(raw, found)}; expected values that are finite "
                        "and not negative. Give the matrix that the model was fitted to."
                    )
                if start > first and time.monotonic() - noted > JOURNAL_S:
                    self._note(start, lengths, engine.block_cells)
                    noted = time.monotonic()
                for part in found:
                    for name, dtype in TYPES.items():
                        with self.path(part.code, name).open("ab") as file:
                            file.write(np.ascontiguousarray(getattr(part, name), dtype=dtype).tobytes())
                    lengths[part.code] = [
                        lengths[part.code][0] + len(part.sizes),
                        lengths[part.code][1] + len(part.genes),
                    ]
                reach("refine.cells")
        self._note(raw.n_cells, lengths, engine.block_cells)

    def _begun(self, block_cells: int, n_clusters: int) -> tuple[int, list[list[int]]]:
        """Take up what was written before: the next cell, and cells and values of each cluster; what came after the last note is cut off."""
        try:
            found: dict[str, Any] = read_sealed(self.folder / JOURNAL)
            first, lengths = int(found["first"]), [[int(a), int(b)] for a, b in found["lengths"]]
            is_sound = found["block_cells"] == block_cells and len(lengths) == n_clusters
            is_sound = is_sound and all(self._has(code, *lengths[code]) for code in range(n_clusters))
        except (OSError, ValueError, KeyError, TypeError):
            is_sound = False
        if not is_sound:
            first, lengths = 0, [[0, 0] for _ in range(n_clusters)]
        for code, (n_cells, n_values) in enumerate(lengths):
            for name, dtype in TYPES.items():
                with self.path(code, name).open("ab") as file:
                    file.truncate((n_cells if name == "sizes" else n_values) * dtype.itemsize)
        return first, lengths

    def _has(self, code: int, n_cells: int, n_values: int) -> bool:
        return all(
            self.path(code, name).stat().st_size >= (n_cells if name == "sizes" else n_values) * dtype.itemsize
            for name, dtype in TYPES.items()
        )

    def _note(self, first: int, lengths: list[list[int]], block_cells: int) -> None:
        """Say how far the pass has come, once that is on the disk."""
        for code in range(len(lengths)):
            for name in TYPES:
                flush(self.path(code, name))
        with atomic_file(self.folder / JOURNAL) as partial:
            partial.write_text(sealed({"first": first, "lengths": lengths, "block_cells": block_cells}))

    def blocks(self, code: int, n_genes: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Read the cells of a cluster in the order of the input.

        Yields
        ------
        start : int
            Number of the first cell within the cluster.
        block : csr_matrix
            (cells, n_genes) float64.
        """
        sizes = np.fromfile(self.path(code, "sizes"), TYPES["sizes"]).astype(np.int64)
        with self.path(code, "genes").open("rb") as genes, self.path(code, "values").open("rb") as values:
            for start in range(0, len(sizes), READ_CELLS):
                indptr = np.concatenate([[0], np.cumsum(sizes[start : start + READ_CELLS])])
                columns = np.fromfile(genes, TYPES["genes"], int(indptr[-1])).astype(np.int32)
                data = np.fromfile(values, TYPES["values"], int(indptr[-1])).astype(np.float64)
                yield start, sparse.csr_matrix((data, columns, indptr), shape=(len(indptr) - 1, n_genes))
