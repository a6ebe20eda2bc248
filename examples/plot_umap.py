"""Cluster an h5ad, then draw the clusters with scanpy: neighbours and UMAP on the latent of scAMAC.

python examples/plot_umap.py atlas.h5ad picture.png --n-clusters 8 --batch-key donor
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import scanpy as sc

from scamac_scale import ScAMAC


def main(arguments: list[str] | None = None) -> Path:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="h5ad, AnnData zarr or training store")
    parser.add_argument("picture", type=Path, help="where the picture goes (png, pdf, svg)")
    parser.add_argument("--n-clusters", default="auto", help="a number, or auto")
    parser.add_argument(
        "--batch-key", help="column of obs with the donor, chip or technology: the latent is corrected for it"
    )
    options = parser.parse_args(arguments)
    n_clusters = options.n_clusters if options.n_clusters == "auto" else int(options.n_clusters)

    adata = ScAMAC(n_clusters, batch_key=options.batch_key).fit(options.data).predict(options.data)

    mpl.use("agg")
    sc.pp.neighbors(adata, use_rep="X_scAMAC")
    sc.tl.umap(adata)
    shown = ["scamac_cluster", *([options.batch_key] if options.batch_key else [])]
    figure = sc.pl.umap(adata, color=shown, show=False, return_fig=True)
    figure.savefig(options.picture, dpi=150, bbox_inches="tight")
    print(f"{adata.n_obs:,} cells in {adata.obs['scamac_cluster'].nunique()} clusters: {options.picture}")
    return options.picture


if __name__ == "__main__":
    main()
