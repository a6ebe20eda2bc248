"""Predictions in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scamac_scale.infer.output.table import DENOISED_KEY, LABEL_KEY, Table, split_uns

if TYPE_CHECKING:
    from types import TracebackType

    import anndata as ad

    from scamac_scale.cells.arrays import FloatArray, IntArray


class MemoryOutput:
    """Predictions as an AnnData in memory.

    Parameters
    ----------
    table
        What is going to come.

    Attributes
    ----------
    turns, needs_rows
        As of `disk.DiskOutput`.
    """

    turns = 0
    needs_rows = True

    def __init__(self, table: Table) -> None:
        self.table = table
        self._labels = np.zeros(len(table.obs), dtype=np.int64)
        self._blocks = {
            name: np.zeros((len(table.obs), width), dtype=np.float32) for name, width in table.row_widths.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def look(self, *, is_patient: bool = False) -> None:
        """Do nothing: what is in memory cannot be kept."""

    def tick(self, turns: int) -> None:
        """Do nothing, as `look`."""

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Take some rows, in any order."""
        self._labels[rows] = labels
        for name, block in blocks.items():
            self._blocks[name][rows] = block

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> ad.AnnData:
        """Put the AnnData with all keys together."""
        import anndata as ad
        import pandas as pd

        obs = self.table.obs.copy()
        for name, column in self.table.clusters(self._labels, n_clusters).items():
            obs[name] = column
        if self.table.labels:
            obs = obs.assign(**self.table.label_columns(self._blocks.pop(LABEL_KEY)))
        layers = {name: block for name, block in self._blocks.items() if name == DENOISED_KEY}
        obsm = {name: block for name, block in self._blocks.items() if name != DENOISED_KEY}
        var = pd.DataFrame(index=pd.Index(self.table.genes, dtype=object))
        return ad.AnnData(obs=obs, var=var, obsm=obsm, layers=layers, uns={**self.table.uns, **split_uns(uns)})
