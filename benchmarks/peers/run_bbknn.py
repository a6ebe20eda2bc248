"""BBKNN's graph and Leiden: `components` and `batches` to `labels` (N,), at the resolution that gives K communities.

Settings: seed, n_clusters, low, high (resolutions) and steps of the bisection of their logarithm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from exchange import serve


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, and compile on a few cells."""
    rng = np.random.default_rng(0)
    small = {"components": rng.normal(size=(300, 10)).astype(np.float32), "batches": (np.arange(300) % 2).astype(str)}
    cluster(small, {**settings, "n_clusters": 2, "steps": 1})
    return arrays


def cluster(arrays: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Build the graph, and scan the resolution; the nearest count seen where none is K, the first of equals."""
    import anndata
    import bbknn
    import scanpy as sc

    adata = anndata.AnnData(np.zeros((len(arrays["batches"]), 1), dtype=np.float32))
    adata.obsm["X_pca"] = arrays["components"]
    adata.obs["batch"] = arrays["batches"].astype(str)
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    bbknn.bbknn(adata, batch_key="batch")
    low, high = np.log(settings["low"]), np.log(settings["high"])
    best, best_gap, best_resolution = None, np.inf, 0.0
    for _ in range(settings["steps"]):
        middle = 0.5 * (low + high)
        resolution = float(np.exp(middle))
        sc.tl.leiden(
            adata,
            resolution=resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=settings["seed"],
        )
        labels = adata.obs["leiden"].to_numpy().astype(np.int64)
        gap = len(np.unique(labels)) - settings["n_clusters"]
        if abs(gap) < best_gap:
            best, best_gap, best_resolution = labels, abs(gap), resolution
        if gap == 0:
            break
        low, high = (low, middle) if gap > 0 else (middle, high)
    return {"labels": best, "about": {"resolution": best_resolution}}


if __name__ == "__main__":
    serve(("bbknn", "scanpy", "igraph", "numpy"), prepare, cluster)
