"""What the tests share: a small atlas with clear clusters, in memory and on disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# before torch and numba, which hands torch its own number: the tests' matrices are too small for more threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

settings.register_profile("scamac", deadline=None)  # no test asserts a time
settings.load_profile("scamac")

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


@pytest.fixture(scope="session")
def tiny_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an h5ad: 300 cells, 200 genes, raw counts as CSR, four clusters in ``obs["cell_type"]``; read only."""
    path = tmp_path_factory.mktemp("atlas") / "tiny.h5ad"
    build_tiny_atlas().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def _tiny_adata() -> ad.AnnData:
    return build_tiny_atlas()


@pytest.fixture
def tiny_adata(_tiny_adata: ad.AnnData) -> ad.AnnData:
    """The same atlas in memory; each test gets its own copy."""
    return _tiny_adata.copy()
