"""How good is a latent: clusterings of it, mixing of batches, and what it keeps of the types.

LISI and graph connectivity are scaled as scib-metrics scales them, 0 to 1, higher is better; run_scib.py checks that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scamac_scale.config import ScamacConfig

LISI_NEIGHBORS = 90
"""Neighbours of a cell for the LISI scores, itself among them; the perplexity is a third of it."""
NEIGHBORS = 15
FOLDS = 5
CLUSTERINGS = ("own", "consensus", "kmeans")
"""How labels come from a method: its own, consensus and k-means on its latent."""
MIXING = ("ilisi", "clisi", "graph_connectivity", "knn")

Points = NDArray[np.floating]
Labels = NDArray[np.int64]


def agreement(types: NDArray[np.str_], labels: Labels) -> dict[str, float]:
    """ARI and NMI over the labelled cells."""
    from scamac_scale.metrics.clustering import clustering_scores

    known = types != ""
    found = clustering_scores(types[known], labels[known])
    return {"ari": round(found["ari"], 6), "nmi": round(found["nmi"], 6)}


def cluster(latent: Points, how: str, n_clusters: int, seed: int) -> Labels:
    """Labels of a latent by one of `CLUSTERINGS` other than ``own``."""
    if how == "kmeans":
        from sklearn.cluster import KMeans

        labels: Labels = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed).fit_predict(latent)
        return labels.astype(np.int64)
    from methods import consensus_of_points

    from scamac_scale.config import ScamacConfig

    config: ScamacConfig = ScamacConfig(seed=seed)
    return consensus_of_points(latent.astype(np.float64), n_clusters, config)


def nearest(latent: Points, n_neighbors: int) -> tuple[NDArray[np.float64], Labels]:
    """Exact distances and indices of the nearest cells, each cell itself first; (N, k) twice."""
    from sklearn.neighbors import NearestNeighbors

    distances, indices = NearestNeighbors(n_neighbors=min(n_neighbors, len(latent))).fit(latent).kneighbors(latent)
    return distances.astype(np.float64), indices.astype(np.int64)


def lisi(distances: NDArray[np.float64], indices: Labels, codes: Labels) -> NDArray[np.float64]:
    """Inverse Simpson index of each cell: the effective number of codes around it.

    Parameters
    ----------
    distances, indices
        From `nearest`.
    codes
        (N,) 0 to C - 1.

    Returns
    -------
    ndarray
        (N,), 1 to C. Neighbours weigh exp(-beta d), with beta such that the entropy is log of a third of their number.
    """
    others, codes_of = distances[:, 1:], codes[indices[:, 1:]]
    target = np.log(max(distances.shape[1] // 3, 1))
    scaled = others - others.min(axis=1, keepdims=True)
    beta = np.ones(len(scaled))
    low, high = np.full(len(scaled), -np.inf), np.full(len(scaled), np.inf)
    for _ in range(50):
        weights = np.exp(-scaled * beta[:, None])
        total = weights.sum(axis=1)
        entropy = np.log(total) + beta * (scaled * weights).sum(axis=1) / total
        gap = entropy - target
        if np.all(np.abs(gap) < 1e-5):
            break
        low, high = np.where(gap > 0, beta, low), np.where(gap > 0, high, beta)
        wider = np.where(np.isinf(high), beta * 2, np.where(np.isinf(low), beta / 2, (low + high) / 2))
        beta = np.where(np.abs(gap) < 1e-5, beta, wider)
    weights /= weights.sum(axis=1, keepdims=True)
    shares = np.stack([(weights * (codes_of == code)).sum(axis=1) for code in range(codes.max() + 1)], axis=1)
    found: NDArray[np.float64] = 1.0 / (shares**2).sum(axis=1)
    return found


def scaled_lisi(latent: Points, labels: NDArray[np.str_]) -> NDArray[np.float64]:
    """(N,) LISI less 1, over the number of labels less 1: 0 where neighbours are all of one label, 1 where all are equal."""
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return np.full(len(latent), np.nan)
    found: NDArray[np.float64] = (lisi(*nearest(latent, LISI_NEIGHBORS), codes.astype(np.int64)) - 1) / (len(names) - 1)
    return found


def graph_connectivity(latent: Points, types: NDArray[np.str_]) -> float:
    """Mean over types: share of its cells in the largest component of its own neighbour graph."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    _, indices = nearest(latent, NEIGHBORS)
    n, width = indices.shape
    graph = sparse.csr_matrix((np.ones(n * width, np.int8), indices.ravel(), np.arange(n + 1) * width), shape=(n, n))
    shares = []
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        _, parts = connected_components(graph[rows][:, rows], directed=True, connection="strong")
        shares.append(np.bincount(parts).max() / len(rows))
    return float(np.mean(shares))


def neighbor_accuracy(latent: Points, types: NDArray[np.str_], seed: int = 0) -> float:
    """Share of cells whose 15 nearest among four fifths of the cells vote for their type; five folds."""
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    voted = cross_val_predict(KNeighborsClassifier(NEIGHBORS), latent, types, cv=folds)
    return float((voted == types).mean())


def mixing_scores(latent: Points, batches: NDArray[np.str_], types: NDArray[np.str_]) -> dict[str, float]:
    """`MIXING`: medians of LISI over cells, as scib-metrics; what concerns types, over the labelled cells."""
    known = types != ""
    found = {
        "ilisi": float(np.median(scaled_lisi(latent, batches))),
        "clisi": 1.0 - float(np.median(scaled_lisi(latent[known], types[known]))),
        "graph_connectivity": graph_connectivity(latent[known], types[known]),
        "knn": neighbor_accuracy(latent[known], types[known]),
    }
    return {name: round(value, 6) for name, value in found.items()}


def all_scores(
    latent: Points | None,
    own: Labels | None,
    cells: Any,
    seed: int,
    clusterings: tuple[str, ...] = CLUSTERINGS,
) -> dict[str, Any]:
    """Everything the tables show of one run.

    Parameters
    ----------
    latent
        (N, d), or None.
    own
        (N,) the method's own labels, or None.
    cells
        ``types``, ``batches``, ``n_types``.
    seed
        Of the clusterings.
    clusterings
        Which to make.

    Returns
    -------
    dict
        ``labels``: clustering to ARI, NMI and number of clusters; and `MIXING`, where there is a latent.
    """
    types, found = cells.types, {}
    for how in clusterings:
        labels = own if how == "own" else None if latent is None else cluster(latent, how, cells.n_types, seed)
        if labels is not None:
            found[how] = {**agreement(types, labels), "n_clusters": len(np.unique(labels))}
    mixed = {} if latent is None else mixing_scores(latent, cells.batches, types)
    return {"labels": found, **mixed}
