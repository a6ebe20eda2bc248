"""In scanpy's style: one call writes clusters, latent and memberships into an AnnData in memory.

python examples/scanpy_style.py atlas.h5ad result.h5ad
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad

import scamac_scale as sms


def main(arguments: list[str] | None = None) -> ad.AnnData:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="h5ad with raw counts, TPM or log values in X")
    parser.add_argument("result", type=Path, help="the same cells with the clusters")
    options = parser.parse_args(arguments)

    adata = ad.read_h5ad(options.data)
    sms.tl.scamac(adata)
    print(adata.obs["scamac_cluster"].value_counts().to_string())
    adata.write_h5ad(options.result)
    return adata


if __name__ == "__main__":
    main()
