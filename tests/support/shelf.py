"""The files that the names in docs/ stand for: a small atlas, and what the commands make of it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scamac_scale.cli.main import main
from tests.support.command_line import QUICK

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {"T cell": 520, "monocyte": 130, "B cell": 90, "NK": 60}
DONORS = ("D1", "D2", "D3", "D4")
N_GENES, N_MARKERS, N_MITO = 600, 40, 10
RAW = ("atlas.h5ad", "new.h5ad", "donor1.h5ad", "donor2.h5ad")
"""Files that every page starts with."""
MADE = ("atlas.store.zarr", "atlas.run", "result.zarr", "result.h5ad")
"""Files that a page starts with if it says so."""


def build_atlas(seed: int) -> ad.AnnData:
    """800 cells x 600 genes of counts: four clear types, four donors that each add genes of their own, ages, mitochondrial genes."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(TYPES)), list(TYPES.values()))
    rng.shuffle(label)
    donor = rng.integers(0, len(DONORS), len(label))
    profile = np.tile(np.random.default_rng(1).lognormal(0.0, 0.5, N_GENES), (len(TYPES), 1))
    for kind in range(len(TYPES)):
        profile[kind, kind * N_MARKERS : (kind + 1) * N_MARKERS] *= 8.0
    mean = profile[label] * rng.lognormal(0.0, 0.3, len(label))[:, None]
    for level in range(len(DONORS)):
        mean[donor == level, 300 + 20 * level : 320 + 20 * level] *= 4.0
    counts = sparse.csr_matrix(rng.negative_binomial(3.0, 3.0 / (3.0 + mean)).astype(np.float32))
    names = [f"gene{i:03d}" for i in range(N_GENES - N_MITO)] + [f"MT-{i}" for i in range(N_MITO)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(label, list(TYPES)),
            "donor": pd.Categorical.from_codes(donor, list(DONORS)),
            "age": 20.0 + 15.0 * donor,
        },
        index=[f"cell{seed}_{i:04d}" for i in range(len(label))],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names))


class Shelf:
    """Makes each file once, and lays copies into folders.

    Parameters
    ----------
    folder
        Where they are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        atlas = build_atlas(7)
        atlas.write_h5ad(folder / "atlas.h5ad")
        build_atlas(8).write_h5ad(folder / "new.h5ad")
        for number in (1, 2):
            atlas[atlas.obs["donor"] == f"D{number}"].copy().write_h5ad(folder / f"donor{number}.h5ad")

    def lay(self, names: tuple[str, ...], folder: Path) -> None:
        """Put copies of files into a folder; those that are missing are made."""
        for name in names:
            self.copy(name, folder / name)

    def copy(self, name: str, target: Path) -> None:
        """Put a copy of one file to a place."""
        path = self.folder / name
        if not path.exists():
            self._make()
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)

    def _make(self) -> None:
        store, run = str(self.folder / "atlas.store.zarr"), str(self.folder / "atlas.run")
        assert main(["ingest", str(self.folder / "atlas.h5ad"), "--out", store, "--quiet"]) == 0
        assert main(["train", "--store", store, "--run", run, *QUICK, "--quiet"]) == 0
        for name in ("result.zarr", "result.h5ad"):
            assert main(["predict", "--run", run, "--input", store, "--out", str(self.folder / name), "--quiet"]) == 0
