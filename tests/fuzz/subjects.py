"""What is mutated: an input in every format, a store, a model, a finished run and a stopped one, of 120 cells by 80 genes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import zarr
from scipy import sparse

from scamac_scale.cli.main import main
from tests.fuzz import mutations
from tests.support.atlas import build_tiny_atlas
from tests.support.command_line import QUICK
from tests.support.formats import write_loom, write_mtx, write_tenx, write_zarr

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tests.fuzz.mutations import Change

N_CELLS, N_GENES, CHUNK = 120, 80, 700
INGEST = ("--ingest.n_genes", "40", "--quiet")
INPUTS = (
    "csr.h5ad",
    "dense.h5ad",
    "gzip.h5ad",
    "tenx.h5",
    "v3.zarr",
    "v2.zarr",
    "dense.zarr",
    "csc.h5ad",
    "a.loom",
    "mtx2",
    "mtx3",
)
CELLS = ("cells.h5ad", "cells.zarr")
"""New cells for the model."""
FOLDERS = ("store", "model", "run", "stopped", "many")
MANIFEST = "files.csv"

FILE_CHANGES = (
    mutations.change_hdf5,
    mutations.change_hdf5,
    mutations.change_hdf5,
    lambda path, rng: rng.choice(mutations.BYTES)(path, rng),
)
ZARR_CHANGES = (mutations.change_zarr, mutations.change_zarr, mutations.change_a_file, mutations.exchange_files)
MARKET_CHANGES = (mutations.change_text, mutations.change_text, mutations.change_a_file, mutations.exchange_files)
CHANGES: dict[str, tuple[Callable[[Path, random.Random], Change], ...]] = {
    **{
        name: MARKET_CHANGES if name.startswith("mtx") else ZARR_CHANGES if name.endswith(".zarr") else FILE_CHANGES
        for name in (*INPUTS, *CELLS)
    },
    "store": (*ZARR_CHANGES, mutations.change_plain),
    "model": (mutations.change_a_file, mutations.change_a_file, mutations.change_plain, mutations.change_header),
    "run": (mutations.change_a_file, mutations.change_plain, mutations.change_table, mutations.exchange_files),
    "stopped": (mutations.change_a_file, mutations.change_plain, mutations.change_table, mutations.exchange_files),
    "many": (
        *(mutations.change_table, mutations.change_table, mutations.change_a_file, mutations.exchange_files),
        lambda path, rng: mutations.change_hdf5(path / "a.h5ad", rng),
        lambda path, rng: mutations.change_hdf5(path / "b.h5ad", rng),
    ),
}
"""What may happen to each subject."""


def build(folder: Path) -> None:
    """Write all subjects, whole, into a new folder."""
    adata = build_tiny_atlas()[:N_CELLS, :N_GENES].copy()
    adata.obs["donor"] = np.where(np.arange(N_CELLS) % 2, "a", "b")
    adata.obs["is_doublet"] = np.arange(N_CELLS) % 5 == 0
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(folder / "csr.h5ad")
    adata.write_h5ad(folder / "gzip.h5ad", compression="gzip")
    dense = adata.copy()
    dense.X = dense.X.toarray()
    dense.write_h5ad(folder / "dense.h5ad")
    write_tenx(adata, folder / "tenx.h5")
    by_genes = adata.copy()
    by_genes.X = by_genes.X.tocsc()
    by_genes.write_h5ad(folder / "csc.h5ad")
    write_loom(adata, folder / "a.loom")
    for version in (2, 3):
        write_mtx(adata, folder / f"mtx{version}", version)
    for name, zarr_format in (("v3.zarr", 3), ("v2.zarr", 2)):
        _cut_into_chunks(write_zarr(adata, folder / name, zarr_format), adata.X)
    write_zarr(dense, folder / "dense.zarr")
    shutil.copy(folder / "csr.h5ad", folder / "cells.h5ad")
    shutil.copytree(folder / "v3.zarr", folder / "cells.zarr")
    (folder / "many").mkdir()
    for name, cells in (("a.h5ad", slice(0, 70)), ("b.h5ad", slice(70, None))):
        adata[cells, :: 1 if name == "a.h5ad" else -1].copy().write_h5ad(folder / "many" / name)
    (folder / "many" / MANIFEST).write_text("path,batch,age\na.h5ad,x,31\nb.h5ad,y,47\n")
    _must("ingest", str(folder / "csr.h5ad"), "--out", str(folder / "store"), *INGEST)
    _must("train", "--store", str(folder / "store"), "--run", str(folder / "run"), *QUICK, "--quiet")
    shutil.copytree(folder / "run" / "model", folder / "model" / "model")
    _stop(folder)


def _must(*argv: str) -> None:
    code = main(argv)
    assert code == 0, (code, argv)


def _cut_into_chunks(path: Path, values: sparse.csr_matrix) -> None:
    """Write X again in several chunks: anndata makes one of so few cells."""
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later versions will do, and that version 3 has no standard for this
        ad.io.write_elem(group, "X", sparse.csr_matrix(values), dataset_kwargs={"chunks": (CHUNK,)})
        zarr.consolidate_metadata(str(path))


def _stop(folder: Path) -> None:
    """Let a fit die in the middle, with checkpoints of every second step."""
    argv = ["train", "--store", str(folder / "store"), "--run", str(folder / "stopped"), *QUICK, "--quiet"]
    argv += ["--train.checkpoint_every_steps", "2"]
    environment = {**os.environ, "SCAMAC_FAULT": "train.step:5:kill"}
    ended = subprocess.run(
        [sys.executable, "-m", "scamac_scale", *argv], env=environment, capture_output=True, check=False
    )
    assert ended.returncode == -9, ended.stderr.decode()
