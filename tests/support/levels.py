"""Counts of three types of cells, one of which has two parts; and what their clusters are taken from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scamac_scale.api import ScAMAC
from tests.support.fitted import fitted_model

if TYPE_CHECKING:
    from pathlib import Path

N_GENES = 90
TYPES = ("a", "b", "c")
N_OF_TYPE = 120


def two_levels(seed: int = 0) -> ad.AnnData:
    """360 cells: type a has parts of 80 and 40 cells, b and c have none; depths differ four-fold."""
    rng = np.random.default_rng(seed)
    names = np.repeat(TYPES, N_OF_TYPE)
    part = np.where((names == "a") & (np.arange(len(names)) % 3 == 0), 1, 0)
    means = rng.lognormal(0.5, 0.7, N_GENES)
    rates = np.tile(means, (len(names), 1)) * rng.lognormal(0, 0.4, len(names))[:, None]
    for at, name in enumerate(TYPES):
        rates[np.ix_(names == name, np.arange(at * 10, at * 10 + 10))] *= 4
    rates[np.ix_(part == 1, np.arange(40, 55))] *= 3
    order = rng.permutation(len(names))
    counts = sparse.csr_matrix(rng.poisson(rates)[order].astype(np.float32))
    obs = pd.DataFrame(
        {"cell_type": names[order], "fine": [f"{names[row]}{part[row]}" for row in order]},
        index=[f"cell{row}" for row in range(len(names))],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{gene:03d}" for gene in range(N_GENES)]))


def model_of_levels() -> ScAMAC:
    """A model of random weights that knows these genes."""
    model = ScAMAC()
    model._fitted = fitted_model(0, tuple(f"gene{gene:03d}" for gene in range(N_GENES)))
    return model


def write_levels(folder: Path) -> tuple[Path, Path]:
    """The cells in a file, and a result for them."""
    atlas = folder / "atlas.h5ad"
    two_levels().write_h5ad(atlas)
    result = folder / "result.zarr"
    model_of_levels().predict(atlas, result)
    return atlas, result
