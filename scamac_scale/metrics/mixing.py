"""How well batches mix among neighbours, and how well labels keep apart: LISI, graph connectivity, kBET, neighbours of the own batch.

A batch is an experimental one here, as donor or chip; codes of batches and labels are whole numbers from 0 on. All scores are of
the neighbours of a sample (`scamac_scale.metrics.neighbors`), in which a cell is not its own neighbour: where a published score
counts it as one, so do we, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[np.integer[Any]]

LISI_NEIGHBORS = 90
"""Neighbours of LISI, the cell itself counted, as in Harmony and scib-metrics: three times the perplexity."""
GRAPH_NEIGHBORS = 15
"""Neighbours of the graph of `graph_connectivity`, the cell itself counted, as in scIB."""
KBET_NEIGHBORS = 50
"""Neighbours of `kbet_accepted`, the cell itself counted."""
KBET_ALPHA = 0.05
"""Level of the test of `kbet_accepted`."""
MIN_CELLS = 12
"""Fewest cells for which there are scores: the perplexity is then 4."""
_TOLERANCE = 1e-5
"""Of the entropy of the weights of LISI, in nats, as in scib-metrics."""
_MAX_HALVINGS = 50
"""Of the interval in which the width of the weights is looked for."""
_BLOCK_CELLS = 4096


def lisi(
    distances: NDArray[np.floating[Any]],
    indices: NDArray[np.integer[Any]],
    codes: Codes,
    perplexity: float | None = None,
) -> NDArray[np.float64]:
    """Count the levels in the neighbourhood of each cell: the local inverse Simpson index.

    Parameters
    ----------
    distances
        (N, k) Euclidean, to other cells.
    indices
        (N, k) rows of these.
    codes
        (N,) level of each cell, from 0 on.
    perplexity
        Effective number of neighbours, more than 1 and less than k; None takes a third of ``k + 1``, rounded down.

    Returns
    -------
    numpy.ndarray
        (N,) 1 (one level) to the number of levels (all alike often).

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    InputError
        If there are too few neighbours for the perplexity.

    Notes
    -----
    Weights ``p_j ~ exp(-beta d_j)`` with the entropy log(perplexity), found by bisection from beta = 1 as in scib-metrics 0.5.10, of
    which this gives the numbers of ``lisi_knn`` where the cell is the first of its own neighbours. Distances are taken from the
    nearest on, which changes no weight but keeps those of far neighbours from becoming 0 all at once. Then ``1 / sum_b p_b^2``
    over the levels b.

    References
    ----------
    Korsunsky et al., Nature Methods 16, 1289 (2019), online methods.
    """
    _check(indices, codes)
    if distances.shape != indices.shape:
        raise ShapeError(f"distances {distances.shape} and indices {indices.shape} must both have the shape (N, k).")
    k = distances.shape[1]
    perplexity = (k + 1) // 3 if perplexity is None else perplexity
    if not 1 < perplexity < k:
        raise InputError(f"{k} neighbours are too few for a perplexity of {perplexity:g}, or it is not above 1.")
    n_levels = int(codes.max()) + 1
    found = np.empty(len(indices))
    for start in range(0, len(indices), _BLOCK_CELLS):
        block = slice(start, start + _BLOCK_CELLS)
        weights = _weights(np.asarray(distances[block], dtype=np.float64), float(perplexity))
        shares = _summed(codes[indices[block]], n_levels, weights)
        found[block] = 1.0 / (shares**2).sum(axis=1)
    return found


def _weights(distances: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """(B, k) weights of neighbours whose entropy is the logarithm of the perplexity."""
    excess = distances - distances.min(axis=1, keepdims=True)
    beta, low, high = np.ones(len(excess)), np.zeros(len(excess)), np.full(len(excess), np.inf)
    weights, entropy = _soft(excess, beta)
    for _ in range(_MAX_HALVINGS):
        gap = entropy - np.log(perplexity)
        left = np.flatnonzero(np.abs(gap) >= _TOLERANCE)
        if not left.size:
            break
        is_wide = gap[left] > 0
        low[left] = np.where(is_wide, beta[left], low[left])
        high[left] = np.where(is_wide, high[left], beta[left])
        bound = np.isfinite(high[left])
        beta[left] = np.where(bound, (low[left] + np.where(bound, high[left], 0.0)) / 2, beta[left] * 2)
        weights[left], entropy[left] = _soft(excess[left], beta[left])
    return weights


def _soft(excess: NDArray[np.float64], beta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B, k) weights that sum to 1, and (B,) their entropy."""
    weights = np.exp(-excess * beta[:, None])
    total = weights.sum(axis=1)
    entropy = np.log(total) + beta * (excess * weights).sum(axis=1) / total
    return weights / total[:, None], entropy


def scaled_ilisi(values: NDArray[np.float64], n_batches: int) -> float:
    """Turn LISI of batches into 0 (each cell among its own) to 1 (mixed): ``(median - 1) / (B - 1)``, as scib-metrics."""
    return float((np.median(values) - 1) / (n_batches - 1))


def scaled_clisi(values: NDArray[np.float64], n_labels: int) -> float:
    """Turn LISI of labels into 0 (mixed) to 1 (kept apart): ``(L - median) / (L - 1)``, as scib-metrics."""
    return float((n_labels - np.median(values)) / (n_labels - 1))


def graph_connectivity(indices: NDArray[np.integer[Any]], labels: Codes) -> float:
    """Tell whether the cells of each label hang together in the graph of neighbours.

    Parameters
    ----------
    indices
        (N, k) rows of the nearest other cells; scIB has k = 14, `GRAPH_NEIGHBORS` with the cell itself.
    labels
        (N,) from 0 on.

    Returns
    -------
    float
        Mean over labels of the share of their cells in their largest connected part, above 0 to 1.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    Two cells are joined where one of them is a neighbour of the other, as in scIB, whose graph is scanpy's symmetric one. scib-metrics
    instead takes strongly connected parts of the directed graph, which are smaller.

    References
    ----------
    Luecken et al., Nature Methods 19, 41 (2022), online methods, "graph connectivity".
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    _check(indices, labels)
    n_cells, k = indices.shape
    rows, columns = np.repeat(np.arange(n_cells), k), indices.ravel()
    is_within = labels[rows] == labels[columns]
    edges = (np.ones(int(is_within.sum()), dtype=np.int8), (rows[is_within], columns[is_within]))
    parts = connected_components(sparse.csr_matrix(edges, shape=(n_cells, n_cells)), directed=False)[1]
    sizes = np.bincount(parts)
    largest = np.zeros(int(labels.max()) + 1)
    np.maximum.at(largest, labels, sizes[parts])
    counts = np.bincount(labels)
    return float(np.mean(largest[counts > 0] / counts[counts > 0]))


def kbet_accepted(
    indices: NDArray[np.integer[Any]], batches: Codes, alpha: float = KBET_ALPHA
) -> tuple[float, NDArray[np.float64]]:
    """Test for each cell whether its neighbours are of the batches as often as all cells are.

    Parameters
    ----------
    indices
        (N, k) rows of the nearest other cells.
    batches
        (N,) from 0 on.
    alpha
        Level of the test, 0 to 1.

    Returns
    -------
    accepted
        Share of cells whose p-value is at least `alpha`: ``1 - alpha`` and more where batches are mixed, 0 where they are apart.
    statistic
        (N,) of Pearson's chi-squared test.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    InputError
        If there is one batch only.

    Notes
    -----
    The variant: every cell is tested, once, with the fixed number k of neighbours; the cell itself counts as one more, as in the
    authors' R package and in scib-metrics, whose ``kbet`` this equals; expected are the shares of the batches in the sample, not in
    the label of the cell; degrees of freedom are one less than the batches.

    References
    ----------
    Buettner et al., Nature Methods 16, 43 (2019).
    """
    from scipy.special import chdtrc

    _check(indices, batches)
    counts = np.bincount(batches)
    is_there = counts > 0
    if is_there.sum() < 2:
        raise InputError("there is one batch only; kBET compares at least two.")
    n_cells, k = indices.shape
    expected = (k + 1) * counts[is_there] / n_cells
    statistic = np.empty(n_cells)
    for start in range(0, n_cells, _BLOCK_CELLS):
        block = slice(start, start + _BLOCK_CELLS)
        observed = _summed(batches[indices[block]], len(counts))
        observed[np.arange(len(observed)), batches[block]] += 1
        statistic[block] = ((observed[:, is_there] - expected) ** 2 / expected).sum(axis=1)
    p_values = chdtrc(int(is_there.sum()) - 1, statistic)
    return float(np.mean(p_values >= alpha)), statistic


@dataclass(frozen=True, eq=False)
class OwnBatch:
    """How often neighbours are of the cell's own batch; mean over the cells of each of B batches, NaN for one without cells.

    Attributes
    ----------
    found
        (B,) share of the neighbours, 0 to 1.
    expected
        (B,) the same if, within each group of cells, batches were mixed, 0 to 1.
    """

    found: NDArray[np.float64]
    expected: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """(B,) 0 where batches mix as well as they can, 1 where each keeps to itself; NaN where nothing can mix."""
        room = 1 - self.expected
        is_open = room > 1e-9
        return np.where(is_open, (self.found - self.expected) / np.where(is_open, room, 1.0), np.nan)


def own_batch(indices: NDArray[np.integer[Any]], batches: Codes, groups: Codes) -> OwnBatch:
    """Tell how much each batch keeps to itself beyond what the make-up of its cells explains.

    Parameters
    ----------
    indices
        (N, k) rows of the nearest other cells.
    batches
        (N,) from 0 on.
    groups
        (N,) from 0 on: cells that could mix, such as those of one label; all 0 where nothing is known.

    Returns
    -------
    OwnBatch
        Expected of a neighbour of group g is the share of the cell's batch among the other cells of g: a type that one batch
        alone has does not count against it.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    """
    _check(indices, batches)
    _check(indices, groups)
    n_batches, n_groups = int(batches.max()) + 1, int(groups.max()) + 1
    table = np.bincount(groups.astype(np.int64) * n_batches + batches, minlength=n_groups * n_batches)
    table = table.reshape(n_groups, n_batches).astype(np.float64)
    totals = table.sum(axis=1)
    found, expected = np.empty(len(indices)), np.empty(len(indices))
    for start in range(0, len(indices), _BLOCK_CELLS):
        block = slice(start, start + _BLOCK_CELLS)
        own, of_group = batches[block, None], groups[indices[block]]
        is_own_group = of_group == groups[block, None]  # the cell itself is in that group, but never a neighbour
        share = (table[of_group, own] - is_own_group) / (totals[of_group] - is_own_group)
        found[block] = (batches[indices[block]] == own).mean(axis=1)
        expected[block] = share.mean(axis=1)
    return OwnBatch(mean_by(found, batches), mean_by(expected, batches))


def mean_by(values: NDArray[np.float64], codes: Codes) -> NDArray[np.float64]:
    """(B,) mean of the values of each level; NaN for one without cells."""
    counts = np.bincount(codes)
    sums = np.bincount(codes, weights=values)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _summed(codes: Codes, n_levels: int, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """(B, L) count, or summed weight, of each level in each of B rows of k codes."""
    at = np.arange(len(codes))[:, None] * n_levels + codes
    flat = None if weights is None else weights.ravel()
    summed = np.bincount(at.ravel(), weights=flat, minlength=len(codes) * n_levels)
    return summed.reshape(len(codes), n_levels).astype(np.float64)


def _check(indices: NDArray[np.integer[Any]], codes: Codes) -> None:
    if indices.ndim != 2 or codes.shape != indices.shape[:1] or not indices.size:
        raise ShapeError(
            f"neighbours {indices.shape} and codes {codes.shape} must have the shapes (N, k) and (N,), neither empty."
        )
