"""One ordered pass over all cells, each exactly once, without gradient, folding a function over the batches.

Every statistic of the whole atlas (input moments, Eq. 11's product, Eq. 13's sums) is such a fold: a sum that does not
depend on how the cells are cut into batches, and, taken by segments, not even in its last bit on the number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from scamac_scale.durable.faults import reach
from scamac_scale.loader.feed import Batch, Feed
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.progress import track
from scamac_scale.ranks.collectives import TreeSum, shaped_like, sum_over_ranks, tensors_of
from scamac_scale.ranks.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.loader.source import CellSource

State = TypeVar("State")
Sum = TypeVar("Sum")

InFlight = dict[str, Any]
"""What a rank has done of a sweep: numbers, strings and tensors."""


class Tick(Protocol):
    """What long work calls now and then, on all ranks equally often: it may save, or raise to stop."""

    def __call__(self, in_flight: Callable[[], InFlight] | None = None) -> None:
        """Look around; `in_flight` tells what would be lost otherwise."""


def no_tick(in_flight: Callable[[], InFlight] | None = None) -> None:
    """Go on."""


SWEEP_CELLS = 2048
TICK_BATCHES = 16
"""Batches after which all ranks look whether they shall stop."""


def sweep(
    source: CellSource,
    fold: Callable[[State, Batch], State],
    state: State,
    *,
    label: str,
    plan: SweepPlan,
    turns: int = 0,
    tick: Callable[[int, State], None] | None = None,
) -> State:
    """Fold a function over the cells of a plan in order.

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
    plan
        Whose cells: all, or those of this rank.
    turns
        Turns of `TICK_BATCHES` batches that were folded into `state` before.
    tick
        ``tick(turns, state)``, called on all ranks equally often: after every turn, also on a rank that has no more batches.

    Returns
    -------
    State
        What the last call returned.
    """
    n_turns = -(-plan.n_most // TICK_BATCHES)
    done = min(turns * TICK_BATCHES, plan.n_batches)
    first, stop = plan.bounds
    with Feed(source) as feed, track(label, stop - first, "cells") as progress:
        progress.advance(min(done * plan.batch_cells, stop - first))
        batches = feed.run(plan, done)
        for turn in range(turns + 1, n_turns + 1):
            while done < min(turn * TICK_BATCHES, plan.n_batches):
                batch = next(batches)
                state = fold(state, batch)
                done += 1
                progress.advance(len(batch.rows))
                reach("train.sweep")
            if tick is not None:
                tick(turn, state)
    return state


class SweepSum:
    """What a rank has summed so far in a sweep; plain data on demand, to go on elsewhere.

    Parameters
    ----------
    zero
        What no cells add up to.
    plan
        Of the sweep.
    """

    def __init__(
        self, zero: Any, plan: SweepPlan
    ) -> None:  # Any: a tensor, or a NamedTuple that knows how to add itself
        self._zero, self._plan = zero, plan
        self._closed = TreeSum()
        self._open = zero
        self._n_closed = 0
        self._close(0)

    def add(self, part: Any, done: int) -> None:
        """Take the part of the batch with which `done` are done."""
        self._open = self._open + part
        self._close(done)

    def _close(self, done: int) -> None:
        """Segments end, also those without a batch."""
        ends = self._plan.segment_ends
        while self._n_closed < len(ends) and ends[self._n_closed] <= done:
            self._closed.add(self._open)
            self._open = self._zero
            self._n_closed += 1

    def total(self) -> Any:
        """Sum over the cells of this rank."""
        return self._closed.total()

    def to_plain(self, turns: int) -> InFlight:
        """Numbers and tensors that `restore` understands."""
        return {
            "turns": turns,
            "n_closed": self._n_closed,
            "levels": [level for level, _ in self._closed.sums],
            "sums": [_on_host(part) for _, part in self._closed.sums],
            "open": _on_host(self._open),
        }

    def restore(self, plain: InFlight) -> int:
        """Take up where another process stopped; tells after how many turns of `sweep`."""
        self._n_closed = plain["n_closed"]
        parts = [shaped_like(self._zero, iter(part)) for part in plain["sums"]]
        self._closed.sums = list(zip(plain["levels"], parts, strict=True))
        self._open = shaped_like(self._zero, iter(plain["open"]))
        return int(plain["turns"])


def _on_host(part: Any) -> list[torch.Tensor]:
    """Tensors of a sum, for whichever process takes it up: it may have another device."""
    return [tensor.cpu() for tensor in tensors_of(part)]


def sum_over_cells(
    source: CellSource,
    part: Callable[[Batch], Sum],
    *,
    label: str,
    world: World = ALONE,
    in_flight: InFlight | None = None,
    tick: Tick = no_tick,
) -> Sum:
    """Add what a function makes of each batch, over all cells of all ranks.

    Parameters
    ----------
    source
        N cells.
    part
        Makes of a batch, which may have no cells, a tensor or a NamedTuple that knows how to add itself.
    label
        Shown beside the progress bar.
    world
        This rank, and how many there are.
    in_flight
        What `tick` got from the same sweep in another process.
    tick
        Called on all ranks equally often; gets a function that tells what this rank has summed so far.

    Returns
    -------
    Sum
        The same on every rank, to the last bit on 1, 2, 4 or 8.
    """
    plan = SweepPlan(source.n_cells, SWEEP_CELLS, world)
    zero = part(Batch(np.empty(0, np.int64), torch.zeros(0, len(source.gene_names))))
    sums = SweepSum(zero, plan)
    turns = 0 if in_flight is None else sums.restore(in_flight)

    def add(done: int, batch: Batch) -> int:
        sums.add(part(batch), done + 1)
        return done + 1

    start = min(turns * TICK_BATCHES, plan.n_batches)
    sweep(
        source, add, start, label=label, plan=plan, turns=turns, tick=lambda turn, _: tick(lambda: sums.to_plain(turn))
    )
    total: Sum = sum_over_ranks(sums.total(), world.brisk())
    return total
