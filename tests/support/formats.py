"""The same cells in every format that can be opened."""

from __future__ import annotations

import gzip
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

MARKET_HEAD = "%%MatrixMarket matrix coordinate integer general\n%"


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


def write_loom(adata: ad.AnnData, path: Path) -> Path:
    """Write a loom: genes by cells, in chunks."""
    with h5py.File(path, "w") as file:
        packed = {"chunks": (32, 32), "compression": "gzip"} if adata.n_vars else {}
        file.create_dataset("matrix", data=adata.X.toarray().T, **packed)
        file.create_group("row_attrs")["Gene"] = np.array(adata.var_names, dtype="S")
        columns = file.create_group("col_attrs")
        columns["CellID"] = np.array(adata.obs_names, dtype="S")
        for key in adata.obs:
            columns[key] = np.array(adata.obs[key].astype(str), dtype="S")
        file.create_group("layers")
    return path


def write_mtx(adata: ad.AnnData, path: Path, version: int = 3) -> Path:
    """Write a folder as Cell Ranger does."""
    path.mkdir(parents=True)
    end, genes = (".gz", "features.tsv") if version == 3 else ("", "genes.tsv")
    entries = sparse.coo_matrix(adata.X.T.astype(np.int64))
    lines = [
        f"{row + 1} {column + 1} {value}"
        for row, column, value in zip(entries.row, entries.col, entries.data, strict=True)
    ]
    kind = ["\tGene Expression"] if version == 3 else [""]
    texts = {
        "matrix.mtx": "\n".join([MARKET_HEAD, f"{adata.n_vars} {adata.n_obs} {entries.nnz}", *lines]),
        genes: "\n".join(f"ENSG{at:011d}\t{name}{kind[0]}" for at, name in enumerate(adata.var_names)),
        "barcodes.tsv": "\n".join(adata.obs_names),
    }
    for name, text in texts.items():
        content = f"{text}\n".encode()
        (path / f"{name}{end}").write_bytes(gzip.compress(content, mtime=0) if end else content)
    return path
