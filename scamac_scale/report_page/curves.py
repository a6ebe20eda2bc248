"""The curves of a fit: which are shown, what each means, and where one stage ends and the next begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray

MEANINGS = {
    "total": "The sum of the losses, each by its weight. It jumps where a stage adds one.",
    "reconstruction": "How far the output of the network is from the values of the cells. It falls, by little where values are noisy.",
    "layers": "How far the encoding of a cell is from its decoding. It should fall towards zero.",
    "similarity": "How much closeness in the latent differs from closeness by clusters, within a batch of cells. It should fall.",
    "similarity_atlas": "The same over all pairs of cells, measured now and then.",
    "clustering": "How far the cells lie from the centers of their clusters. It may rise while the clusters move apart.",
    "learning_rate": "How large the steps are, as the schedule says.",
}
"""Of each column of the metrics that is known, in the order in which they are shown."""
NOT_SHOWN = ("cells_per_s",)
"""Speed: of no use for a judgement of the fit."""
FEW_POINTS = 12
"""So many points are drawn as dots, too."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One column of the metrics.

    Attributes
    ----------
    name
        In words.
    meaning
        One sentence; empty where it is not known.
    stretches
        Steps and values of each stage: no line leads from one to the next.
    """

    name: str
    meaning: str
    stretches: list[tuple[FloatArray, FloatArray]]

    @property
    def has_dots(self) -> bool:
        """Whether a line alone would say too little."""
        shortest = min((len(steps) for steps, _ in self.stretches), default=0)
        return shortest < 2 or sum(len(steps) for steps, _ in self.stretches) <= FEW_POINTS


def curves_of(metrics: dict[str, tuple[FloatArray, FloatArray]], phases: list[tuple[str, float, float]]) -> list[Curve]:
    """Take the curves that are shown from the metrics, cut where a stage begins.

    Parameters
    ----------
    metrics
        Steps and values of each column.
    phases
        Name, first and last step of each stage.
    """
    place = {name: at for at, name in enumerate(MEANINGS)}
    starts = np.array([start for _, start, _ in phases])
    found = []
    for name in sorted(metrics.keys() - set(NOT_SHOWN), key=lambda name: (place.get(name, len(place)), name)):
        steps, values = metrics[name]
        cuts = np.flatnonzero(np.diff(np.searchsorted(starts, steps, side="right"))) + 1
        stretches = list(zip(np.split(steps, cuts), np.split(values, cuts), strict=True))
        found.append(Curve(name.replace("_", " "), MEANINGS.get(name, ""), stretches))
    return found
