"""Which cells are in which batch, and what is read for them: pure functions of (seed, step, world).

Nothing here reads a cell. A plan has no state to save: the number of the next step is enough to go on, in any process.

A plan says three things of each step (one global batch): which *windows* it needs, which runs of rows a window has to read
(cut into *parts*, which threads load one by one), and which rows of these parts make up the batch. `EpochPlan` is a shuffled
pass; `weighted.WeightedPlan` takes some cells more often than others; ordered passes and lists of rows are in `ordered`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from scamac_scale.cells.buffer import rows_of
from scamac_scale.errors import PlanError
from scamac_scale.randomness import plan_generator
from scamac_scale.ranks.world import ALONE, World

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = 64
"""Parts of equal size into which the cells of a window are dealt; a rank owns whole ones."""
PARTS = 8
"""Groups of lanes that are loaded together: what a reader thread does at a time."""
WINDOW_CELLS = 32768
"""Cells that are mixed with one another, where they fit in memory; more beyond four million cells, see `window_sizes`."""
WINDOW_BYTES = 2**28
"""Bytes of a window, as float32 CSR, that `window_sizes` does not exceed unless told."""
NEIGHBOR_CELLS = 1024
"""Consecutive cells that a shuffled pass keeps together at most."""
MIN_NEIGHBOR_CELLS = 64
"""And at least, if a lane of the window has so many: smaller reads cost more than they are worth."""
RECURRENCE = 0.25
"""How much more often than by chance two cells may share a batch twice because they lie in one block, see `window_sizes`."""
_WINDOWS_KEPT = 8  # those read ahead, and the two that a batch may straddle; more where a batch spans more

Runs = tuple["NDArray[np.int64]", "NDArray[np.int64]"]
"""First row of each run, and the one after its last."""


class Piece(NamedTuple):
    """The rows that a batch takes from one part: `places` count from the first row that the part loads."""

    window: int
    part: int
    places: NDArray[np.int64]


class Share(NamedTuple):
    """The rows of a batch that belong to this rank, and where they are found, piece after piece."""

    rows: NDArray[np.int64]
    pieces: list[Piece]


class Plan(Protocol):
    """What a feed runs. Steps and windows are counted through all epochs; windows of later steps never come earlier."""

    @property
    def n_batches(self) -> int:
        """Steps of one pass."""

    @property
    def n_parts(self) -> int:
        """Parts of each window."""

    def windows(self, step: int) -> tuple[int, int]:
        """Tell the first window that a step needs, and the one after the last."""

    def runs(self, window: int, part: int) -> Runs:
        """Tell what a part reads, in this order; empty where this rank needs nothing of it."""

    def share(self, step: int) -> Share:
        """Tell the rows of a step, and where they lie."""


def window_sizes(n_cells: int, csr_bytes: int, window_bytes: int = WINDOW_BYTES) -> dict[str, int]:
    """Choose how many cells are mixed, and how many consecutive ones are read together.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    csr_bytes
        Bytes of all of them, ``CellSource.csr_bytes``: the same for every kind of source, and so is the order.
    window_bytes
        Bytes that a window may have, as float32 CSR.

    Returns
    -------
    dict
        ``window_cells`` W and ``block_cells`` b, for `EpochPlan`.

    Notes
    -----
    Cells of one block always share a window. That two cells which shared a batch share one in the next epoch is therefore
    1 + b N / W^2 times as likely as by chance; b is the largest power of two from `MIN_NEIGHBOR_CELLS` to `NEIGHBOR_CELLS` that keeps
    the excess below `RECURRENCE`. Beyond four million cells the window grows with the root of their number for that, as far
    as `window_bytes` allow.
    """
    fits = max(window_bytes * n_cells // max(csr_bytes, 1), LANES)
    window = min(max(WINDOW_CELLS, int(np.ceil((MIN_NEIGHBOR_CELLS * n_cells / RECURRENCE) ** 0.5))), fits)
    wanted = max(MIN_NEIGHBOR_CELLS, int(RECURRENCE * window**2 / max(n_cells, 1)))
    block = 1 << (min(NEIGHBOR_CELLS, window // LANES, wanted).bit_length() - 1)
    return {"window_cells": window // block * block, "block_cells": block}


def check_sizes(**sizes: int) -> None:
    """Refuse numbers below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise PlanError(f"A plan with {name}={value}; it must be at least 1.")


@dataclass(frozen=True)
class _Window:
    """Order of the cells of one window, as far as this rank owns them."""

    start: int  # position in the epoch
    n_even: int  # cells of every lane; some have one more
    late: NDArray[np.int64]  # (own lanes,) which of those that have one more a lane is, -1 if it has not
    rows: NDArray[np.int64]  # of the own lanes, lane after lane, shuffled within each
    places: NDArray[np.int64]  # of these rows in their parts
    offsets: NDArray[np.int64]  # (own lanes + 1,) where each lane begins in `rows`

    def counts(self, lanes: NDArray[np.int64], position: int) -> NDArray[np.int64]:
        """How many cells of each own lane come before a position, when lanes take turns."""
        even = np.clip(-((lanes - position) // LANES), 0, self.n_even)
        return even + ((self.late >= 0) & (position > self.n_even * LANES + self.late))


def _lane_sizes(n_cells: int) -> tuple[int, NDArray[np.int64]]:
    """Cells that every lane of a window has, and which of those that have one more each lane is, -1 if it has not."""
    n_even = n_cells // LANES
    is_late = np.diff(np.arange(LANES + 1) * n_cells // LANES) > n_even
    return n_even, np.where(is_late, np.cumsum(is_late) - 1, -1)


class EpochPlan:
    """Shuffled batches: every cell exactly once per epoch, each epoch in its own order.

    Parameters
    ----------
    n_cells
        Cells N in the source.
    batch_cells
        Cells in a global batch, at most; all batches of an epoch are equal in size, to one cell.
    seed
        Of the order.
    world
        This rank, and how many there are.
    window_cells
        Cells that are mixed with one another, from `window_sizes`.
    block_cells
        Consecutive cells that are read together, from `window_sizes`.

    Raises
    ------
    PlanError
        If a size is below 1, or there are more ranks than lanes.

    Notes
    -----
    Blocks of consecutive cells are permuted; as many as fill a window are put together and cut into `LANES` equal lanes of
    consecutive positions; each lane is shuffled by itself, and the lanes give cells to the batches in turn. A rank owns
    whole lanes, so it reads only what it delivers. The batches of 1, 2, 4 or 8 ranks, put together in the order of the ranks,
    are those of one process, cell by cell; of any other number of ranks they have the same cells. Memory is 16 bytes per block of this and the last epoch, and a few windows of
    numbers.
    """

    def __init__(
        self,
        n_cells: int,
        batch_cells: int,
        seed: int,
        world: World = ALONE,
        *,
        window_cells: int = WINDOW_CELLS,
        block_cells: int = NEIGHBOR_CELLS,
    ) -> None:
        check_sizes(n_cells=n_cells, batch_cells=batch_cells, window_cells=window_cells, block_cells=block_cells)
        if world.size > LANES:
            raise PlanError(
                f"{world.size} ranks share {LANES} lanes, so some would have nothing to read; start at most {LANES}."
            )
        self.n_cells = n_cells
        self.batch_cells = batch_cells
        self.seed = seed
        self.world = world
        self.n_batches = -(-n_cells // batch_cells)
        self._lanes = np.arange(world.rank * LANES // world.size, (world.rank + 1) * LANES // world.size)
        groups = self._lanes * PARTS // LANES  # of all lanes, whatever the world
        self._part_edges = np.append(np.unique(groups, return_index=True)[1], self._lanes.size)
        self.n_parts = self._part_edges.size - 1
        self._block_cells = min(block_cells, window_cells)
        self._n_blocks = -(-n_cells // self._block_cells)
        self._n_windows = -(-self._n_blocks // max(1, window_cells // self._block_cells))
        self._windows_kept = _WINDOWS_KEPT + 2 * (batch_cells * self._n_windows // n_cells)
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._windows: OrderedDict[int, _Window] = OrderedDict()

    def bounds(self, index: int) -> tuple[int, int]:
        """Tell the positions in the epoch of a global batch: the first, and the one after the last."""
        return index * self.n_cells // self.n_batches, (index + 1) * self.n_cells // self.n_batches

    def block_sizes(self, step: int, n_blocks: int) -> list[int]:
        """Tell how many cells of a global batch each of some equal groups of lanes gives, on whatever ranks.

        Parameters
        ----------
        step
            Counted through all epochs.
        n_blocks
            Groups of lanes; where they are a multiple of the ranks and at most `PARTS`, or as many as the ranks, the cells of a rank are
            those of its groups, one group after the other.

        Returns
        -------
        list of int
            Their sum is the size of the batch.
        """
        low, high = self.bounds(step % self.n_batches)
        epoch, lanes = step // self.n_batches, np.arange(LANES)
        counts = np.zeros(LANES, dtype=np.int64)
        for number in range(*self.windows(step)):
            start, stop = self._window_starts(epoch)[number % self._n_windows :][:2]
            window = _Window(int(start), *_lane_sizes(int(stop - start)), *(3 * (np.empty(0, np.int64),)))
            counts += window.counts(lanes, high - start) - window.counts(lanes, max(low - start, 0))
        edges = [LANES * block // n_blocks for block in range(n_blocks + 1)]
        return [int(counts[first:last].sum()) for first, last in pairwise(edges)]

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
            int64; empty where there are fewer cells than ranks.

        Raises
        ------
        PlanError
            If there is no such batch.
        """
        if epoch < 0 or not 0 <= index < self.n_batches:
            raise PlanError(
                f"Batch {index} of epoch {epoch} does not exist; an epoch has batches 0 to {self.n_batches - 1}."
            )
        return self.share(epoch * self.n_batches + index).rows

    def windows(self, step: int) -> tuple[int, int]:
        """Tell the first window that a step needs, and the one after the last."""
        epoch, index = divmod(step, self.n_batches)
        low, high = self.bounds(index)
        edges = self._window_starts(epoch)
        first, last = np.searchsorted(edges, [low, high - 1], side="right") - 1
        return epoch * self._n_windows + int(first), epoch * self._n_windows + int(last) + 1

    def runs(self, window: int, part: int) -> Runs:
        """Tell what a part reads, in this order."""
        return self._runs(window // self._n_windows, *self._part_bounds(window, part))

    def share(self, step: int) -> Share:
        """Tell the rows of a step that belong to this rank, part after part, and where they lie."""
        low, high = self.bounds(step % self.n_batches)
        found: list[tuple[Piece, NDArray[np.int64]]] = []
        for number in range(*self.windows(step)):
            window = self._window(number)
            first = window.counts(self._lanes, max(low - window.start, 0))
            last = window.counts(self._lanes, high - window.start)
            taken = rows_of(window.offsets[:-1] + first, window.offsets[:-1] + last)
            rows, places = window.rows[taken], window.places[taken]
            ends = np.concatenate(([0], np.cumsum(last - first)))[self._part_edges]
            for part in np.flatnonzero(np.diff(ends)).tolist():
                mine = slice(ends[part], ends[part + 1])
                found.append((Piece(number, part, places[mine]), rows[mine]))
        found.sort(key=lambda pair: pair[0].part)  # not by window: the ranks of 8 own a part each
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in found)])
        return Share(rows, [piece for piece, _ in found])

    def _runs(self, epoch: int, low: int, high: int) -> Runs:
        """Find the runs of rows at the positions `low` to `high` of an epoch."""
        blocks, starts = self._order(epoch)
        first, last = np.searchsorted(starts, [low, max(high - 1, low)], side="right") - 1
        edges = np.clip(starts[first : last + 2], low, high)
        shift = blocks[first : last + 1] * self._block_cells - starts[first : last + 1]
        is_run = edges[:-1] < edges[1:]
        return (edges[:-1] + shift)[is_run], (edges[1:] + shift)[is_run]

    def _locate(
        self, epoch: int, positions: NDArray[np.int64], window: int, part: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows at some positions of an epoch, and their places in the part of a window that they belong to."""
        blocks, starts = self._order(epoch)
        block = np.searchsorted(starts, positions, side="right") - 1
        rows = blocks[block] * self._block_cells + positions - starts[block]
        return rows, positions - self._part_bounds(window, part)[0]

    def _part_bounds(self, window: int, part: int) -> tuple[int, int]:
        """Positions in the epoch that a part holds."""
        epoch, number = divmod(window, self._n_windows)
        start, stop = self._window_starts(epoch)[number : number + 2]
        first, last = self._lanes[0] + self._part_edges[part], self._lanes[0] + self._part_edges[part + 1]
        return int(start + (stop - start) * first // LANES), int(start + (stop - start) * last // LANES)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Blocks in the order of an epoch, and the position at which each starts (one more for the end)."""
        with self._lock:
            if epoch in self._epochs:
                return self._epochs[epoch]
        blocks = plan_generator(self.seed, "block_order", epoch).permutation(self._n_blocks)
        sizes = np.full(self._n_blocks, self._block_cells)
        sizes[blocks == self._n_blocks - 1] = self.n_cells - (self._n_blocks - 1) * self._block_cells
        starts = np.concatenate(([0], np.cumsum(sizes)))
        with self._lock:
            self._epochs[epoch] = blocks, starts
            while len(self._epochs) > 2:  # reading ahead crosses the end of an epoch
                self._epochs.popitem(last=False)
        return blocks, starts

    def _window_starts(self, epoch: int) -> NDArray[np.int64]:
        """Position at which each window of an epoch starts (one more for the end); windows are of nearly equal size."""
        edges = np.arange(self._n_windows + 1) * self._n_blocks // self._n_windows
        return self._order(epoch)[1][edges]

    def _window(self, number: int) -> _Window:
        with self._building:  # threads that need it at once shall not all make it
            if number not in self._windows:
                self._windows[number] = self._make_window(number)
                while len(self._windows) > self._windows_kept:
                    self._windows.popitem(last=False)
            self._windows.move_to_end(number)
            return self._windows[number]

    def _make_window(self, number: int) -> _Window:
        epoch, index = divmod(number, self._n_windows)
        start, stop = self._window_starts(epoch)[index : index + 2]
        n_cells = int(stop - start)
        edges = np.arange(LANES + 1) * n_cells // LANES
        n_even, late = _lane_sizes(n_cells)
        own = edges[self._lanes[0] : self._lanes[-1] + 2]
        offsets = own - own[0]
        positions = np.arange(start + own[0], start + own[-1])
        for lane, low, high in zip(self._lanes.tolist(), offsets[:-1], offsets[1:], strict=True):
            plan_generator(self.seed, "lane_order", number, lane).shuffle(positions[low:high])
        cuts = offsets[self._part_edges]
        found = [self._locate(epoch, positions[cuts[p] : cuts[p + 1]], number, p) for p in range(self.n_parts)]
        rows, places = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return _Window(int(start), n_even, late[self._lanes], rows, places, offsets)
