"""Predictions as they come: rows in any order, from all ranks, in plain files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.durable.rows import FieldFile
from scamac_scale.infer.output.table import DENOISED_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray, IntArray

LABELS = "labels"
LABEL_CELLS = 16 * 1024
"""Cells whose labels are read at a time."""


class PredictedRows:
    """Labels and blocks of all cells, in files that all ranks write into.

    Parameters
    ----------
    folder
        Where the files lie.
    widths
        Of `Table`: name of each block to its columns. Layers lie apart, for they are wide.

    Attributes
    ----------
    paths
        Of the files, which whoever has the folder makes.
    """

    def __init__(self, folder: Path, widths: dict[str, int]) -> None:
        layers = {name: width for name, width in widths.items() if name == DENOISED_KEY}
        cells = {name: width for name, width in widths.items() if name != DENOISED_KEY} | {LABELS: 1}
        self._widths = {folder / "cells.rows": cells, **({folder / "layers.rows": layers} if layers else {})}
        self._files: dict[Path, FieldFile] = {}
        self.paths = list(self._widths)

    def open(self) -> None:
        """Open the files, which exist."""
        for path, widths in self._widths.items():
            self._files[path] = FieldFile(path, widths)

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Write some rows, in any order."""
        fields = {**blocks, LABELS: labels.astype(np.int32).view(np.float32)[:, None]}
        for file in self._files.values():
            file.write(rows, fields)

    def flush(self) -> None:
        """Force what this rank wrote to the disk."""
        for file in self._files.values():
            file.flush()

    def read(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` - 1 of a block, when all ranks have flushed."""
        path = next(path for path, widths in self._widths.items() if name in widths)
        return self._files[path].read(name, start, stop)

    def labels(self, n_cells: int) -> IntArray:
        """(N,) labels of all cells, when all ranks have flushed."""
        starts = range(0, n_cells, LABEL_CELLS)
        pieces = [self.read(LABELS, start, min(start + LABEL_CELLS, n_cells)) for start in starts]
        return np.concatenate(pieces)[:, 0].view(np.int32)

    def all_of(self, name: str, n_cells: int) -> FloatArray:
        """(N, width) of a narrow block, when all ranks have flushed."""
        starts = range(0, n_cells, LABEL_CELLS)
        return np.concatenate([self.read(name, start, min(start + LABEL_CELLS, n_cells)) for start in starts])

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            file.close()
        self._files = {}
