"""Ordered passes over the cells, and lists of rows: which cells are in which batch, as plans that a feed runs.

Like those of `plan`, they are pure functions of the step and the world, and have no state to save.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.buffer import runs_of
from scamac_scale.errors import PlanError
from scamac_scale.loader.plan import Piece, Runs, Share, check_sizes
from scamac_scale.ranks.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray


class SweepPlan:
    """Ordered batches: every cell exactly once, in the order of the source; each batch is a window of its own.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    batch_cells
        Cells in a batch; the last one of all may be smaller.
    world
        This rank, and how many there are.

    Attributes
    ----------
    n_batches
        Batches of this rank; 0 where there are fewer than ranks.
    n_most
        Batches of the rank that has most.
    segment_ends
        Number of the batch of this rank with which each of its segments ends.

    Raises
    ------
    PlanError
        If a size is below 1.

    Notes
    -----
    The batches of all cells are cut into `World.n_blocks` segments of consecutive ones, and a rank takes whole segments: what is summed
    segment by segment does not depend on the number of ranks, if they are 1, 2, 4 or 8.
    """

    n_parts = 1

    def __init__(self, n_cells: int, batch_cells: int, world: World = ALONE) -> None:
        check_sizes(n_cells=n_cells, batch_cells=batch_cells)
        self.n_cells = n_cells
        self.batch_cells = batch_cells
        n_all, n_segments = -(-n_cells // batch_cells), world.n_blocks()
        edges = [n_all * segment // n_segments for segment in range(n_segments + 1)]
        own = [World(rank, world.size).own(n_segments) for rank in range(world.size)]
        self.n_most = max(edges[blocks.stop] - edges[blocks.start] for blocks in own)
        mine = own[world.rank]
        self._first = edges[mine.start]
        self.n_batches = edges[mine.stop] - self._first
        self.segment_ends = [edges[segment + 1] - self._first for segment in mine]

    @property
    def bounds(self) -> tuple[int, int]:
        """First row of this rank, and the one after its last."""
        first = min(self._first * self.batch_cells, self.n_cells)
        return first, min((self._first + self.n_batches) * self.batch_cells, self.n_cells)

    def windows(self, step: int) -> tuple[int, int]:
        """Tell the first window that a step needs, and the one after the last."""
        return step, step + 1

    def runs(self, window: int, part: int) -> Runs:
        """Tell what a part reads: one run."""
        return runs_of(self.rows(window))

    def share(self, step: int) -> Share:
        """Tell the rows of a step."""
        rows = self.rows(step)
        return Share(rows, [Piece(step, 0, rows - rows[0])])

    def rows(self, index: int) -> NDArray[np.int64]:
        """Rows of one batch.

        Parameters
        ----------
        index
            Batch of this rank, 0 to ``n_batches`` - 1.

        Returns
        -------
        ndarray
            int64, ascending.

        Raises
        ------
        PlanError
            If there is no such batch.
        """
        if not 0 <= index < self.n_batches:
            raise PlanError(
                f"Batch {index} does not exist; this rank has batches 0 to {self.n_batches - 1} of the sweep."
            )
        start = (self._first + index) * self.batch_cells
        return np.arange(start, min(start + self.batch_cells, self.n_cells), dtype=np.int64)


class RowsPlan:
    """Any batches: lists of rows, such as samples; each is a window of its own.

    Parameters
    ----------
    requests
        Rows of each batch, in any order, repeats allowed.
    """

    n_parts = 1

    def __init__(self, requests: Sequence[IntArray]) -> None:
        self._requests = [np.asarray(rows, dtype=np.int64) for rows in requests]
        self.n_batches = len(self._requests)

    def windows(self, step: int) -> tuple[int, int]:
        """Tell the first window that a step needs, and the one after the last."""
        return step, step + 1

    def runs(self, window: int, part: int) -> Runs:
        """Tell what a part reads: the rows in ascending order."""
        return runs_of(np.unique(self._requests[window]))

    def share(self, step: int) -> Share:
        """Tell the rows of a step."""
        rows = self._requests[step]
        return Share(rows, [Piece(step, 0, np.unique(rows, return_inverse=True)[1])] if rows.size else [])
