"""How many cells, steps and how large a step: the numbers that adapt to the size of the atlas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.config import PhaseConfig


LEAST_BATCH, MOST_BATCH, STEP_CELLS = 256, 1024, 64
ROOT_CELLS = 5_000
"""Cells from which on the batch grows."""


def batch_cells_for(n_cells: int) -> int:
    """Cells in a global batch where the config leaves it open: 256 up to 5,000 cells, growing with their root to 1,024 at 80,000; a multiple of 64."""
    wanted = LEAST_BATCH * math.sqrt(n_cells / ROOT_CELLS)
    return int(min(max(STEP_CELLS * round(wanted / STEP_CELLS), LEAST_BATCH), MOST_BATCH))


def learning_rate_for(batch_cells: int) -> float:
    """Step size where the config leaves it open.

    1e-3 at 256 cells and 2.8e-3 at 1,024, so it grows with the power 3/4; held at 2.8e-3 above and at 1e-3 below.
    """
    ratio = min(max(batch_cells / 256, 1.0), 4.0)
    return float(1e-3 * ratio**0.75)


def phase_steps(phase: PhaseConfig, n_batches: int) -> int:
    """Gradient steps of a phase.

    Parameters
    ----------
    phase
        Steps; or epochs, with a floor and a cap in steps.
    n_batches
        Batches in an epoch.

    Returns
    -------
    int
        `steps`; or, where `epochs` is given, ``epochs * n_batches``, at least `min_steps`, at most `max_steps`, and 0 for no epoch.
    """
    if phase.epochs is None:
        return phase.steps
    if phase.epochs == 0:
        return 0
    steps = max(math.ceil(phase.epochs * n_batches), phase.min_steps)
    return steps if phase.max_steps is None else min(steps, phase.max_steps)


def _constant(step: int, total: int) -> float:
    return 1.0


def _cosine(step: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": _constant, "cosine": _cosine}
