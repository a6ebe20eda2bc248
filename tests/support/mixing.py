"""Cells whose batches mix, or do not, in ways that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


def waves() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """400 points (400, 6) made without a random number, their 3 batches and 4 labels: what peers were run on."""
    row = np.arange(400)
    points = 3 * np.sin(1.7 * row[:, None] * np.arange(1, 7)[None, :] + 0.3 * np.arange(6))
    labels, batches = row % 4, (row * 7 // 3) % 3
    points[:, 0] += 4 * labels
    points[:, 1] += 2.0 * batches * (labels == 1)
    return points, batches, labels


def result(*, shift: float = 0.0, n_cells: int = 600, seed: int = 0) -> ad.AnnData:
    """A result of predict: two types in clusters of their own, three donors, of which `d2` is moved by `shift` widths of a cluster."""
    rng = np.random.default_rng(seed)
    kind, donor = np.arange(n_cells) % 2, np.arange(n_cells) // 2 % 3
    latent = rng.normal(size=(n_cells, 5)) + 30.0 * kind[:, None]
    latent[donor == 2, 1] += shift
    obs = pd.DataFrame(
        {
            "cell_type": np.array(["B cell", "T cell"])[kind],
            "donor": pd.Categorical.from_codes(donor, ["d0", "d1", "d2"]),
            "chip": np.where(np.arange(n_cells) % 5 < 2, 10, 11),
            "scamac_cluster": pd.Categorical(kind.astype(str)),
        },
        index=[f"cell{row}" for row in range(n_cells)],
    )
    return ad.AnnData(obs=obs, obsm={"X_scAMAC": latent.astype(np.float32)})
