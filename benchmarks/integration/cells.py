"""Cells with known types and batches, and what several methods share of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import baselines
import numpy as np
from record import Cost, measure

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

SHUFFLED = "shuffled_batch"
"""Column of obs with the batches in random order."""


@dataclass
class BatchedCells:
    """Cells of one set, or a part of them.

    Attributes
    ----------
    name
        Of the set.
    adata
        (N, G) as in the file; never changed but for `SHUFFLED`.
    column
        Of obs, with the batches.
    label
        Of obs, with the types.
    n_told
        Number of clusters that methods are told; None takes the number of types.
    """

    name: str
    adata: AnnData
    column: str
    label: str = "cell_type"
    n_told: int | None = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path, column: str, label: str) -> BatchedCells:
        """All cells of an h5ad."""
        import anndata

        adata = anndata.read_h5ad(path)
        for name in (column, label):
            if name not in adata.obs:
                raise ValueError(
                    f"{path.name} has no column {name!r} in obs; it has {', '.join(map(str, adata.obs.columns))}."
                )
        return cls(path.stem, adata, column, label)

    def part(self, rows: NDArray[np.bool_], n_told: int | None = None) -> BatchedCells:
        """Some of the cells."""
        return BatchedCells(self.name, self.adata[rows].copy(), self.column, self.label, n_told)

    @property
    def n_cells(self) -> int:
        """N."""
        return int(self.adata.n_obs)

    @property
    def batches(self) -> NDArray[np.str_]:
        """(N,) batch of each cell."""
        found: NDArray[np.str_] = self.adata.obs[self.column].astype(str).to_numpy(dtype=str)
        return found

    @property
    def types(self) -> NDArray[np.str_]:
        """(N,) type of each cell; the empty text where it has none."""
        column = self.adata.obs[self.label]
        found: NDArray[np.str_] = np.where(column.isna(), "", column.astype(str)).astype(str)
        return found

    @property
    def n_types(self) -> int:
        """K that methods are told."""
        return self.n_told or len(set(self.types.tolist()) - {""})

    def shuffle(self, seed: int) -> None:
        """Write `SHUFFLED`."""
        order = np.random.default_rng(seed).permutation(self.n_cells)
        self.adata.obs[SHUFFLED] = self.batches[order]

    def prepared(self) -> tuple[AnnData, Cost]:
        """Log values of variable genes and their components by `baselines`, without batches, and what they cost."""
        if "prepared" not in self._kept:
            adata = self.adata.copy()
            with measure() as cost:
                adata = baselines.normalise(adata)
            self._kept["prepared"] = adata, cost
        found: tuple[AnnData, Cost] = self._kept["prepared"]
        return found

    def counts(self) -> Any:
        """(N, at most 2,000) CSR of the raw values of the genes of `prepared`."""
        from scipy import sparse

        adata, _ = self.prepared()
        return sparse.csr_matrix(self.adata[:, adata.var_names].X, dtype=np.float32)

    def forget(self) -> None:
        """Free all that was made."""
        self._kept.clear()
