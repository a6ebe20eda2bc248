"""One ordered pass over all cells, each exactly once, without gradient, folding a function over the batches.

Every statistic of the whole atlas (input moments, Eq. 11's product, Eq. 13's sums) is such a fold: a sum that does not
depend on how the cells are cut into batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from scamac_scale.loader.feed import Batch, Feed
from scamac_scale.loader.plan import SweepPlan
from scamac_scale.progress import track

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.loader.source import CellSource

State = TypeVar("State")

SWEEP_CELLS = 2048


def sweep(
    source: CellSource,
    fold: Callable[[State, Batch], State],
    state: State,
    *,
    label: str,
    batch_cells: int = SWEEP_CELLS,
) -> State:
    """Fold a function over all cells in order.

    Parameters
    ----------
    source
        N cells.
    fold
        ``fold(state, batch) -> state``; `batch` is valid during the call only.
    state
        What the first call gets.
    label
        Shown beside the progress bar.
    batch_cells
        Cells per call; the last call may get fewer.

    Returns
    -------
    State
        What the last call returned.
    """
    plan = SweepPlan(source.n_cells, batch_cells)
    with Feed(source) as feed, track(label, source.n_cells, "cells") as progress:
        for batch in feed.run(plan):
            state = fold(state, batch)
            progress.advance(len(batch.rows))
    return state
