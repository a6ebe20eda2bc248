"""Leiden on the neighbours of any latent, by scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines import leiden, quiet

if TYPE_CHECKING:
    from methods import Labels, Latent


def leiden_of(latent: Latent, resolution: float, seed: int, *, n_neighbors: int = 15) -> Labels:
    """Communities of the neighbour graph of a latent; (N, D) to (N,)."""
    import anndata
    import scanpy as sc

    adata = anndata.AnnData(latent)
    with quiet():
        sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
    return leiden(adata, resolution, seed)
