"""How well a gene alone tells a group from the rest: the area under the ROC curve, exact on a sample of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.host.compiled import compiled
from scamac_scale.randomness import numpy_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray


def draw_cells(codes: IntArray, n_most: int, seed: int) -> IntArray:
    """Draw cells for the sample.

    Parameters
    ----------
    codes
        (N,) group of each cell.
    n_most
        Cells to draw; all, where there are fewer.
    seed
        The same cells for the same seed.

    Returns
    -------
    ndarray
        (min(N, n_most),) rows, ascending, drawn without regard to groups; but of a group that would have none, one takes the place of
        another cell.
    """
    n_cells = len(codes)
    if n_cells <= n_most:
        return np.arange(n_cells)
    order = numpy_generator(seed, "markers sample").permutation(n_cells)
    groups, first = np.unique(codes[order], return_index=True)
    late = np.sort(first[first >= n_most])
    kept = order[: n_most - len(late)] if len(groups) <= n_most else order[:n_most]
    late = late[: n_most - len(kept)]
    return np.sort(np.concatenate([kept, order[late]]))


def areas(
    columns: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]],
    codes: IntArray,
    n_groups: int,
    reference: int | None = None,
) -> NDArray[np.float64]:
    """Area under the ROC curve of some genes, for each group.

    Parameters
    ----------
    columns
        The sample sorted by W genes: see `sums.columns_of`.
    codes
        (n,) group of each cell of the sample, 0 to K; those of K are of none.
    n_groups
        K.
    reference
        Group that others are compared with; None takes all other cells.

    Returns
    -------
    ndarray
        (K, W) chance that a cell of the group has a larger value than one of the rest, ties by half (Mann and Whitney); NaN where the
        sample has no cells of either.
    """
    n_cells = np.bincount(codes, minlength=n_groups + 1).astype(np.float64)
    wins = np.zeros((len(columns[0]) - 1, n_groups + 1))
    _count_wins(columns, codes, n_cells, -1 if reference is None else reference, wins)
    n_rest = n_cells.sum() - n_cells if reference is None else np.full(n_groups + 1, n_cells[reference])
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (wins / (n_cells * n_rest)).T[:n_groups]
    return found


@compiled
def _count_wins(  # pragma: no cover  compiled
    columns: Any, codes: Any, n_cells: Any, reference: Any, wins: Any
) -> None:
    """Count the pairs that a cell of each group wins: the values of a gene are walked through, those that are tied together."""
    indptr, cells, values = columns
    n_groups = len(n_cells)
    below, tied = np.empty(n_groups), np.zeros(n_groups)
    everyone = np.arange(n_groups)
    for which in range(len(wins)):
        begin, end = indptr[which], indptr[which + 1]
        below[:] = 0.0
        tied[:] = n_cells  # those that are zero, and lie first
        for at in range(begin, end):
            tied[codes[cells[at]]] -= 1.0
        n_below = tied.sum()
        _settle(everyone, (below, tied), (0.0, n_below), reference, wins[which])
        order = np.argsort(values[begin:end])
        groups = codes[cells[begin:end][order]]
        first = 0
        while first < len(order):
            last, value = first, values[begin + order[first]]
            while last < len(order) and values[begin + order[last]] == value:
                tied[groups[last]] += 1.0
                last += 1
            _settle(groups[first:last], (below, tied), (n_below, last - first), reference, wins[which])
            n_below += last - first
            first = last


@compiled
def _settle(groups: Any, counts: Any, sizes: Any, reference: Any, wins: Any) -> None:  # pragma: no cover  compiled
    """Add what tied cells of some groups win, then count them among those below; groups may repeat."""
    below, tied = counts
    n_below, n_tied = sizes
    if reference >= 0:
        beaten = below[reference] + 0.5 * tied[reference]
        for group in groups:
            wins[group] += tied[group] * beaten
            below[group] += tied[group]
            tied[group] = 0.0
    else:
        for group in groups:
            wins[group] += tied[group] * (n_below - below[group] + 0.5 * (n_tied - tied[group]))
            below[group] += tied[group]
            tied[group] = 0.0
