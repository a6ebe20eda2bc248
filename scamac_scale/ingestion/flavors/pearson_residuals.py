"""scanpy's ``pearson_residuals``: variances of the analytic Pearson residuals of counts, without the N x G residuals.

A residual is ``(x - mu) / sqrt(mu + mu^2 / theta)`` with ``mu = total of the gene * total of the cell / total of all``, clipped at
``sqrt(N)``. That of a zero depends on the two totals alone, and totals of counts are whole numbers that many cells share: what all cells
would add if all were zeros is a sum over the *distinct* totals. What is not zero then adds the difference of its residual to that of a
zero, in one pass. The cost is O(nonzeros + distinct totals of cells x distinct totals of genes), in memory of a few numbers a gene and batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.flavors.over_batches import NO_SAY, choose_by_rank
from scamac_scale.ingestion.flavors.sums import (
    Choice,
    Common,
    add_exactly,
    fold,
    moments_of_batches,
    raw_moments,
    summed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.flavors.sums import BlockSums, Candidates, Rows

THETA = 100.0
"""Overdispersion of the negative binomial, shared by all genes, as in scanpy."""
ROUNDING = 1e-12
"""Variance of residuals that is rounding."""


def choose_pearson_residuals(candidates: Candidates) -> Choice:
    """Choose by the variance of Pearson residuals: by the number of technical batches, then by the median rank."""
    import pandas as pd

    n_batches, n_genes = candidates.shape
    common = Common(candidates.column, n_genes, candidates.tech, candidates.totals)
    batches = moments_of_batches(candidates, fold(candidates, raw_moments, common, "measuring counts"))
    genes = np.stack([moments.total for moments in batches])
    n_cells = np.array([moments.n_cells for moments in batches], dtype=np.float64)
    limits = np.column_stack([np.full(n_batches, clip_at(n_cells)), genes.sum(axis=1)])
    common = common._replace(of_batches=genes, limits=limits)
    sums = fold(candidates, beyond_zeros, common, "measuring residuals")
    for at in range(n_batches):
        own = candidates.totals if candidates.tech is None else candidates.totals[candidates.tech == at]
        sums[:, at] += as_if_zeros(own, genes[at], limits[at])
    means = sums[0] / n_cells[:, None]
    scores = np.maximum(sums[1] / n_cells[:, None] - means**2, 0.0)
    silent = [at for at in range(n_batches) if n_cells[at] < 2 or scores[at].max() <= ROUNDING]
    if len(silent) == n_batches:
        raise InputError(NO_SAY)
    scores = np.delete(scores, silent, axis=0)
    columns, is_variable = choose_by_rank(scores, candidates, is_rank_first=False)
    mean, variance = sum(batches[1:], batches[0]).mean_and_variance()
    table = pd.DataFrame({"means": mean, "variances": variance, "residual_variances": scores.mean(axis=0), **columns})
    return Choice(table, is_variable, tuple(silent))


def clip_at(n_cells: NDArray[np.float64]) -> float:
    """Residual beyond which values are clipped, of (T,) cells of technical batches: the root of those of the first, for all.

    scanpy 1.11 keeps what it finds for the first batch, and so all genes are the same as there. Later versions clip each batch at its
    own root, as the paper has it.
    """
    sized = n_cells[n_cells >= 2]
    return float(np.sqrt(sized[0] if len(sized) else 1.0))


def as_if_zeros(
    totals: NDArray[np.float64], genes: NDArray[np.float64], limits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum the residuals that cells would have if all of their values were zeros, and the squares of these.

    Parameters
    ----------
    totals
        (n,) totals of cells.
    genes
        (G,) totals of genes.
    limits
        Where residuals are clipped, and the total of all.

    Returns
    -------
    ndarray
        (2, G). The cost is that of the distinct totals, not of n x G.
    """
    cells, n_alike = np.unique(totals, return_counts=True)
    own, place = np.unique(genes, return_inverse=True)
    found = np.zeros((2, len(own)))
    _add_zeros(cells, n_alike.astype(np.float64), own, (limits[0], limits[1], THETA), found)
    return found[:, place]


def beyond_zeros(index: int, block: sparse.csr_matrix, start: int, common: Common) -> BlockSums:
    """Sum over the values of a block by how much their residuals, and the squares of these, are beyond those of zeros."""
    genes, limits = common.of_batches, common.limits
    assert common.cells is not None
    assert genes is not None
    assert limits is not None
    totals = common.cells[start : start + block.shape[0]]

    def add(rows: Rows, cells: IntArray, batch: int, into: NDArray[np.float64]) -> None:
        limit, total = limits[batch]
        _add_beyond(rows, cells, common.column, (totals, genes[batch], limit, total, THETA), into)

    return summed(block, start, common, 2, add)


@compiled
def _residual(value: Any, mu: Any, limit: Any, theta: Any) -> Any:  # pragma: no cover  compiled
    """0 where nothing is to be expected; elsewhere clipped; callable from other kernels."""
    if mu <= 0.0:
        return 0.0
    return min(max((value - mu) / np.sqrt(mu + mu * mu / theta), -limit), limit)


@compiled
def _add_zeros(cells: Any, n_alike: Any, genes: Any, known: Any, into: Any) -> None:  # pragma: no cover  compiled
    limit, total, theta = known
    for gene in range(len(genes)):
        for cell in range(len(cells)):
            residual = _residual(0.0, genes[gene] * cells[cell] / total, limit, theta)
            into[0, gene] += n_alike[cell] * residual
            into[1, gene] += n_alike[cell] * residual * residual


@compiled
def _add_beyond(rows: Any, cells: Any, column: Any, known: Any, into: Any) -> None:  # pragma: no cover  compiled
    indptr, indices, data = rows
    totals, genes, limit, total, theta = known
    for row in cells:
        for at in range(indptr[row], indptr[row + 1]):
            gene = column[indices[at]]
            value = np.float64(data[at])
            if gene >= 0 and value > 0.0:
                mu = genes[gene] * totals[row] / total
                residual = _residual(value, mu, limit, theta)
                zero = _residual(0.0, mu, limit, theta)
                add_exactly(into, 0, gene, residual - zero)
                add_exactly(into, 1, gene, residual * residual - zero * zero)
