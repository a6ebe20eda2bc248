"""Which rows are read when: pure functions of (seed, epoch, batch index, world).

Nothing here reads a cell. An epoch is a shuffled pass, a sweep an ordered one; in both every cell comes exactly once.
A plan has no state to save: the index of the next batch is enough to go on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.csr import RUN_CELLS, WINDOW_BYTES
from scamac_scale.errors import PlanError
from scamac_scale.world import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ORDER = 0  # purposes of the random streams of a plan
_WINDOW_ORDER = 1
_WINDOWS_KEPT = 2  # a batch may straddle two windows
WINDOW_CELLS = 65536
"""Cells that are mixed with one another, where they fit in memory."""


def window_for(n_cells: int, csr_bytes: int, kept_bytes: int = WINDOW_BYTES) -> int:
    """Choose how many cells are mixed, so that a source that streams reads each of them once per epoch.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    csr_bytes
        Bytes of all of them, ``CellSource.csr_bytes``: the same for every kind of source, and so is the order.
    kept_bytes
        Bytes that a source keeps.

    Returns
    -------
    int
        Whole runs of `RUN_CELLS`, at least one, at most `WINDOW_CELLS`, such that two windows of average cells fit in
        `kept_bytes` (a batch may need the end of one and the start of the next); `WINDOW_CELLS` where all cells fit.
    """
    if csr_bytes <= kept_bytes:
        return WINDOW_CELLS
    cells = kept_bytes * n_cells // (2 * csr_bytes)
    return min(max(cells // RUN_CELLS * RUN_CELLS, RUN_CELLS), WINDOW_CELLS)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise PlanError(f"A plan with {name}={value}; it must be at least 1.")


def _share(start: int, stop: int, world: World) -> tuple[int, int]:
    """Bounds of the contiguous part of ``start:stop`` that belongs to a rank."""
    size = stop - start
    return start + size * world.rank // world.size, start + size * (world.rank + 1) // world.size


class EpochPlan:
    """Shuffled batches: every cell exactly once per epoch, sizes that differ by at most one cell.

    Blocks of consecutive rows are permuted and dealt to windows; the cells of a window are permuted among themselves and
    cut into batches. So a reader that keeps one window at hand reads runs of consecutive rows, and an atlas that fits one
    window is permuted in full.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    batch_cells
        Cells in a global batch, at most.
    seed
        Of the order.
    world
        This rank, and how many there are; a global batch is split into contiguous parts.
    window_cells
        Cells that are mixed with one another; see `window_for`.
    block_cells
        Consecutive rows that stay in one window.

    Raises
    ------
    PlanError
        If a size is below 1.

    Notes
    -----
    Memory is O(N / block_cells + window_cells). The global batch is the same at any world size: the ranks' parts, one after
    the other.
    """

    def __init__(
        self,
        n_cells: int,
        batch_cells: int,
        seed: int,
        world: World = World(),  # noqa: B008  frozen, no state
        *,
        window_cells: int = WINDOW_CELLS,
        block_cells: int = RUN_CELLS,
    ) -> None:
        _check_sizes(n_cells=n_cells, batch_cells=batch_cells, window_cells=window_cells, block_cells=block_cells)
        self.n_cells = n_cells
        self.batch_cells = batch_cells
        self.seed = seed
        self.world = world
        self.n_batches = -(-n_cells // batch_cells)
        self._block_cells = min(block_cells, window_cells)
        self._blocks_per_window = max(1, window_cells // self._block_cells)
        self._n_blocks = -(-n_cells // self._block_cells)
        self._n_windows = -(-self._n_blocks // self._blocks_per_window)
        self._lock = threading.Lock()
        self._blocks: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._windows: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def bounds(self, index: int) -> tuple[int, int]:
        """Positions in the epoch of a global batch.

        Parameters
        ----------
        index
            0 to ``n_batches`` - 1.

        Returns
        -------
        tuple of int
            First position, and the one after the last.

        Raises
        ------
        PlanError
            If there is no such batch.
        """
        if not 0 <= index < self.n_batches:
            raise PlanError(f"Batch {index} does not exist; an epoch has batches 0 to {self.n_batches - 1}.")
        return index * self.n_cells // self.n_batches, (index + 1) * self.n_cells // self.n_batches

    def rows(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Rows of one batch that belong to this rank.

        Parameters
        ----------
        epoch
            0, 1, ...; each has its own order.
        index
            Global batch, 0 to ``n_batches`` - 1.

        Returns
        -------
        ndarray
            int64, in random order; empty where there are fewer cells than ranks.

        Raises
        ------
        PlanError
            If there is no such batch.
        """
        start, stop = _share(*self.bounds(index), self.world)
        blocks, window_starts = self._block_order(epoch)
        first = int(np.searchsorted(window_starts, start, side="right")) - 1
        parts = []
        for window in range(first, self._n_windows):
            offset = int(window_starts[window])
            if offset >= stop:
                break
            order = self._window_order(epoch, window, blocks)
            parts.append(order[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _block_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Blocks in the order of the epoch, and the position at which each window starts (one more for the end)."""
        with self._lock:
            known = self._blocks
        if known is not None and known[0] == epoch:
            return known[1], known[2]
        blocks = np.random.default_rng([self.seed, _BLOCK_ORDER, epoch]).permutation(self._n_blocks)
        sizes = np.full(self._n_blocks, self._block_cells)
        sizes[blocks == self._n_blocks - 1] = self.n_cells - (self._n_blocks - 1) * self._block_cells
        ends = np.concatenate(([0], np.cumsum(sizes)))
        edges = np.minimum(np.arange(self._n_windows + 1) * self._blocks_per_window, self._n_blocks)
        with self._lock:
            self._blocks = (epoch, blocks, ends[edges])
        return blocks, ends[edges]

    def _window_order(self, epoch: int, window: int, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of a window in random order."""
        key = (epoch, window)
        with self._lock:
            if key in self._windows:
                self._windows.move_to_end(key)
                return self._windows[key]
        members = blocks[window * self._blocks_per_window : (window + 1) * self._blocks_per_window]
        rows = (members[:, None] * self._block_cells + np.arange(self._block_cells)).ravel()
        rows = rows[rows < self.n_cells]
        np.random.default_rng([self.seed, _WINDOW_ORDER, epoch, window]).shuffle(rows)
        rows.setflags(write=False)
        with self._lock:
            self._windows[key] = rows
            while len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return rows


class SweepPlan:
    """Ordered batches: every cell exactly once, in the order of the source.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    batch_cells
        Cells in a global batch; the last one may be smaller.
    world
        This rank, and how many there are; a global batch is split into contiguous parts.

    Raises
    ------
    PlanError
        If a size is below 1.
    """

    def __init__(self, n_cells: int, batch_cells: int, world: World = World()) -> None:  # noqa: B008  frozen, no state
        _check_sizes(n_cells=n_cells, batch_cells=batch_cells)
        self.n_cells = n_cells
        self.batch_cells = batch_cells
        self.world = world
        self.n_batches = -(-n_cells // batch_cells)

    def rows(self, index: int) -> NDArray[np.int64]:
        """Rows of one batch that belong to this rank.

        Parameters
        ----------
        index
            Global batch, 0 to ``n_batches`` - 1.

        Returns
        -------
        ndarray
            int64, ascending; empty where there are fewer cells than ranks.

        Raises
        ------
        PlanError
            If there is no such batch.
        """
        if not 0 <= index < self.n_batches:
            raise PlanError(f"Batch {index} does not exist; a sweep has batches 0 to {self.n_batches - 1}.")
        start = index * self.batch_cells
        start, stop = _share(start, min(start + self.batch_cells, self.n_cells), self.world)
        return np.arange(start, stop, dtype=np.int64)
