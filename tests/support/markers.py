"""A small result with markers at hand, and the table of scanpy's own words in loops of float64."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from scipy import sparse, stats

from scamac_scale.cells.genes import GeneSpace

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_CELLS, N_GENES = 240, 40
TARGET = 50.0


@dataclass(frozen=True, eq=False)
class Case:
    """A raw atlas, a result of its cells, and its log-normalised values.

    Attributes
    ----------
    atlas, out
        Paths: h5ad of counts, zarr of the result.
    raw
        What the atlas holds.
    values
        (N, G) float64.
    """

    atlas: Path
    out: Path
    raw: ad.AnnData
    values: NDArray[np.float64]

    @property
    def labels(self) -> NDArray[Any]:
        """(N,) cluster of each cell."""
        return self.raw.obs["scamac_cluster"].astype(str).to_numpy()


def counts_of(seed: int = 0) -> ad.AnnData:
    """Counts of three clusters with genes of their own, one gene that nobody has, one that all have alike, and cells without counts."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, N_CELLS, p=[0.6, 0.3, 0.1])
    rates = rng.gamma(0.7, 1.0, (3, N_GENES))
    rates[:, 5] = 0
    counts = rng.poisson(rates[codes]).astype(np.float32)
    counts[:, 6] = 1
    counts[17] = 0
    counts[18, :3] = [40, 300, 0]  # beyond the table of small counts
    names = [f"cell{i}" for i in range(N_CELLS)]
    clusters = pd.Categorical.from_codes(codes, ["0", "1", "2"])
    kind = pd.Series(np.where(codes == 2, "Ä/b", "a"), index=names, dtype=object)
    kind.iloc[3] = None
    obs = pd.DataFrame({"scamac_cluster": clusters, "kind": kind, "number": codes, "depth": counts.sum(1)}, index=names)
    return ad.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]))


def space_of(adata: ad.AnnData) -> GeneSpace:
    """Totals over three in four genes."""
    names = list(adata.var_names)
    filtered = tuple(name for at, name in enumerate(names) if at % 4)
    return GeneSpace("counts", TARGET, filtered, filtered[:20])


def normalised(adata: ad.AnnData, space: GeneSpace) -> NDArray[np.float64]:
    """(N, G) values as the fit has them, cell by cell."""
    counts = adata.X.toarray().astype(np.float64)
    counted = [name in set(space.filtered) for name in adata.var_names]
    found = np.zeros_like(counts)
    for cell, row in enumerate(counts):
        total = sum(row[counted])
        if total > 0:
            found[cell] = np.log1p(row * space.target_sum / total)
    return found


def write_result(path: Path, raw: ad.AnnData, space: GeneSpace) -> Path:
    """What predict leaves of these cells, as far as markers look at it."""
    uns = {"scamac_details": {"gene_space": json.dumps(space.to_dict()), "genes": np.array(space.chosen, dtype=object)}}
    var = pd.DataFrame(index=pd.Index(space.chosen, dtype=object))
    latent = np.arange(2.0 * len(raw.obs), dtype=np.float32).reshape(-1, 2)
    result = ad.AnnData(obs=raw.obs.drop(columns="depth"), var=var, obsm={"X_scAMAC": latent}, uns=uns)
    if path.suffix == ".h5ad":
        result.write_h5ad(path)
    else:
        write_elem(zarr.open_group(path, mode="w", zarr_format=3), "/", result, dataset_kwargs={"shards": None})
    return path


def make_case(folder: Path) -> Case:
    """Write the atlas and a result."""
    raw = counts_of()
    raw.write_h5ad(folder / "atlas.h5ad")
    space = space_of(raw)
    out = write_result(folder / "out.zarr", raw, space)
    return Case(folder / "atlas.h5ad", out, raw, normalised(raw, space))


def reference_table(
    values: NDArray[np.float64], labels: NDArray[Any], group: str, method: str, reference: str = "rest"
) -> dict[str, NDArray[np.float64]]:
    """Welch's t-test of each gene of one group, in a loop, as scanpy's documentation and code have it."""
    own = values[labels == group]
    rest = values[labels != group] if reference == "rest" else values[labels == reference]
    n_rest = len(rest) if method == "t-test" else len(own)
    found: dict[str, list[float]] = {name: [] for name in ("scores", "pvals", "logfoldchanges", "pts", "pts_rest")}
    for gene in range(values.shape[1]):
        a, b = own[:, gene], rest[:, gene]
        with np.errstate(invalid="ignore", divide="ignore"):
            score, p = stats.ttest_ind_from_stats(
                a.mean(), a.std(ddof=1), len(a), b.mean(), b.std(ddof=1), n_rest, equal_var=False
            )
        found["scores"].append(0.0 if np.isnan(score) else float(score))
        found["pvals"].append(1.0 if np.isnan(p) else float(p))
        found["logfoldchanges"].append(float(np.log2((np.expm1(a.mean()) + 1e-9) / (np.expm1(b.mean()) + 1e-9))))
        found["pts"].append(float((a > 0).mean()))
        found["pts_rest"].append(float((b > 0).mean()))
    return {name: np.array(column) for name, column in found.items()}
