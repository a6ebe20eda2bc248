"""An atlas cut into files, and the same files with other genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


def cut(adata: ad.AnnData, folder: Path, n_files: int) -> list[Path]:
    """Write runs of cells as ``part00.h5ad``, ``part01.h5ad``, ..."""
    folder.mkdir(exist_ok=True)
    edges = np.linspace(0, adata.n_obs, n_files + 1).astype(int)
    paths = [folder / f"part{number:02d}.h5ad" for number in range(n_files)]
    for path, start, stop in zip(paths, edges[:-1], edges[1:], strict=True):
        adata[start:stop].copy().write_h5ad(path)
    return paths


def with_other_genes(adata: ad.AnnData, folder: Path) -> list[Path]:
    """Write three files of other gene orders, the last of which lacks the fifth gene and has one of its own."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    paths = []
    for number, (start, stop) in enumerate(((0, 110), (110, 200), (200, 300))):
        genes = np.arange(adata.n_vars) if number == 0 else rng.permutation(adata.n_vars)
        part = adata[start:stop, genes].copy()
        if number == 2:
            part = part[:, part.var_names != "gene005"].copy()
            part.var_names = [f"{name}x" if name == "gene007" else name for name in part.var_names]
        paths.append(folder / f"other{number}.h5ad")
        part.write_h5ad(paths[-1])
    return paths


def arrays_of(store: Path) -> dict[str, bytes]:
    """Every file of the values of a store, by its name."""
    return {
        str(path.relative_to(store)): path.read_bytes() for path in sorted((store / "X").rglob("*")) if path.is_file()
    }
