"""The same cells in every format that can be opened."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path


def write_zarr(adata: ad.AnnData, path: Path, zarr_format: int = 3) -> Path:
    """Write an AnnData zarr; anndata and zarr warn of changes to come in how they write."""
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=zarr_format, auto_shard_zarr_v3=False):
        warnings.simplefilter("ignore", UserWarning)
        adata.write_zarr(path)
    return path


def write_tenx(adata: ad.AnnData, path: Path, version: int = 3, *, feature_types: list[str] | None = None) -> Path:
    """Write what Cell Ranger writes: genes by cells as CSC, so the arrays of cells by genes as CSR."""
    matrix = sparse.csr_matrix(adata.X).astype(np.int32)
    names = np.array(adata.var_names, dtype="S")
    ids = np.array([f"ENSG{i:011d}" for i in range(adata.n_vars)], dtype="S")
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        group["shape"] = np.array([adata.n_vars, adata.n_obs], dtype=np.int32)
        group.create_dataset("data", data=matrix.data, compression="gzip")
        group.create_dataset("indices", data=matrix.indices.astype(np.int64), compression="gzip")
        group["indptr"] = matrix.indptr.astype(np.int64)
        if version == 3:
            features = group.create_group("features")
            features["id"], features["name"] = ids, names
            features["feature_type"] = np.array(feature_types or ["Gene Expression"] * adata.n_vars, dtype="S")
            features["genome"] = np.array([b"GRCh38"] * adata.n_vars)
        else:
            group["genes"], group["gene_names"] = ids, names
    return path
