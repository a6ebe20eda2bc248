"""Peers to compare with: what a user of scanpy and scikit-learn would run instead.

Nothing here uses scamac_scale, so that a fault of its reader or its gene selection cannot flatter or hurt a peer. One
preparation serves all: genes expressed in at least 5 % of the cells, median total, log1p, 2,000 highly variable genes
(seurat flavor), 50 principal components, no unit norm, no scaling of genes.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anndata import AnnData

Labels = NDArray[np.int64]

CELL_SHARE = 20
"""A gene is kept if at least 1 cell in so many expresses it."""
N_GENES = 2000
N_COMPONENTS = 50
N_NEIGHBORS = 15
WARD_CELLS = 4000
LEIDEN_ITERATIONS = 2
LOG_MAXIMUM = 25.0
"""Values that are not whole and never above this are taken for logarithms."""
TUNING_RANGE = (0.01, 20.0)
TUNING_STEPS = 24


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the peers: they concern their own future, not the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def value_kind(values: NDArray[np.float32]) -> str:
    """Tell counts, logarithms and linear values (RPKM, TPM) apart.

    Parameters
    ----------
    values
        (nnz,) stored values of the matrix.

    Returns
    -------
    str
        ``counts``, ``log`` or ``linear``.
    """
    if np.array_equal(values, np.rint(values)):
        return "counts"
    return "log" if values.max(initial=0.0) <= LOG_MAXIMUM else "linear"


def prepare(path: Path) -> AnnData:
    """Read a set and bring it to log values of variable genes with principal components.

    Parameters
    ----------
    path
        h5ad with cells in rows.

    Returns
    -------
    AnnData
        (N, at most 2,000) log values; ``obsm["X_pca"]`` (N, P) with P = 50, or the most that N and the genes allow;
        ``uns["kind"]``.
    """
    import anndata

    with quiet():
        return normalise(anndata.read_h5ad(path))


def normalise(adata: AnnData) -> AnnData:
    """The same for a set in memory, which it may change."""
    import scanpy as sc
    from scipy import sparse

    with quiet():
        adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
        kind = value_kind(adata.X.data)
        sc.pp.filter_genes(adata, min_cells=-(-adata.n_obs // CELL_SHARE))
        if kind != "log":
            sc.pp.normalize_total(adata)
            sc.pp.log1p(adata)
        if adata.n_vars > N_GENES:
            sc.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=N_GENES)
            adata = adata[:, adata.var["highly_variable"].to_numpy()].copy()
        n_components = min(N_COMPONENTS, adata.n_obs - 1, adata.n_vars - 1)
        sc.pp.pca(adata, n_comps=n_components, svd_solver="arpack", random_state=0)
        adata.uns["kind"] = kind
    return adata


def add_graph(adata: AnnData, seed: int) -> None:
    """Add scanpy's default neighbour graph of the principal components."""
    import scanpy as sc

    with quiet():
        sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS, use_rep="X_pca", random_state=seed)


def warm_up(n_cells: int, *, has_graph: bool) -> None:
    """Import and compile once what every fit uses, so that no timed one pays for it.

    Parameters
    ----------
    n_cells
        Of the largest set: scanpy searches exactly below 8,192 cells, and approximately from there on.
    has_graph
        Whether a neighbour graph will be needed.
    """
    import anndata

    for size in (256, 8192) if n_cells >= 8192 and has_graph else (256,):
        adata = normalise(anndata.AnnData(np.random.default_rng(0).poisson(1.0, (size, 60)).astype(np.float32)))
        kmeans(adata, 2, 0)
        if has_graph:
            add_graph(adata, 0)
            leiden(adata, 1.0, 0)


def leiden(adata: AnnData, resolution: float, seed: int) -> Labels:
    """Leiden communities of the graph that `add_graph` left; (N,)."""
    import scanpy as sc

    with quiet():
        sc.tl.leiden(
            adata,
            resolution=resolution,
            flavor="igraph",
            n_iterations=LEIDEN_ITERATIONS,
            directed=False,
            random_state=seed,
        )
    labels: Labels = adata.obs["leiden"].to_numpy().astype(np.int64)
    return labels


def leiden_to_count(adata: AnnData, n_clusters: int, seed: int) -> Labels:
    """Leiden at the resolution that gives `n_clusters`, found by bisection of its logarithm.

    Parameters
    ----------
    adata
        With the graph of `add_graph`.
    n_clusters
        Number of communities asked for.
    seed
        Of Leiden.

    Returns
    -------
    Labels
        (N,). Where no resolution tried gives the number (the count jumps, or the graph falls into more pieces), the
        nearest count seen, the first of equals.
    """
    low, high = np.log(TUNING_RANGE)
    best: Labels | None = None
    best_gap = np.inf
    for _ in range(TUNING_STEPS):
        middle = 0.5 * (low + high)
        labels = leiden(adata, float(np.exp(middle)), seed)
        gap = len(np.unique(labels)) - n_clusters
        if abs(gap) < best_gap:
            best, best_gap = labels, abs(gap)
        if gap == 0:
            break
        low, high = (low, middle) if gap > 0 else (middle, high)
    assert best is not None
    return best


def kmeans(adata: AnnData, n_clusters: int, seed: int) -> Labels:
    """The best of ten k-means++ runs on the principal components; (N,)."""
    from sklearn.cluster import KMeans

    labels: Labels = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed).fit_predict(adata.obsm["X_pca"])
    return labels


def ward(adata: AnnData, n_clusters: int, seed: int) -> Labels:
    """Ward's tree on at most 4,000 random cells; every other cell joins the nearest cluster mean; (N,)."""
    from sklearn.cluster import AgglomerativeClustering

    points = np.asarray(adata.obsm["X_pca"], dtype=np.float64)
    rows = np.arange(len(points))
    if len(points) > WARD_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(len(points), WARD_CELLS, replace=False))
    found = AgglomerativeClustering(n_clusters=n_clusters, linkage="ward").fit_predict(points[rows])
    means = np.stack([points[rows[found == cluster]].mean(axis=0) for cluster in range(n_clusters)])
    labels = nearest_center(points, means)
    labels[rows] = found
    return labels


def nearest_center(points: NDArray[np.floating], centers: NDArray[np.floating]) -> Labels:
    """Index of the nearest center; (N, P), (K, P) to (N,)."""
    labels: Labels = ((centers**2).sum(axis=1) - 2.0 * points @ centers.T).argmin(axis=1).astype(np.int64)
    return labels


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes
    ----------
    title
        For tables.
    cluster
        (prepared set, true K, seed) to (N,) labels; those that find their own count ignore K.
    has_graph
        Whether it needs `add_graph` first.
    settings
        What is recorded beside the results.
    """

    title: str
    cluster: Callable[[AnnData, int, int], Labels]
    has_graph: bool = False
    settings: dict[str, object] = field(default_factory=dict)


PREPARATION: dict[str, object] = {
    "genes": f"expressed in >= {100 // CELL_SHARE} % of cells, then {N_GENES} seurat HVGs",
    "values": "median total, log1p; log input left as it is",
    "components": N_COMPONENTS,
}
GRAPH: dict[str, object] = {"n_neighbors": N_NEIGHBORS, "flavor": "igraph", "n_iterations": LEIDEN_ITERATIONS}

PEERS: dict[str, Peer] = {
    "pca50-kmeans": Peer("PCA50 + k-means", kmeans, settings={**PREPARATION, "n_init": 10}),
    "pca50-ward": Peer("PCA50 + Ward", ward, settings={**PREPARATION, "ward_cells": WARD_CELLS}),
    "leiden-1": Peer(
        "Leiden r = 1",
        lambda adata, _, seed: leiden(adata, 1.0, seed),
        has_graph=True,
        settings={**PREPARATION, **GRAPH, "resolution": 1.0},
    ),
    "leiden-0.5": Peer(
        "Leiden r = .5",
        lambda adata, _, seed: leiden(adata, 0.5, seed),
        has_graph=True,
        settings={**PREPARATION, **GRAPH, "resolution": 0.5},
    ),
    "leiden-k": Peer(
        "Leiden tuned to K",
        leiden_to_count,
        has_graph=True,
        settings={**PREPARATION, **GRAPH, "resolution": f"bisected to the true K, {TUNING_STEPS} steps"},
    ),
}
"""The true K is told to k-means, Ward and the tuned Leiden; labels are never seen."""
