"""Counts of an AnnData zarr to labels in memory, as tutorials do it: 2,000 genes, PCA or scVI, 15 neighbours, Leiden at resolution 1.

    python benchmarks/peers/run_leiden.py ATLAS.zarr LABELS.npy pca
    python benchmarks/peers/run_leiden.py ATLAS.zarr LABELS.npy scvi [EPOCHS]

scVI takes its own number of epochs, 400 up to 20,000 cells and fewer in proportion above, unless EPOCHS says otherwise.
"""

from __future__ import annotations

import logging
import sys


def main(atlas: str, out: str, method: str, epochs: str = "") -> None:
    """Cluster, and save the labels."""
    import anndata as ad
    import numpy as np
    import scanpy as sc

    adata = ad.read_zarr(atlas)
    n_genes = min(2_000, adata.n_vars)
    if method == "pca":
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
        sc.pp.pca(adata, n_comps=50)
        basis = "X_pca"
    else:
        import scvi

        for name in ("lightning.pytorch", "pytorch_lightning", "scvi"):
            logging.getLogger(name).setLevel(logging.ERROR)
        scvi.settings.seed = 0
        counts = adata.X.copy()
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
        adata.X = counts
        adata = adata[:, adata.var["highly_variable"]].copy()
        scvi.model.SCVI.setup_anndata(adata)
        model = scvi.model.SCVI(adata)
        model.train(max_epochs=int(epochs) if epochs else None, accelerator="cpu", enable_progress_bar=False)
        adata.obsm["X_scVI"] = model.get_latent_representation()
        basis = "X_scVI"
    sc.pp.neighbors(adata, n_neighbors=15, use_rep=basis)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    np.save(out, adata.obs["leiden"].cat.codes.to_numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
