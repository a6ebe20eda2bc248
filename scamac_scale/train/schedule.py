"""How many cells, steps and how large a step: the numbers that adapt to the size of the atlas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.config import PhaseConfig


def batch_cells_for(n_cells: int) -> int:
    """Cells in a global batch where the config leaves it open: 256 below 20,000 cells, 1,024 to 100,000, 4,096 above."""
    if n_cells < 20_000:
        return 256
    return 1024 if n_cells <= 100_000 else 4096


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
        Epochs with a floor and a cap in steps.
    n_batches
        Batches in an epoch.

    Returns
    -------
    int
        ``epochs * n_batches``, at least `min_steps`, at most `max_steps`; 0 where `epochs` is 0.
    """
    if phase.epochs == 0:
        return 0
    steps = max(math.ceil(phase.epochs * n_batches), phase.min_steps)
    return steps if phase.max_steps is None else min(steps, phase.max_steps)


def _constant(step: int, total: int) -> float:
    return 1.0


def _cosine(step: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": _constant, "cosine": _cosine}
