"""MAGIC: CSR counts (`data`, `indices`, `indptr`, `shape`) to `denoised` (N, G), as the denoising task of Open Problems runs it.

Counts become shares of the cell and square roots; what comes out is squared and multiplied by the totals. Settings: seed, t,
decay, threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from exchange import serve


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, and run once on a few cells."""
    from scipy import sparse

    smooth(np.random.default_rng(0).poisson(1.0, (200, 120)).astype(np.float64), settings)
    csr = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))
    return csr.toarray().astype(np.float64)


def smooth(counts: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Diffuse."""
    from magic import MAGIC

    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    found = MAGIC(
        solver="exact",
        decay=settings["decay"],
        t=settings["t"],
        n_jobs=settings.get("threads") or 1,
        random_state=settings["seed"],
        verbose=False,
    ).fit_transform(np.sqrt(counts / totals), genes="all_genes")
    return {"denoised": (np.square(np.asarray(found)) * totals).astype(np.float32)}


if __name__ == "__main__":
    serve(("magic-impute", "graphtools", "scprep", "numpy"), prepare, smooth)
