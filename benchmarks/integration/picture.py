"""UMAP of some latents of one set, by batch and by type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from integration.latents import METHODS, TITLES, Options

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from integration.cells import BatchedCells

SHOWN = ("pca50", "pca50-harmony", "ours")


def umap_of(latent: NDArray[np.floating], seed: int) -> NDArray[np.float64]:
    """(N, 2), by scanpy's defaults."""
    import anndata
    import baselines
    import scanpy as sc

    adata = anndata.AnnData(np.zeros((len(latent), 1), np.float32), obsm={"X_pca": np.asarray(latent)})
    with baselines.quiet():
        baselines.add_graph(adata, seed)
        sc.tl.umap(adata, random_state=seed)
    return np.asarray(adata.obsm["X_umap"])


def draw(cells: BatchedCells, methods: tuple[str, ...], seed: int, options: Options, out: Path) -> None:
    """Write the picture: a column for each method, batches above and types below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = {cells.column: cells.batches, cells.label: cells.types}
    figure, axes = plt.subplots(2, len(methods), figsize=(4.2 * len(methods) + 2.4, 8.0), squeeze=False)
    order = np.random.default_rng(seed).permutation(cells.n_cells)  # so that no batch hides another
    for column, method in enumerate(methods):
        latent = METHODS[method].run(cells, seed, options).latent
        assert latent is not None
        places = umap_of(latent, seed)[order]
        for row, (name, labels) in enumerate(rows.items()):
            axis = axes[row, column]
            scatter(axis, places, labels[order])
            axis.set_title(f"{TITLES[method]}, by {name}" if row == 0 else f"by {name}", fontsize=10)
    for row in range(2):
        axes[row, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, markerscale=4, frameon=False)
    figure.suptitle(f"{cells.name}: UMAP, seed {seed}", fontsize=11)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def scatter(axis: Any, places: NDArray[np.float64], labels: NDArray[np.str_]) -> None:
    """One panel."""
    from matplotlib import colormaps

    names, codes = np.unique(labels, return_inverse=True)
    colors = colormaps["tab20" if len(names) > 10 else "tab10"]
    size = float(np.clip(6000 / len(places), 0.6, 8.0))
    # one call in the shuffled order, so that the last name does not lie on top
    axis.scatter(*places.T, c=colors(codes % colors.N), s=size, linewidths=0)
    for code, name in enumerate(names):
        axis.scatter([], [], color=colors(code % colors.N), s=size, label=name or "unlabelled")
    axis.set_xticks([])
    axis.set_yticks([])
