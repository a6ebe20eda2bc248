"""How good is a latent: clusterings of it, mixing of batches, and what it keeps of the types.

The scores are those of `scamac_scale.metrics`, 0 to 1, higher is better; run_scib.py checks LISI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scamac_scale.config import ScamacConfig

LISI_NEIGHBORS = 90
"""Neighbours of a cell for the LISI scores, itself among them; the perplexity is a third of it."""
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


def scaled_lisi(latent: Points, labels: NDArray[np.str_]) -> NDArray[np.float64]:
    """(N,) LISI less 1, over the number of labels less 1: 0 where neighbours are all of one label, 1 where all are equal."""
    from scamac_scale.metrics.mixing import lisi
    from scamac_scale.metrics.neighbors import find_neighbors

    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return np.full(len(latent), np.nan)
    near = find_neighbors(latent, LISI_NEIGHBORS - 1)
    found: NDArray[np.float64] = (lisi(near.distances, near.indices, codes) - 1) / (len(names) - 1)
    return found


def mixing_scores(latent: Points, batches: NDArray[np.str_], types: NDArray[np.str_]) -> dict[str, float]:
    """`MIXING`: medians of LISI over cells, as scib-metrics, connectivity as scIB; what concerns types, over the labelled cells."""
    from scamac_scale.metrics.mixing import GRAPH_NEIGHBORS, graph_connectivity, lisi, scaled_clisi, scaled_ilisi
    from scamac_scale.metrics.neighbors import find_neighbors
    from scamac_scale.metrics.preservation import neighbor_accuracy

    known = types != ""
    batch_names, batch_codes = np.unique(batches, return_inverse=True)
    type_names, type_codes = np.unique(types[known], return_inverse=True)
    near = find_neighbors(latent, LISI_NEIGHBORS - 1)
    mixed = lisi(near.distances, near.indices, batch_codes)
    if not known.all():
        near = find_neighbors(latent[known], LISI_NEIGHBORS - 1)
    apart = lisi(near.distances, near.indices, type_codes)
    found = {
        "ilisi": scaled_ilisi(mixed, len(batch_names)) if len(batch_names) > 1 else np.nan,
        "clisi": scaled_clisi(apart, len(type_names)) if len(type_names) > 1 else np.nan,
        "graph_connectivity": graph_connectivity(near.indices[:, : GRAPH_NEIGHBORS - 1], type_codes),
        "knn": neighbor_accuracy(latent[known], types[known]),
    }
    return {name: round(float(value), 6) for name, value in found.items()}


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
