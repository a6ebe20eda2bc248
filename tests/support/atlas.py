"""A small atlas with clear clusters."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

N_CELLS, N_GENES, N_TYPES, N_MARKERS = 300, 200, 4, 20


def build_tiny_atlas() -> ad.AnnData:
    """Draw 300 cells by 200 genes of negative-binomial counts in four clear clusters of uneven size.

    Each cluster has 20 marker genes of its own at tenfold expression; depth differs between cells; genes 190 to 199 are
    in fewer than 5 % of the cells.
    """
    rng = np.random.default_rng(20240701)
    label = np.repeat(np.arange(N_TYPES), [120, 80, 60, 40])
    rng.shuffle(label)
    abundance = rng.lognormal(0.0, 0.5, N_GENES)
    profile = np.tile(abundance, (N_TYPES, 1))
    for kind in range(N_TYPES):
        profile[kind, kind * N_MARKERS : (kind + 1) * N_MARKERS] *= 10.0
    profile[:, 190:] = 0.005
    depth = rng.lognormal(0.0, 0.3, N_CELLS)
    mean = profile[label] * depth[:, None]
    shape = 3.0
    counts = rng.negative_binomial(shape, shape / (shape + mean))
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type{kind}" for kind in label]),
                "depth": depth.astype(np.float32),
            },
            index=[f"cell{i:03d}" for i in range(N_CELLS)],
        ),
        var=pd.DataFrame(index=[f"gene{i:03d}" for i in range(N_GENES)]),
    )
