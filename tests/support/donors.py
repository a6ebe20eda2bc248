"""The small atlas, of three donors and two chips that each add genes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scamac_scale.config import CorrectionConfig
from tests.support.atlas import build_tiny_atlas
from tests.support.settings import QUICK

if TYPE_CHECKING:
    import anndata as ad

DONORS, CHIPS = ("ann", "bob", "cat"), (10, 11)
CORRECTED = replace(
    QUICK,
    batch_key="donor",
    start=replace(QUICK.start, landmark_cells=80, components=(5,)),
    train=replace(QUICK.train, batch_cells=256),  # four blocks: any number of ranks up to that has the same bits
    correction=CorrectionConfig(components=8, clusters=5, rounds=3, passes=2, tolerance=0.0),
)
"""Settings of a fit of a second or two with a correction of several rounds."""


def build_donors() -> ad.AnnData:
    """300 cells with ``obs["donor"]``, a category, sorted, and ``obs["chip"]``, whole numbers."""
    adata = build_tiny_atlas()
    rng = np.random.default_rng(7)
    donor, chip = np.sort(rng.integers(0, 3, adata.n_obs)), rng.integers(0, 2, adata.n_obs)
    counts = adata.X.toarray()
    for offset, levels in ((100, donor), (150, chip)):
        for level in range(levels.max() + 1):
            genes = slice(offset + 10 * level, offset + 10 * (level + 1))
            counts[levels == level, genes] += rng.poisson(4.0, ((levels == level).sum(), 10))
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    adata.obs["donor"] = pd.Categorical.from_codes(donor, list(DONORS))
    adata.obs["chip"] = np.array(CHIPS)[chip]
    return adata
