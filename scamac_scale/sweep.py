"""One ordered pass over all cells, each exactly once, without gradient, folding a function over the batches.

Every statistic of the whole atlas (input moments, Eq. 11's product, Eq. 13's sums) is such a fold: a sum that does not
depend on how the cells are cut into batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from scamac_scale.loader.feed import Batch, Feed
from scamac_scale.loader.plan import SweepPlan
from scamac_scale.progress import track
from scamac_scale.world import World

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
    world: World = World(),  # noqa: B008  frozen, no state
) -> State:
    """Fold a function over all cells in order, or over those of this rank.

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
        Cells per call; the last call may get fewer, or none.
    world
        This rank, and how many there are: each takes a part of every batch of ``batch_cells * size`` cells, and what it folds is
        a part of the whole, for `reduce.sum_over_ranks`.

    Returns
    -------
    State
        What the last call returned.
    """
    plan = SweepPlan(source.n_cells, batch_cells * world.size, world)
    with Feed(source) as feed, track(label, -(-source.n_cells // world.size), "cells") as progress:
        for batch in feed.run(plan):
            state = fold(state, batch)
            progress.advance(len(batch.rows))
    return state
