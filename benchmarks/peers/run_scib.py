"""scib-metrics, to check our own measures of mixing: `latent`, `batches`, `types` to three numbers in ``about``.

Its benchmark's numbers of neighbours: 90 for the LISI scores (perplexity 30), 15 for the connectivity; found exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from exchange import serve


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import."""
    import scib_metrics  # noqa: F401

    return arrays


def score(arrays: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The scores, each scaled to 0 to 1, higher is better."""
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    latent = arrays["latent"]
    n_neighbors = min(settings["lisi_neighbors"], len(latent))
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors).fit(latent).kneighbors(latent)
    near = NeighborsResults(indices=indices, distances=distances)
    batches = np.unique(arrays["batches"], return_inverse=True)[1]
    types = np.unique(arrays["types"], return_inverse=True)[1]
    few = near.subset_neighbors(min(settings["neighbors"], n_neighbors))
    return {
        "about": {
            "ilisi": float(scib_metrics.ilisi_knn(near, batches)),
            "clisi": float(scib_metrics.clisi_knn(near, types)),
            "graph_connectivity": float(scib_metrics.graph_connectivity(few, types)),
        }
    }


if __name__ == "__main__":
    serve(("scib-metrics", "numpy"), prepare, score)
