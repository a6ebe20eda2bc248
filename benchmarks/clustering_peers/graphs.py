"""Seurat's clustering: a graph of shared neighbours, cut by Louvain at resolution .8. It finds its own K.

Settings as in Seurat's FindNeighbors and FindClusters: genes scaled and cut at 10, 10 principal components, 20 neighbours
(the cell itself counts), Jaccard overlap of the neighbourhoods, overlaps below 1/15 dropped, Louvain at resolution .8,
the best modularity of 10 starts.

References
----------
Stuart et al., Comprehensive integration of single-cell data, Cell 2019. Blondel et al., Fast unfolding of communities in
large networks, J. Stat. Mech. 2008.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clustering_peers.cells import Cells, Found

N_COMPONENTS = 10
N_NEIGHBORS = 20
MIN_OVERLAP = 1 / 15
RESOLUTION = 0.8
N_STARTS = 10
SETTINGS: dict[str, object] = {
    "components": N_COMPONENTS,
    "n_neighbors": N_NEIGHBORS,
    "min_overlap": "1/15",
    "resolution": RESOLUTION,
    "starts": N_STARTS,
}


def seurat_like(cells: Cells, seed: int) -> Found:
    """Louvain communities of the graph of shared neighbours, and the components."""
    import igraph
    from scipy import sparse
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    scaled = cells.scaled()
    components = PCA(min(N_COMPONENTS, len(scaled) - 1), svd_solver="arpack", random_state=0).fit_transform(scaled)
    n_neighbors = min(N_NEIGHBORS, len(components) - 1)
    near = (
        NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors_graph(components)
    )  # with the cell itself
    shared = sparse.triu(near @ near.T, k=1).tocoo()
    overlap = shared.data / (2 * n_neighbors - shared.data)
    is_kept = overlap >= MIN_OVERLAP
    edges = np.column_stack([shared.row, shared.col])[is_kept]
    graph = igraph.Graph(n=len(components), edges=edges)
    weights = overlap[is_kept]
    igraph.set_random_number_generator(random.Random(seed))
    cuts = [graph.community_multilevel(weights=weights, resolution=RESOLUTION) for _ in range(N_STARTS)]
    best = max(cuts, key=lambda cut: graph.modularity(cut, weights=weights, resolution=RESOLUTION))
    return np.asarray(best.membership, dtype=np.int64), components
