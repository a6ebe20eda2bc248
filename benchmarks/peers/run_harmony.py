"""Harmony by harmonypy: `components` (N, P) and `batches` (N,) to `latent` (N, P). Settings: seed, threads, options."""

from __future__ import annotations

from typing import Any

import numpy as np
from exchange import serve


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, and run once on a few cells."""
    import pandas as pd

    rng = np.random.default_rng(0)
    correct(
        (rng.normal(size=(300, 10)).astype(np.float32), pd.DataFrame({"batch": (np.arange(300) % 2).astype(str)})),
        settings,
    )
    return arrays["components"], pd.DataFrame({"batch": arrays["batches"].astype(str)})


def correct(prepared: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Correct the components."""
    import harmonypy

    components, batches = prepared
    found = harmonypy.run_harmony(
        components,
        batches,
        ["batch"],
        random_state=settings["seed"],
        ncores=settings.get("threads") or 0,
        verbose=False,
        **settings.get("options", {}),
    )
    return {
        "latent": np.asarray(found.Z_corr, dtype=np.float32),
        "about": {"rounds": len(found.kmeans_rounds), "clusters": int(found.K)},
    }


if __name__ == "__main__":
    serve(("harmonypy", "numpy"), prepare, correct)
