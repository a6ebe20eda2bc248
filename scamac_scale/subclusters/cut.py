"""The best cut of cells in two, and how far its parts lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray

ROUNDS = 8
"""Of means and discriminant in turn, at most; few change anything after five."""
LEAST_SHARE, LEAST_CELLS = 0.02, 8
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


def best_cut(scores: FloatArray) -> Cut | None:
    """Find the cut whose parts lie farthest apart.

    Parameters
    ----------
    scores
        (n, k) components of cells.

    Returns
    -------
    Cut or None
        None where there are too few cells.

    Notes
    -----
    From the best cut of each component, the discriminant of the two parts and its best cut are taken in turn until the parts stay; of all
    the farthest apart is kept. Deterministic.
    """
    least = max(LEAST_CELLS, int(np.ceil(LEAST_SHARE * len(scores))))
    if len(scores) < 2 * least:
        return None
    found: Cut | None = None
    for column in range(scores.shape[1]):
        sides, _ = _cut_line(scores[:, column], least)
        now = _settle(scores, sides, least)
        if found is None or now.separation > found.separation:
            found = now
    return found


def _settle(scores: FloatArray, sides: FloatArray, least: int) -> Cut:
    best: Cut | None = None
    for _ in range(ROUNDS):
        direction = _discriminant(scores, sides)
        line = scores @ direction
        after, place = _cut_line(line, least)
        now = Cut(direction, place, _separation(line, after))
        if best is None or now.separation > best.separation:
            best = now
        if (after == sides).all() or (after != sides).all():
            break
        sides = after
    assert best is not None
    return best


def _cut_line(line: FloatArray, least: int) -> tuple[FloatArray, float]:
    """Cut numbers in two where the squares within both parts are least; (n,) True in the upper part, and the place."""
    order = np.argsort(line, kind="stable")
    values = line[order] - line.mean()
    n = len(values)
    below = np.cumsum(values)[:-1]
    size = np.arange(1, n)
    between = (below - size * values.sum() / n) ** 2 / (size * (n - size))
    at = least - 1 + int(between[least - 1 : n - least].argmax())
    place = (line[order[at]] + line[order[at + 1]]) / 2
    return line > place, float(place)


def _discriminant(scores: FloatArray, sides: FloatArray) -> FloatArray:
    one, other = scores[sides], scores[~sides]
    if not len(one) or not len(other):  # all on one side: repeated numbers
        return np.eye(scores.shape[1])[0]
    within = (_scatter(one) + _scatter(other)) / len(scores)
    within += RIDGE * max(float(np.trace(within)), 1e-300) / len(within) * np.eye(len(within))
    direction: FloatArray = np.linalg.solve(within, one.mean(axis=0) - other.mean(axis=0))
    return direction


def _scatter(points: FloatArray) -> FloatArray:
    centered = points - points.mean(axis=0)
    product: FloatArray = centered.T @ centered
    return product


def _separation(line: FloatArray, sides: FloatArray) -> float:
    one, other = line[sides], line[~sides]
    if not len(one) or not len(other):
        return 0.0
    within = (len(one) * one.var() + len(other) * other.var()) / len(line)
    return float(abs(one.mean() - other.mean()) / np.sqrt(within)) if within > 0 else 0.0
