"""What a peer gets to see and what it gives: the genes and values of baselines.py, and the counts behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from baselines import normalise, quiet
from methods import LabelledSet, Labels, Latent
from record import Cost, measure

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Found = tuple[Labels, Latent | None]


@dataclass(frozen=True)
class Cells:
    """One set.

    Attributes
    ----------
    values
        (N, G) log values of the genes that `baselines.prepare` chooses.
    counts
        (N, G) the same entries as the file has them, rounded to whole numbers (RPKM, too).
    totals
        (N,) sum over all genes of the file.
    n_clusters
        The true K, for those that take one.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.float32]
    totals: NDArray[np.float32]
    n_clusters: int

    def scaled(self) -> NDArray[np.float32]:
        """Genes of mean 0 and variance 1, cut at 10; (N, G)."""
        deviation = self.values.std(axis=0)
        scaled = (self.values - self.values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
        found: NDArray[np.float32] = np.clip(scaled, -10.0, 10.0).astype(np.float32)
        return found


class CountedSet(LabelledSet):
    """A labelled set whose prepared form keeps the counts, too."""

    def prepared(self) -> tuple[AnnData, Cost]:
        """Log values, components, ``layers["counts"]``, ``obs["total"]``, and what they cost."""
        import anndata

        if self._prepared is None:
            with measure() as cost, quiet():
                adata = anndata.read_h5ad(self.path)
                adata.layers["counts"] = adata.X.copy()
                adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
                adata = normalise(adata)
            self._prepared = adata, cost
        return self._prepared

    def cells(self) -> tuple[Cells, Cost]:
        """What the peers take, dense, and what it cost."""
        adata, before = self.prepared()
        with measure() as cost:
            counts = np.rint(adata.layers["counts"].toarray()).astype(np.float32)
            totals = adata.obs["total"].to_numpy().astype(np.float32)
            cells = Cells(adata.X.toarray(), counts, totals, self.n_true)
        return cells, before + cost
