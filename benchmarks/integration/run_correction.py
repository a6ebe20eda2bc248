"""This program's correction alone, as a script of its own process: the same exchange as the peers'.

`correct` is the one place that names its functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
from exchange import serve

PIECE = 2048
"""Cells that come together, as in a sweep."""


def correct(components: Any, batches: Any, seed: int) -> Any:
    """Correct (N, P) components for (N,) codes of batches; (N, P)."""
    import numpy as np
    import torch
    from sklearn.cluster import KMeans

    from scamac_scale.config import CorrectionConfig
    from scamac_scale.loader.ordered import SweepPlan
    from scamac_scale.ops.harmony import Design, corrected
    from scamac_scale.train.correction.fit import START_CELLS, count_clusters
    from scamac_scale.train.correction.harmony import Harmony
    from scamac_scale.train.correction.points import open_points

    config, n_cells = CorrectionConfig(), len(components)
    z = np.ascontiguousarray(components - components.mean(axis=0), dtype=np.float32)
    codes = np.unique(batches, return_inverse=True)[1].astype(np.int32)[:, None]
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows = np.random.default_rng(seed).choice(n_cells, min(n_cells, START_CELLS), replace=False)
    start = KMeans(count_clusters(n_cells, config), n_init=1, random_state=seed).fit(unit[rows]).cluster_centers_
    del unit
    counts = np.bincount(codes[:, 0])
    found = np.empty_like(z)
    with open_points(SweepPlan(n_cells, PIECE), codes, z.shape[1], seed) as points:
        for at in range(0, n_cells, PIECE):
            points.write(np.arange(at, min(at + PIECE, n_cells)), z[at : at + PIECE])
        design = Design((len(counts),), torch.from_numpy(counts).double())
        layers, _ = Harmony(points, design, config).run(torch.from_numpy(start).float())
    for at in range(0, n_cells, PIECE):
        part = slice(at, at + PIECE)
        levels = torch.from_numpy(codes[part]).long()
        found[part] = corrected(torch.from_numpy(z[part]), levels, layers, config.sigma).numpy()
    return found


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, and run once on a few cells."""
    import torch

    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    correct(arrays["components"][:1000], arrays["batches"][:1000], settings["seed"])
    return arrays


def work(arrays: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The correction."""
    return {"latent": correct(arrays["components"], arrays["batches"], settings["seed"])}


if __name__ == "__main__":
    serve(("numpy", "torch"), prepare, work)
