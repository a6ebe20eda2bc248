"""What a fit says of its parts while it goes on: plain words, and how long each is thought to take."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from scamac_scale.progress import Told, stages
from scamac_scale.train.schedule import batch_cells_for, phase_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scamac_scale.config import ScamacConfig
    from scamac_scale.train.recipe import Stage

WORDS = {
    "gene moments": "measuring the genes",
    "correction": "correcting the technical batches",
    "start": "setting the first weights",
    "pretraining": "pretraining the network",
    "landmarks": "finding the clusters",
    "rounds": "training against the clusters",
    "last sweep": "settling the clusters over all cells",
}
"""Of each part of a fit."""
STEP_S = 1.2e-4
"""Seconds of a gradient step for each of its cells, on one core; only ratios count."""
CELL_S = {
    "gene moments": 6e-6,
    "correction": 8e-5,
    "start": 0.0,
    "pretraining": 0.0,
    "landmarks": 6e-5,
    "rounds": 4e-5,
    "last sweep": 4e-5,
}
"""Seconds of each part for each cell of the atlas, without its steps."""
FIXED_S = {"start": 1.0, "landmarks": 3.0}


def expected_s(part: str, n_cells: int, config: ScamacConfig) -> float:
    """Guess how long a part takes, seconds on one core.

    Parameters
    ----------
    part
        A key of `WORDS`.
    n_cells
        N.
    config
        Of the run.

    Returns
    -------
    float
        Rough: for the time left that is shown, and for nothing else.
    """
    train = config.train
    batch_cells = min(train.batch_cells or batch_cells_for(n_cells), n_cells)
    n_batches = max(n_cells // max(batch_cells, 1), 1)
    steps = {
        "pretraining": phase_steps(train.pretrain, n_batches),
        "rounds": train.rounds * sum(phase_steps(phase, n_batches) for phase in train.phases),
    }
    return 0.1 + FIXED_S.get(part, 0.0) + CELL_S[part] * n_cells + STEP_S * batch_cells * steps.get(part, 0)


@contextmanager
def told(left: Sequence[Stage], n_cells: int, config: ScamacConfig) -> Iterator[Callable[[str], None]]:
    """Tell the parts of a fit.

    Parameters
    ----------
    left
        Stages that are left.
    n_cells
        N.
    config
        Of the run.

    Yields
    ------
    Callable
        Call it with the part of each stage; what is the same part as before is not told again.
    """
    parts = list(dict.fromkeys(stage.part for stage in left))
    now = [""]
    with stages([Told(WORDS[part], expected_s(part, n_cells, config)) for part in parts]) as begin:

        def begin_part(part: str) -> None:
            if part != now[0]:
                now[0] = part
                begin(parts.index(part))

        yield begin_part
