"""The variable genes of each cluster: one pass over the input sums for all clusters at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.ingestion.flavors.seurat import dispersion_table
from scamac_scale.ingestion.kinds import Verdict
from scamac_scale.ingestion.passes import sum_moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.flavors.sums import Moments
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

LEAST_CELLS, LEAST_SHARE = 5, 0.01
"""Cells of a cluster in which a gene must be, by the number of equal values that would have its sum and its sum of squares."""
OVERDISPERSION = 0.01
"""Squared coefficient of variation that all genes have, as in analytic Pearson residuals (Lause, Berens, Kobak 2021)."""
LOG_SCALE = 1e4
"""Total to which cells are scaled for dispersions, where the fit has none."""


READS = 200_000.0
"""Median total from which on counts are taken for reads, whose noise is that of amplification: they are cut as linear values are, by their
logarithms. A cell hardly has so many molecules that were counted one by one."""


def kind_of(space: GeneSpace, totals: NDArray[np.float64]) -> str:
    """Tell how values are cut: as ``counts`` (of molecules), as ``linear`` ones by their logarithms, or as ``log`` values as they are."""
    filled = totals[totals > 0]
    is_reads = space.kind == "counts" and len(filled) > 0 and float(np.median(filled)) >= READS
    return "linear" if is_reads else space.kind


def genes_of_clusters(
    raw: RawMatrix, codes: IntArray, n_clusters: int, space: GeneSpace, n_genes: int, engine: Engine
) -> tuple[NDArray[np.float64], list[IntArray]]:
    """Choose genes for each cluster.

    Parameters
    ----------
    raw
        (N, G) values.
    codes
        (N,) int32 cluster of each cell, 0 to K - 1, and K for cells of others.
    n_clusters
        K; each has a cell.
    space
        Of the fit: kind and base of the values.
    n_genes
        Genes of a cluster, at most.
    engine
        Maps over blocks.

    Returns
    -------
    totals : ndarray
        (N,) total of each cell over all genes.
    genes : list of ndarray
        Columns of `raw` of each cluster, ascending.

    Notes
    -----
    Memory: 32 bytes for each cluster and gene, and 8 for each cell. Sums carry their rounding error along, so that they do not depend on
    the blocks.
    """
    values = Verdict(space.kind, None if space.values is None else space.values.base)
    totals, moments = sum_moments(raw, np.ones(raw.n_genes, dtype=bool), values, engine, codes)
    kind = kind_of(space, totals)
    scale = space.target_sum or LOG_SCALE if kind == "linear" else 1.0
    found = []
    for code in range(n_clusters):
        found.append(variable_genes(moments[code].scaled(scale), n_genes, kind, totals[codes == code]))
    return totals, found


def variable_genes(moments: Moments, n_genes: int, kind: str, totals: NDArray[np.float64]) -> IntArray:
    """Choose the genes of one cluster that vary most.

    Notes
    -----
    Of counts by the variance of Pearson residuals, as sums give it: the variance of ``x / total`` over what Poisson counts around the mean of
    the gene have, and `OVERDISPERSION` of noise. Genes by which parts of a cluster differ must be seen in its cells, which a rank among genes
    of the same mean does not ask for. Of other values by dispersion among genes of about the same mean.
    """
    squares = np.maximum(moments.squared, np.finfo(np.float64).tiny)
    n_effective = moments.total**2 / squares
    passing = np.flatnonzero(n_effective >= max(LEAST_CELLS, LEAST_SHARE * moments.n_cells))
    if len(passing) <= n_genes:
        return passing
    marks = np.zeros(len(squares), dtype=bool)
    marks[passing] = True
    if kind == "counts":
        mean, variance = moments.of(marks).mean_and_variance()
        filled = totals[totals > 0]
        score = variance / (mean * (1 / filled).mean() + mean**2 * OVERDISPERSION)
    else:
        score = dispersion_table(moments.of(marks))["dispersions_norm"].fillna(-np.inf).to_numpy()
    best = np.argsort(-score, kind="stable")[:n_genes]
    return np.sort(passing[best])
