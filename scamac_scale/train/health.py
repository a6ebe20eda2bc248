"""Losses that are not finite: noticed on the device at once, read now and then, and told with step, ranks and cells."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from scamac_scale.errors import NumericalError
from scamac_scale.ranks.collectives import from_first
from scamac_scale.ranks.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.loader.plan import EpochPlan

SHOWN_CELLS = 5


class BadStep(NamedTuple):
    """A step with a loss that is not finite, and the blocks of its batch that have it."""

    step: int
    blocks: list[int]


class Health:
    """Remembers the first step whose loss was not finite, without waiting for the device.

    Parameters
    ----------
    n_blocks
        Of a global batch.
    device
        Of the losses.
    """

    def __init__(self, n_blocks: int, device: torch.device) -> None:
        self._n_blocks = n_blocks
        self._first = torch.full((1 + n_blocks,), -1.0, dtype=torch.float64, device=device)

    def report(self, own: range, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Values of blocks, (P,) each, to be summed over blocks, and a mark at the number of each where one is not finite."""
        found = torch.stack([value.detach().float() for value in values], dim=1)
        is_bad = ~torch.isfinite(found).all(dim=1)
        marks = F.pad(torch.diag(is_bad.float()), (own.start, self._n_blocks - own.stop))
        return torch.cat([found, marks], dim=1)

    def note(self, step: int, report: torch.Tensor) -> None:
        """Take the sum of all reports of a step."""
        marks = report[-self._n_blocks :].double()
        is_new = (self._first[0] < 0) & (marks.sum() > 0)
        self._first = torch.where(is_new, torch.cat([marks.new_tensor([step]), marks]), self._first)

    def first_bad(self) -> BadStep | None:
        """Tell the first bad step, if there was one; waits for the device."""
        step, *marks = self._first.tolist()
        return None if step < 0 else BadStep(int(step), [block for block, mark in enumerate(marks) if mark > 0])


def nonfinite_error(
    bad: BadStep,
    world: World,
    plan_of: Callable[[World], EpochPlan],
    n_blocks: int,
    source_rows: IntArray,
    folder: Path | None,
) -> NumericalError:
    """Say where a loss was not finite, and write down all cells of that batch.

    Parameters
    ----------
    bad
        From `Health`.
    world
        This rank, and how many there are.
    plan_of
        Gives the plan of any rank.
    n_blocks
        Of a global batch.
    source_rows
        (N,) row of the input of each row of the source.
    folder
        Of the run, for the list; None writes none.

    Returns
    -------
    NumericalError
        The same on all ranks, which wait for the list; also where that cannot be written.
    """
    cells: dict[int, IntArray] = {}
    rank_of: dict[int, int] = {}
    for rank in range(world.size):
        each = World(rank, world.size)
        plan = plan_of(each)
        sizes = plan.block_sizes(bad.step, n_blocks)
        rows, at = source_rows[plan.share(bad.step).rows], 0
        for block in each.own(n_blocks):
            cells[block], rank_of[block] = rows[at : at + sizes[block]], rank
            at += sizes[block]
    ranks = sorted({rank_of[block] for block in bad.blocks})
    named = ", ".join(str(row) for block in bad.blocks for row in cells[block].tolist()[:SHOWN_CELLS])
    where = ""
    if folder is not None:
        path = folder / f"nonfinite-step-{bad.step}.json"
        content = {
            "step": bad.step,
            "ranks": ranks,
            "cells": [int(row) for block in bad.blocks for row in cells[block]],
            "batch": [int(row) for block in sorted(cells) for row in cells[block]],
        }
        failure = from_first(lambda: _save(path, content), world)
        where = f" (rows of the input; {f'all could not be saved: {failure}' if failure else f'all are in {path}'})"
    return NumericalError(
        f"the loss is not finite at step {bad.step}, on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}, cells "
        f"{named} and others{where}. Lower the learning rate, or look at the values of these cells; checkpoints from before stay."
    )


def _save(path: Path, content: dict[str, Any]) -> str:
    """Write a list of cells; where that fails, say why: the loss is the error that counts."""
    try:
        path.write_text(json.dumps(content) + "\n")
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return error.strerror or type(error).__name__
    return ""
