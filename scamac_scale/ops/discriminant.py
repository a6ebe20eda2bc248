"""Linear discriminants from sums of each class.

Cells x (G) are of one of C classes with means m_c and a within-class covariance S that all share, shrunk towards a multiple of the identity.
The score of a class is x^T S^-1 m_c - m_c^T S^-1 m_c / 2 + log(n_c / n): all of it follows from sums over cells.
What technical batches add to cells of one class is part of S, so that directions in which batches differ count for little.

References
----------
Fisher, Annals of Eugenics 1936; Ledoit and Wolf, Journal of Multivariate Analysis 2004 (the target of the shrinkage).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-6
"""Share of the trace of a sum of float32 products that its rounding may reach in any direction."""
ABSENT = -1e4
"""Score of a class that has no cells."""


class Discriminant(NamedTuple):
    """Scores of the classes are ``x @ weight + bias``.

    Attributes
    ----------
    weight
        (G, C).
    bias
        (C,).
    """

    weight: Tensor
    bias: Tensor


def within_covariance(cross: Tensor, counts: Tensor, totals: Tensor) -> Tensor:
    """Pool the covariance within classes.

    Parameters
    ----------
    cross
        (G, G) float64, sum of x x^T.
    counts, totals
        (C,) and (C, G), cells and sum of x of each class; the same cells.

    Returns
    -------
    Tensor
        (G, G), divided by the number of cells; positive definite by `ROUNDING`, also for fewer cells than genes, or cells that are alike.
    """
    means = totals / counts.clamp_min(1)[:, None]
    least = (ROUNDING * cross.trace()).clamp_min(1e-12)
    return (cross - totals.T @ means + least * torch.eye(len(cross), dtype=cross.dtype)) / counts.sum().clamp_min(1)


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """(1 - shrinkage) S + shrinkage tr(S) / G."""
    n_genes = len(covariance)
    ridge = shrinkage * covariance.trace() / n_genes
    return (1 - shrinkage) * covariance + ridge * torch.eye(n_genes, dtype=covariance.dtype)


def discriminant(covariance: Tensor, counts: Tensor, totals: Tensor) -> Discriminant:
    """Solve for the scores of the classes.

    Parameters
    ----------
    covariance
        (G, G) float64, positive definite.
    counts, totals
        As of `within_covariance`, of all cells that are known.

    Returns
    -------
    Discriminant
        A class without cells has the score `ABSENT`.
    """
    means = totals / counts.clamp_min(1)[:, None]
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance))
    bias = -0.5 * (means.T * weight).sum(dim=0) + torch.log(counts.clamp_min(1) / counts.sum())
    return Discriminant(weight, torch.where(counts > 0, bias, ABSENT))
