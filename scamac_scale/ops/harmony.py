"""Correction of technical batches: Harmony 2, as sums over cells that add up over any cut.

z (B, d) are components of cells, each of a level in every one of C covariates (donor, chip); L levels in all, numbered through. The
soft clusters, Q of them, are those of Eqs. (13) and (14) on unit vectors, with a factor that avoids clusters of one level. A round of
passes ends in a ridge regression in each cluster; its result is a `Layer`: a pure function of z and the levels. Passes over the cells,
and where they lie, are not here: see `train.correction`.

References
----------
Korsunsky et al., Nature Methods 2019; Harmony 2: doi 10.64898/2026.03.16.711825. Unknown levels: Symphony, Kang et al., Nature
Communications 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from scamac_scale.ops.similarity import unit_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LEAST_SHARE = 1e-5
"""A level with a smaller share of its cells in a cluster is not corrected there."""
NARROW = 16
"""Columns below which the place of a row shows in a product."""


class Design(NamedTuple):
    """Of which levels the cells are.

    Attributes
    ----------
    counts
        Levels of each covariate.
    cells
        (L,) float64, cells of each level.
    """

    counts: tuple[int, ...]
    cells: Tensor

    @property
    def n_cells(self) -> Tensor:
        """() cells of all levels of a covariate."""
        return self.cells[: self.counts[0]].sum()

    def sizes(self, observed: Tensor) -> Tensor:
        """(Q,) cells of each cluster, from the (Q, L) of each level."""
        return observed[:, : self.counts[0]].sum(dim=1)

    def expected(self, observed: Tensor) -> Tensor:
        """(Q, L) cells of each level in each cluster, if clusters did not know the levels: N_q N_b / N."""
        return self.sizes(observed)[:, None] * (self.cells / self.n_cells)


def log_penalty(observed: Tensor, design: Design, theta: float) -> Tensor:
    """Logarithm of the factor by which a level's cells avoid clusters that are full of them.

    Parameters
    ----------
    observed
        (Q, L), cells O of each level in each cluster.
    design
        Of the cells.
    theta
        How strongly; 0 gives 0.

    Returns
    -------
    Tensor
        (Q, L) ``theta log((2 E + 1) / (O + E + 1))``.

    Notes
    -----
    As R harmony 2.0 and harmonypy 2; scanpy and rapids have E + 1 for 2 E + 1, which differs where E is small.
    """
    expected = design.expected(observed)
    return theta * torch.log((2.0 * expected + 1.0) / (observed + expected + 1.0))


def soft_clusters(z: Tensor, levels: Tensor, centers: Tensor, penalty: Tensor, sigma: float) -> Tensor:
    """Soft assignment of cells to clusters.

    Parameters
    ----------
    z
        (..., B, d), corrected so far; a block axis may stand in front.
    levels
        (..., B, C) int64, levels of each cell, numbered through; with C = 0 nothing is avoided.
    centers
        (Q, d), unit rows.
    penalty
        (L, Q), from `log_penalty`, transposed.
    sigma
        Width.

    Returns
    -------
    Tensor
        r (..., B, Q), each row of sum 1, proportional to ``exp(-2 (1 - Y z / |z|) / sigma)`` times the factors of the levels.
    """
    return torch.softmax(_logits(z, levels, centers, penalty, sigma), dim=-1)


def soft_clusters_and_sums(
    z: Tensor, levels: Tensor, centers: Tensor, penalty: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """`soft_clusters`, and the logarithm (..., B) of what its rows were divided by."""
    logits = _logits(z, levels, centers, penalty, sigma)
    return torch.softmax(logits, dim=-1), torch.logsumexp(logits, dim=-1)


def _logits(z: Tensor, levels: Tensor, centers: Tensor, penalty: Tensor, sigma: float) -> Tensor:
    unit = unit_rows(z.flatten(0, -2)).view_as(z)
    logits = rows_times(unit, centers.T).sub_(1.0).mul_(2.0 / sigma)
    for column in range(levels.shape[-1]):
        logits += penalty[levels[..., column]]
    return logits


def rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    """Product of (..., B, m) and (m, n), block by block: a row does not depend on how many blocks there are, nor on its place in one.

    BLAS has kernels for results of few columns in which the place shows, so such ones are made wider first.
    """
    width = matrix.shape[1]
    if width < NARROW:
        matrix = functional.pad(matrix, (0, NARROW - width))
    found = torch.bmm(x, matrix.expand(len(x), *matrix.shape)) if x.ndim == 3 else x @ matrix
    return found[..., :width].contiguous() if width < NARROW else found


class ClusterSums(NamedTuple):
    """What a pass adds up.

    Attributes
    ----------
    observed
        (Q, L) float64, O: sum of r over the cells of each level.
    towards
        (Q, d) float64, T: sum of r z / |z| over all cells.
    """

    observed: Tensor
    towards: Tensor

    def __add__(self, other: ClusterSums) -> ClusterSums:  # type: ignore[override]  # sums, not concatenated tuples
        """Add, field by field: the sums over both sets of cells."""
        return ClusterSums(self.observed + other.observed, self.towards + other.towards)


def cluster_sums(z: Tensor, levels: Tensor, r: Tensor, n_levels: int) -> ClusterSums:
    """Sum over (B, d) cells what clusters are made of; arguments as of `soft_clusters`."""
    return ClusterSums(_by_level(r, levels, n_levels), (r.T @ unit_rows(z)).double())


def _by_level(r: Tensor, levels: Tensor, n_levels: int) -> Tensor:
    """(Q, L) float64, sum of r over the cells of each level."""
    is_of = torch.zeros(len(r), n_levels, dtype=r.dtype, device=r.device).scatter_(1, levels, 1.0)
    return (r.T @ is_of).double()


class RidgeSums(NamedTuple):
    """What the regressions are made of; of cells as they were before any correction.

    Attributes
    ----------
    observed
        (Q, L) float64, O.
    weighted
        (Q, L, d) float64, S: sum of r z over the cells of each level.
    crossed
        (Q, L, L) float64, sum of r over the cells of each two levels; of width 0 with one covariate.
    objective
        () float64, sum of the logarithms of `soft_clusters_and_sums`.
    """

    observed: Tensor
    weighted: Tensor
    crossed: Tensor
    objective: Tensor

    def __add__(self, other: RidgeSums) -> RidgeSums:  # type: ignore[override]  # sums, not concatenated tuples
        """Add, field by field: the sums over both sets of cells."""
        return RidgeSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def ridge_sums(z: Tensor, levels: Tensor, r: Tensor, log_sums: Tensor, n_levels: int) -> RidgeSums:
    """Sum over (B, d) cells what `ridge` needs; `z` before any correction, the rest from `soft_clusters_and_sums`."""
    n_columns, width = levels.shape[1], r.shape[1]
    weighted = r.new_zeros(n_levels, width, z.shape[1], dtype=torch.float64)
    crossed = r.new_zeros(width, *(2 * [n_levels if n_columns > 1 else 0]), dtype=torch.float64)
    for column in range(n_columns):
        for level, rows in _rows_by_level(levels[:, column]):
            weighted[level] = (r[rows].T @ z[rows]).double()
            if n_columns > 1:
                crossed[:, level] = _by_level(r[rows], levels[rows], n_levels)
    observed = _by_level(r, levels, n_levels)
    return RidgeSums(observed, weighted.transpose(0, 1), crossed, log_sums.double().sum())


def _rows_by_level(levels: Tensor) -> list[tuple[int, Tensor]]:
    """Levels of (B,) cells that occur, and the rows of each."""
    order = torch.argsort(levels, stable=True)
    found, counts = torch.unique_consecutive(levels[order], return_counts=True)
    return list(zip(found.tolist(), torch.split(order, counts.tolist()), strict=True))


def level_sums(z: Tensor, levels: Tensor, r: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Sum r, (Q, L), and r z, (Q, L, d), over the (B, d) cells of each of (B,) levels, for `map_levels`; cells past L do not count."""
    is_new = levels < n_levels
    z, levels, r = z[is_new], levels[is_new], r[is_new]
    weighted = r.new_zeros(n_levels, r.shape[1], z.shape[1], dtype=torch.float64)
    for level, rows in _rows_by_level(levels):
        weighted[level] = (r[rows].T @ z[rows]).double()
    return _by_level(r, levels[:, None], n_levels), weighted.transpose(0, 1)


def objective(sums: RidgeSums, penalty: Tensor, design: Design, sigma: float, theta: float) -> Tensor:
    """Find what the passes make smaller, for the stop.

    Parameters
    ----------
    sums
        Of all cells, with r of `penalty`.
    penalty
        (Q, L), of `log_penalty`.
    design
        Of the cells.
    sigma, theta
        As of the settings.

    Returns
    -------
    Tensor
        () ``sum r 2 (1 - Y z) + sigma sum r log r + sigma sum theta O log((O + E + 1) / (2 E + 1))``. The first two are
        ``sigma (sum O penalty - sum log sums)``, since r is a softmax.
    """
    entropy = (sums.observed * penalty).sum() - sums.objective
    return sigma * (entropy - (sums.observed * log_penalty(sums.observed, design, theta)).sum())


def ridge(sums: RidgeSums, design: Design, alpha: float) -> Tensor:
    """Offset of each level in each cluster.

    Parameters
    ----------
    sums
        Of all cells.
    design
        Of the cells.
    alpha
        Ridge, as a share of the expected cells: lambda = alpha E.

    Returns
    -------
    Tensor
        (L, Q, d) float64, beta; 0 where a level has less than `LEAST_SHARE` of its cells in the cluster.

    Notes
    -----
    One covariate has a closed form: with w = lambda / (O + lambda), ``beta_0 = sum w S / sum w O`` over the levels, ``beta_b = (S_b - O_b
    beta_0) / (O_b + lambda_b)``. Several need a solve of size 1 + L in each cluster.
    """
    observed, weighted = sums.observed, sums.weighted
    ridge_ = alpha * design.expected(observed)
    is_kept = observed >= LEAST_SHARE * design.cells
    if len(design.counts) > 1:
        return _solved(sums, design, ridge_, is_kept)
    tiny = torch.finfo(observed.dtype).tiny
    inverse = is_kept / (observed + ridge_).clamp_min(tiny)
    share = ridge_ * inverse
    weight = (share * observed).sum(dim=1, keepdim=True).clamp_min(tiny)
    intercept = (share[:, :, None] * weighted).sum(dim=1) / weight
    beta = (weighted - observed[:, :, None] * intercept[:, None]) * inverse[:, :, None]
    return beta.transpose(0, 1).contiguous()


def _solved(sums: RidgeSums, design: Design, ridge_: Tensor, is_kept: Tensor) -> Tensor:
    """`ridge` for several covariates; a level that is not kept has no column."""
    observed = sums.observed * is_kept
    sizes, first = design.sizes(sums.observed), design.counts[0]
    n_clusters, n_levels = observed.shape
    matrix = observed.new_zeros(n_clusters, 1 + n_levels, 1 + n_levels)
    matrix[:, 0, 0] = torch.where(sizes > 0, sizes, 1.0)
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = observed
    matrix[:, 1:, 1:] = sums.crossed * (is_kept[:, :, None] & is_kept[:, None, :])
    matrix[:, 1:, 1:] += torch.diag_embed(torch.where(is_kept, ridge_, 1.0))
    total = sums.weighted[:, :first].sum(dim=1, keepdim=True)
    right = torch.cat([total, sums.weighted * is_kept[:, :, None]], dim=1)
    beta: Tensor = torch.linalg.solve(matrix, right)[:, 1:]
    return beta.transpose(0, 1).contiguous()


class Layer(NamedTuple):
    """One correction; a pure function of cells and their levels.

    Attributes
    ----------
    centers
        (Q, d), unit rows.
    penalty
        (L, Q), from `log_penalty`, transposed.
    beta
        (L, Q, d), from `ridge`.
    """

    centers: Tensor
    penalty: Tensor
    beta: Tensor


def offset(r: Tensor, levels: Tensor, beta: Tensor) -> Tensor:
    """Find what is taken from cells: ``sum_q r_q beta_{b, q}``, over the covariates.

    Parameters
    ----------
    r
        (..., B, Q), from `soft_clusters`.
    levels
        (..., B, C).
    beta
        (L, Q, d).

    Returns
    -------
    Tensor
        (..., B, d); a cell's row does not depend on the others.
    """
    n_levels, n_clusters, width = beta.shape
    flat, places = r.reshape(-1, n_clusters), torch.arange(n_clusters, device=r.device)
    table, found = beta.reshape(n_levels * n_clusters, width), None
    for column in range(levels.shape[-1]):
        rows = levels[..., column].reshape(-1, 1) * n_clusters + places
        part = functional.embedding_bag(rows, table, per_sample_weights=flat, mode="sum")
        found = part if found is None else found + part
    assert found is not None
    return found.view(*r.shape[:-1], width)


def corrected(z: Tensor, levels: Tensor, layers: Sequence[Layer], sigma: float) -> Tensor:
    """Apply corrections, one after the other: each finds its clusters in what the last one gave, and takes its offset from `z`.

    Parameters
    ----------
    z
        (..., B, d).
    levels
        (..., B, C) int64, numbered through.
    layers
        In their order.
    sigma
        Width of the soft clusters.

    Returns
    -------
    Tensor
        As `z`.
    """
    found = z
    for layer in layers:
        r = soft_clusters(found, levels, layer.centers, layer.penalty, sigma)
        found = z - offset(r, levels, layer.beta)
    return found


class Reference(NamedTuple):
    """What is kept of the cells of a fit, to place cells of an unknown level among them.

    Attributes
    ----------
    sizes
        (Q,), cells of each cluster.
    sums
        (Q, d), sum of r z over them, z corrected.
    """

    sizes: Tensor
    sums: Tensor


def map_levels(observed: Tensor, weighted: Tensor, reference: Reference) -> Tensor:
    """Offsets of levels that no fit has seen.

    Parameters
    ----------
    observed
        (Q, L) sum of r over the new cells of each level, r from the last centers without penalty.
    weighted
        (Q, L, d) sum of r z over them.
    reference
        Of the fit.

    Returns
    -------
    Tensor
        (L, Q, d) float64.

    References
    ----------
    Symphony: per cluster ``(Phi R Phi^T + diag(0, 1, ..) + N_q at (0, 0)) W = Phi R Z + C_q`` in row 0, without row 0. Each cell has one
    level, so this has the closed form of `ridge` with lambda 1 and the cells of the fit in the first row.
    """
    inverse = 1.0 / (observed + 1.0)
    weight = (observed * inverse).sum(dim=1, keepdim=True) + reference.sizes[:, None]
    tiny = torch.finfo(observed.dtype).tiny
    intercept = ((inverse[:, :, None] * weighted).sum(dim=1) + reference.sums) / weight.clamp_min(tiny)
    beta = (weighted - observed[:, :, None] * intercept[:, None]) * inverse[:, :, None]
    return beta.transpose(0, 1).contiguous()
