"""Does a cluster split? Its best cut beside the same cut of cells that are drawn from one population."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.randomness import numpy_generator
from scamac_scale.subclusters.cut import Cut, best_cuts
from scamac_scale.subclusters.population import Cells, Scale, components, fit_population, fit_scale

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray

DRAWS = 20
"""Times that cells are drawn from one population."""
FIRST_DRAWS = 6
"""After so many it is over where the cut of the cells is no better than that of one population usually is."""
LEVEL = 0.01
"""Of the test."""
MARGIN = 1.5
"""How many times as far apart as in one population the parts must lie: a continuum that is no Gaussian cloud gives a little more than one,
and many cells make a test see that. Chosen on labelled sets, see docs/refine.md."""


@dataclass(frozen=True)
class Verdict:
    """What was tested of one cluster, or one part of it, and what came of it.

    Attributes
    ----------
    n_cells
        Cells on which it was tested.
    n_components
        Components that were cut.
    separation
        Of the best cut: standard deviations between its parts; the statistic.
    null_mean, null_sd
        Of the same in draws of one population.
    n_draws
        How many there were.
    p_value
        Probability of a separation as large in one population.
    is_split
        The decision.
    why
        It is not split, in a word or two; empty otherwise.
    """

    n_cells: int
    n_components: int
    separation: float
    null_mean: float
    null_sd: float
    n_draws: int
    p_value: float
    is_split: bool
    why: str

    def to_plain(self) -> dict[str, Any]:
        """Give plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Split:
    """A test, and the rule by which any cell is of one part or the other.

    Attributes
    ----------
    verdict
        Of the test.
    scale, mean, axes, cut
        From values to residuals, their mean (g,), components (g, k), and the cut; the cut is None where there is none.
    """

    verdict: Verdict
    scale: Scale
    mean: FloatArray
    axes: FloatArray
    cut: Cut | None

    def side(self, cells: Cells) -> IntArray:
        """(n,) part of each cell, 0 or 1; that of a cell does not depend on the others."""
        assert self.cut is not None
        return self.cut.side((self.scale.residuals(cells) - self.mean) @ self.axes)


def find_split(cells: Cells, seed: int, *keys: int) -> Split:
    """Cut cells in two, and test whether one population gives as good a cut.

    Parameters
    ----------
    cells
        n cells, all in memory.
    seed, keys
        Of the draws.

    Returns
    -------
    Split
        With the verdict.
    """
    scale = fit_scale(cells)
    residuals = scale.residuals(cells)
    if not residuals.size or not residuals.std(axis=0).any():
        return Split(_untested(len(residuals), 0, "nothing varies"), scale, np.zeros(0), np.zeros((0, 0)), None)
    population, n_components = fit_population(cells, scale, residuals)
    mean, axes, cuts = _cuts_of(residuals, n_components)
    null: list[list[float]] = []
    for draw in range(DRAWS if cuts else 0):
        if draw == FIRST_DRAWS and all(
            cut.separation <= np.mean(of) for cut, of in zip(cuts, zip(*null, strict=True), strict=True)
        ):
            break
        stream = numpy_generator(seed, "refine.null", *keys, draw)
        drawn = population.draw(cells, stream)
        null.append([cut.separation for cut in _cuts_of(fit_scale(drawn).residuals(drawn), n_components)[2]])
    if not cuts:
        return Split(_untested(len(residuals), n_components, "too few cells"), scale, mean, axes, None)
    judged = [
        _judge(len(residuals), n_components, cut, np.array(of), len(cuts))
        for cut, of in zip(cuts, zip(*null, strict=True), strict=True)
    ]
    best = max(
        range(len(cuts)), key=lambda at: (judged[at].is_split, at if judged[at].is_split else -judged[at].p_value)
    )
    return Split(judged[best], scale, mean, axes, cuts[best])


def _cuts_of(residuals: FloatArray, n_components: int) -> tuple[FloatArray, FloatArray, list[Cut]]:
    """Take all steps from residuals to cuts, which cells that are drawn go through as well."""
    _, axes = components(residuals, n_components)
    mean = residuals.mean(axis=0)
    return mean, axes, best_cuts((residuals - mean) @ axes)


def _untested(n_cells: int, n_components: int, why: str) -> Verdict:
    return Verdict(n_cells, n_components, 0.0, 0.0, 0.0, 0, 1.0, False, why)


def _judge(n_cells: int, n_components: int, cut: Cut, null: FloatArray, n_classes: int) -> Verdict:
    """Judge the cut of one class of sizes, of some."""
    mean, spread, p_value = compare(cut.separation, null)
    p_value = min(1.0, n_classes * p_value)
    why = "" if p_value < LEVEL else "one population gives as much"
    if not why and cut.separation < MARGIN * mean:
        why = "no gap: a continuum"
    return Verdict(n_cells, n_components, cut.separation, mean, spread, len(null), p_value, not why, why)


def compare(found: float, null: FloatArray) -> tuple[float, float, float]:
    """Mean and standard deviation of some draws, and the probability that a further one is as large as `found` (Student's t of logarithms)."""
    from scipy import stats

    logs = np.log(np.maximum(null, 1e-12))
    spread = max(float(logs.std(ddof=1)), 1e-6) * np.sqrt(1 + 1 / len(logs))
    distance = (np.log(max(found, 1e-12)) - logs.mean()) / spread
    return float(null.mean()), float(null.std(ddof=1)), float(stats.t.sf(distance, len(logs) - 1))
