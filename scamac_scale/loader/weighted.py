"""An epoch in which some cells come more often than others: by weights, or so that classes are equally frequent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.buffer import rows_of, runs_of
from scamac_scale.errors import PlanError
from scamac_scale.loader.plan import NEIGHBOR_CELLS, WINDOW_CELLS, EpochPlan, Runs
from scamac_scale.randomness import plan_generator
from scamac_scale.ranks.world import ALONE, World

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import FloatArray, IntArray

MAX_PASSES = 64
"""Stretches of an epoch over which the draws of a cell are spread, at most."""


def balanced_weights(codes: IntArray) -> FloatArray:
    """Weights that make every class as frequent as any other.

    Parameters
    ----------
    codes
        (N,) class of each cell; -1 for none, which counts as a class.

    Returns
    -------
    ndarray
        (N,) float64, one over the size of the class.
    """
    _, classes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    weights: FloatArray = 1.0 / sizes[classes]
    return weights


class WeightedPlan(EpochPlan):
    """Shuffled batches in which cells come as often as their weights say: N draws per epoch.

    Parameters
    ----------
    weights
        (N,) non-negative, not all zero; a cell comes ``N weight / sum`` times per epoch, rounded up or down at random.
    batch_cells, seed, world, window_cells, block_cells
        As of `EpochPlan`, over the N draws of an epoch.

    Raises
    ------
    PlanError
        If a weight is negative or not finite, or all are zero.

    Notes
    -----
    Systematic sampling: N equally spaced points, shifted at random in each epoch, fall on the cumulated weights. They are
    taken in passes, as many as the heaviest cell has draws (at most `MAX_PASSES`), so that the draws of one cell are spread
    over the epoch, while the blocks of a pass still lie side by side on disk. Memory is 8 bytes per cell.
    """

    def __init__(
        self,
        weights: FloatArray,
        batch_cells: int,
        seed: int,
        world: World = ALONE,
        *,
        window_cells: int = WINDOW_CELLS,
        block_cells: int = NEIGHBOR_CELLS,
    ) -> None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise PlanError("Sampling weights must be one finite number per cell, not negative, and not all zero.")
        super().__init__(weights.size, batch_cells, seed, world, window_cells=window_cells, block_cells=block_cells)
        heaviest = float(weights.max() / weights.mean())
        n_passes = int(min(max(np.ceil(heaviest), 1), MAX_PASSES))
        self._passes = np.concatenate(
            ([0], np.cumsum([len(range(p, weights.size, n_passes)) for p in range(n_passes)]))
        )
        self._cumulated = np.cumsum(weights / weights.sum())

    def _cells(self, epoch: int, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cell of each draw of an epoch."""
        shift = plan_generator(self.seed, "draws", epoch).random()
        number = np.searchsorted(self._passes, draws, side="right") - 1
        point = (draws - self._passes[number]) * (self._passes.size - 1) + number
        cells = np.searchsorted(self._cumulated, (point + shift) / self.n_cells, side="right")
        return np.minimum(cells, self.n_cells - 1)

    def _part_cells(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        return np.unique(self._cells(epoch, rows_of(*super()._runs(epoch, low, high))))

    def _runs(self, epoch: int, low: int, high: int) -> Runs:
        return runs_of(self._part_cells(epoch, low, high))

    def _locate(
        self, epoch: int, positions: NDArray[np.int64], window: int, part: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        draws, _ = super()._locate(epoch, positions, window, part)
        cells = self._cells(epoch, draws)
        return cells, np.searchsorted(self._part_cells(epoch, *self._part_bounds(window, part)), cells)
