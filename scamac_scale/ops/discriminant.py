"""Linear discriminants from sums of each class, and probabilities from what cells that took no part have scored.

Cells x (G) are of one of C classes with means m_c and a within-class covariance S that all share, shrunk towards a multiple of the identity.
The score of a class is x^T S^-1 m_c - m_c^T S^-1 m_c / 2 + log(n_c / n): all of it follows from sums over cells.

References
----------
Fisher, Annals of Eugenics 1936; Ledoit and Wolf, Journal of Multivariate Analysis 2004 (the target of the shrinkage); Guo et al., ICML 2017
(temperature).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ABSENT = -1e4
"""Score of a class that has no cells."""
TEMPERATURES = torch.logspace(-3, 1, 161, dtype=torch.float64)
"""By which scores are multiplied: the grid on which the best is looked for."""


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
        (G, G), divided by the number of cells.
    """
    means = totals / counts.clamp_min(1)[:, None]
    return (cross - totals.T @ means) / counts.sum()


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """(1 - shrinkage) S + shrinkage tr(S) / G."""
    n_genes = len(covariance)
    ridge = (shrinkage * covariance.trace() / n_genes).clamp_min(1e-12)  # cells that are all alike
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


def label_loss(scores: Tensor, classes: Tensor, temperature: float) -> float:
    """Mean of -log p(class) over cells, p = softmax(temperature x scores); (n, C) float64 and (n,)."""
    p = torch.log_softmax(scores * temperature, dim=1)
    return float(-p.gather(1, classes[:, None]).mean())


def best_temperature(scores: Tensor, classes: Tensor) -> tuple[float, float]:
    """Find the temperature of `TEMPERATURES` that makes `label_loss` least, and the loss; arguments as there."""
    found = [(label_loss(scores, classes, float(each)), float(each)) for each in TEMPERATURES]
    loss, temperature = min(found)
    return temperature, loss


def between_temperatures(new: float, known: float, n_levels: int, n_parts: int) -> float:
    """Find the temperature for cells of a level that no rule has seen, of a rule that has seen all L levels.

    Parameters
    ----------
    new
        Best for cells of levels that a rule had not seen, which had learnt from the other parts.
    known
        Best for cells of levels that it had seen.
    n_levels, n_parts
        L, and F parts of whole levels.

    Returns
    -------
    float
        Between the two, on the scale of logarithms: where levels shift cells independently, what is off for a new one has the variance
        1 + 1 / L times that of a shift, and 1 + 1 / (L - L / F) when a part is left out.
    """
    n_seen = n_levels - n_levels / n_parts
    share = (1 + 1 / n_levels) / (1 + 1 / n_seen)
    return math.exp(share * math.log(new) + (1 - share) * math.log(known))


def unknown_below(probabilities: Tensor, share: float) -> float:
    """Find the largest probability below which at most a share of cells lie, by (n,) probabilities of their labels; 0 for none."""
    n_below = int(share * len(probabilities))
    return 0.0 if n_below == 0 else float(probabilities.sort().values[n_below])
