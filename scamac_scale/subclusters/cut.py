"""The best cut of cells in two, and how far its parts lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import FloatArray, IntArray

    Sides = NDArray[np.bool_]

ROUNDS = 5
"""Of means and discriminant in turn, at most; few change much after."""
SIZES = 0.02, 0.05, 0.2, 0.5
"""Edges of the classes of sizes: share of the cells that the smaller part has."""
LEAST_CELLS = 8
"""Cells of a part, at least."""
RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Cut:
    """A plane that cuts cells in two.

    Attributes
    ----------
    direction
        (k,) discriminant, in components.
    place
        Where it is cut: cells beyond are of the second part.
    separation
        Distance of the means of the two parts along the discriminant, in standard deviations within them.
    """

    direction: FloatArray
    place: float
    separation: float

    def side(self, scores: FloatArray) -> IntArray:
        """(n,) part of each cell, 0 or 1."""
        return (scores @ self.direction > self.place).astype(np.int64)


def best_cuts(scores: FloatArray) -> list[Cut]:
    """Find, for each class of sizes, the cut whose parts lie farthest apart.

    Parameters
    ----------
    scores
        (n, k) components of cells.

    Returns
    -------
    list of Cut
        One for each class of `SIZES` that so many cells can have, in their order: as many for as many cells.

    Notes
    -----
    Small parts lie farther apart than large ones by chance alone, so that each class is compared with its own. From the best cut of each
    component, the discriminant of the two parts and its best cut are taken in turn until the parts stay. Deterministic.
    """
    found = []
    for low, high in pairwise(SIZES):
        least, most = max(LEAST_CELLS, int(np.ceil(low * len(scores)))), int(high * len(scores))
        if least > most:
            continue
        starts = (_cut_line(scores[:, column], least, most)[0] for column in range(scores.shape[1]))
        cuts = [_settle(scores, sides, least, most) for sides in starts]
        found.append(max(cuts, key=lambda cut: cut.separation))
    return found


def _settle(scores: FloatArray, sides: Sides, least: int, most: int) -> Cut:
    """Take discriminant and cut in turn; the best that was met."""
    best: Cut | None = None
    for _ in range(ROUNDS):
        direction = _discriminant(scores, sides)
        line = scores @ direction
        after, place = _cut_line(line, least, most)
        now = Cut(direction, place, _separation(line, after))
        if best is None or now.separation > best.separation:
            best = now
        if (after == sides).all() or (after != sides).all():
            break
        sides = after
    assert best is not None
    return best


def _cut_line(line: FloatArray, least: int, most: int) -> tuple[Sides, float]:
    """Cut numbers in two so that the squares within are least; (n,) True in the upper part, and the place. The smaller part has `least` to `most`."""
    order = np.argsort(line, kind="stable")
    values = line[order] - line.mean()
    n = len(values)
    size = np.concatenate([np.arange(least, most + 1), np.arange(n - most, n - least + 1)])
    below = np.cumsum(values)[size - 1]
    between = below**2 / (size * (n - size))
    at = int(size[between.argmax()])
    place = (line[order[at - 1]] + line[order[at]]) / 2
    return line > place, float(place)


def _discriminant(scores: FloatArray, sides: Sides) -> FloatArray:
    one, other = scores[sides], scores[~sides]
    if not len(one) or not len(other):  # all on one side: repeated numbers
        axis: FloatArray = np.eye(scores.shape[1])[0]
        return axis
    within = (_scatter(one) + _scatter(other)) / len(scores)
    within += RIDGE * max(float(np.trace(within)), 1e-300) / len(within) * np.eye(len(within))
    direction: FloatArray = np.linalg.solve(within, one.mean(axis=0) - other.mean(axis=0))
    return direction


def _scatter(points: FloatArray) -> FloatArray:
    centered = points - points.mean(axis=0)
    product: FloatArray = centered.T @ centered
    return product


def _separation(line: FloatArray, sides: Sides) -> float:
    one, other = line[sides], line[~sides]
    if not len(one) or not len(other):
        return 0.0
    within = (len(one) * one.var() + len(other) * other.var()) / len(line)
    return float(abs(one.mean() - other.mean()) / np.sqrt(within)) if within > 0 else 0.0
