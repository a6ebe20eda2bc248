"""From sums to the table of ``scanpy.tl.rank_genes_groups``: Welch's t-test of each group against the rest, gene by gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.marker_genes.sums import COUNT, SQUARE, SUM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scamac_scale.marker_genes.sums import GroupSums

    Column = NDArray[np.float64]

TINY = 1e-9
"""Added to both sides of a fold change, as scanpy does."""
NOISE = 1e-13
"""A variance is zero below this share of the mean of squares: the sums have no more digits."""

COUNTED: dict[str, Callable[[int, int], int]] = {
    "t-test": lambda n_group, n_rest: n_rest,
    "t-test_overestim_var": lambda n_group, n_rest: n_group,
}
"""Cells that the rest counts for: all of them, or no more than the group has, which overestimates its variance."""


class Side(NamedTuple):
    """What one side of a test is: number of cells, and of each gene (G,) mean, variance (n - 1) and share of cells above zero."""

    n_cells: int
    mean: Column
    var: Column
    share: Column


class Ranked(NamedTuple):
    """One group.

    Attributes
    ----------
    group
        Its number.
    scores, pvals, pvals_adj, logfoldchanges
        (G,) of each gene: t, two-sided p, p after Benjamini and Hochberg, binary logarithm of the ratio of the means of counts.
    share, share_rest
        (G,) of cells above zero in the group, and in the rest.
    """

    group: int
    scores: Column
    pvals: Column
    pvals_adj: Column
    logfoldchanges: Column
    share: Column
    share_rest: Column


def rank_groups(found: GroupSums, method: str, reference: int | None, base: float | None) -> Iterator[Ranked]:
    """Test each group, one after the other.

    Parameters
    ----------
    found
        Sums of K groups, and of cells of none, which are in the rest.
    method
        Key of `COUNTED`.
    reference
        Group that all others are compared with, which is not tested itself; None takes all cells but those of the group.
    base
        Of the logarithm that values are; None is e.

    Notes
    -----
    ``scipy.stats.ttest_ind_from_stats`` without equal variances, as scanpy calls it; the score is 0 and p 1 where both variances are 0 and
    the means are the same.
    """
    everything = found.sums.sum(axis=0) if reference is None else None
    n_all = int(found.n_cells.sum())
    other = None if reference is None else _side(found.sums[reference], int(found.n_cells[reference]))
    for group in range(len(found.n_cells) - 1):
        if group == reference:
            continue
        own, n_own = found.sums[group], int(found.n_cells[group])
        if everything is not None:
            rest = everything - own
            rest[rest[:, COUNT] == 0] = 0.0  # exactly, not what is rounded off
            other = _side(rest, n_all - n_own)
        assert other is not None
        yield _test(group, _side(own, n_own), other, method, base)


def _side(sums: NDArray[np.float64], n_cells: int) -> Side:
    mean, square = sums[:, SUM] / n_cells, sums[:, SQUARE] / n_cells
    var = np.maximum(square - mean * mean, 0.0)
    var[var < NOISE * square] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        var *= np.float64(n_cells) / (n_cells - 1)
    return Side(n_cells, mean, var, sums[:, COUNT] / n_cells)


def _test(group: int, own: Side, rest: Side, method: str, base: float | None) -> Ranked:
    from scipy import stats

    with np.errstate(invalid="ignore", divide="ignore"):
        scores, pvals = stats.ttest_ind_from_stats(
            mean1=own.mean,
            std1=np.sqrt(own.var),
            nobs1=own.n_cells,
            mean2=rest.mean,
            std2=np.sqrt(rest.var),
            nobs2=COUNTED[method](own.n_cells, rest.n_cells),
            equal_var=False,
        )
    scores[np.isnan(scores)] = 0.0
    pvals[np.isnan(pvals)] = 1.0
    folds = np.log2((_unlogged(own.mean, base) + TINY) / (_unlogged(rest.mean, base) + TINY))
    return Ranked(group, scores, pvals, adjusted(pvals), folds, own.share, rest.share)


def _unlogged(mean: Column, base: float | None) -> Column:
    values: Column = np.expm1(mean if base is None else mean * np.log(base))
    return values


def adjusted(pvals: Column) -> Column:
    """Adjust p-values for their number by Benjamini and Hochberg.

    Parameters
    ----------
    pvals
        (G,) without NaN.

    Returns
    -------
    ndarray
        (G,) as ``statsmodels.stats.multitest.multipletests(pvals, method="fdr_bh")`` gives them.
    """
    order = np.argsort(pvals)
    sorted_ = pvals[order] / (np.arange(1, len(pvals) + 1) / len(pvals))
    found = np.empty_like(pvals)
    found[order] = np.minimum(np.minimum.accumulate(sorted_[::-1])[::-1], 1.0)
    return found


def best(scores: Column, n_most: int) -> NDArray[np.int64]:
    """Order genes by score, the best first, in the very way of scanpy, so that genes of one score come in its order, too.

    Parameters
    ----------
    scores
        (G,) of each gene.
    n_most
        Genes to give, at most G.
    """
    partition = np.argpartition(scores, -n_most)[-n_most:]
    found: NDArray[np.int64] = partition[np.argsort(scores[partition])[::-1]]
    return found
