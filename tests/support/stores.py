"""Training stores of random counts, and what went into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import IngestConfig
from scamac_scale.store import layout
from scamac_scale.store.writer import StoreHeader, write_store

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Written:
    """A store and what went into it."""

    path: Path
    raw: sparse.csr_matrix
    totals: np.ndarray
    space: GeneSpace
    obs: pd.DataFrame

    @property
    def expected(self) -> np.ndarray:
        """(N, G) log-normalised values in float64."""
        dense = self.raw.toarray().astype(np.float64)
        if self.space.target_sum is None:
            return dense
        scale = np.divide(self.space.target_sum, self.totals, out=np.zeros_like(self.totals), where=self.totals > 0)
        return np.log1p(dense * scale[:, None])


def counts(n_cells: int, n_genes: int, density: float = 0.2, seed: int = 0, mean: float = 2.0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    matrix = sparse.random(n_cells, n_genes, density, format="csr", random_state=seed)
    matrix.data = rng.poisson(mean, matrix.nnz) + 1
    return matrix


def write(path: Path, raw: sparse.csr_matrix, **options: Any) -> Written:
    """Write a store; options: kind, obs, chunk_values, block_cells, overwrite, blocks, profile, shuffle, seed (which shuffles)."""
    n_cells, n_genes = raw.shape
    kind = options.get("kind", "counts")
    genes = tuple(f"gene{i}" for i in range(n_genes))
    space = GeneSpace(kind, None if kind == "log" else 1000.0, (*genes, "other"), genes)
    totals = np.asarray(raw.sum(1), dtype=np.float64).ravel() * 1.5  # filtered genes that were not chosen count, too
    obs = options.get("obs", pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]))
    ours = {layout.TOTAL: totals, layout.SOURCE_ROW: np.arange(n_cells)}
    chunk = options.get("chunk_values", 2**15)
    sizes = layout.Sizes(chunk_values=chunk, shard_values=16 * chunk)
    header = StoreHeader(
        gene_space=space,
        value_dtype=layout.value_dtype(kind, raw.max() if raw.nnz else 0),
        n_values=raw.nnz,
        config=IngestConfig(
            kind=kind,
            profile=options.get("profile", "fast"),
            shuffle=options.get("shuffle", "seed" in options),
            seed=options.get("seed", 0),
        ),
        sizes=sizes,
        inputs=({"name": "here"},),
    )
    step = options.get("block_cells", 100)
    blocks = options.get("blocks", (raw[start : start + step] for start in range(0, n_cells, step)))
    write_store(
        path,
        blocks,
        header=header,
        obs=obs.assign(**ours),
        var=pd.DataFrame({"n_cells": np.arange(n_genes)}, index=list(genes)),
        overwrite=options.get("overwrite", False),
    )
    return Written(path, raw, totals, space, obs)
