"""A run and a result of the small atlas, with names that a page must not obey."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scamac_scale.api import ScAMAC, ingest
from scamac_scale.config import IngestConfig
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

ODD = (
    "</script><script>alert(1)</script>",
    'Ω <img src=x onerror="alert(2)"> & λ',
    "two\nlines \u202e",
    "$x_1$ %{y} ⁂ 細胞",
)
"""Labels of the four types."""


def with_odd_names(adata: ad.AnnData) -> ad.AnnData:
    """The same cells with ``obs["odd"]``, one name for each type, and ``obs["donor"]``, dealt at random."""
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obs["odd"] = pd.Categorical.from_codes(codes, list(ODD))
    draw = np.random.default_rng(1).integers(0, 3, adata.n_obs)
    adata.obs["donor"] = pd.Categorical.from_codes(draw, ["ann", "<b>bob</b>", "cat & co"])
    return adata


def fit(adata: ad.AnnData, folder: Path, kind: str = "auto", **settings: Any) -> tuple[Path, Path]:
    """Run folder and result of a quick fit."""
    folder.mkdir(exist_ok=True)
    raw, store = folder / "raw.h5ad", folder / "atlas.store.zarr"
    adata.write_h5ad(raw)
    ingest(raw, store, IngestConfig(kind=kind))
    model = ScAMAC(config=replace(QUICK, **settings)).fit(store, run=folder / "atlas.run")
    return folder / "atlas.run", model.predict(store, folder / "atlas.result.zarr")
