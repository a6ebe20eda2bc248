"""Rows of several inputs one below the other, and some rows of an input: as any other `Rows`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scamac_scale.cells.buffer import near_runs, rows_of
from scamac_scale.ingestion.csr import take_columns
from scamac_scale.ingestion.formats.transpose import TransposedRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.raw import RawMatrix, Recipe
    from scamac_scale.ingestion.rows import Rows

MOST_OPEN = 64
"""Inputs that are open at once; many systems allow a process a few hundred files."""
GAP_CELLS, READ_CELLS = 256, 16384
"""Cells between two that are taken which are read too, where that is cheaper than to read twice; cells that are read at once."""


class Handles:
    """Several inputs, of which the last that were used are open.

    Parameters
    ----------
    most
        How many; one that is being read is open beyond that.

    Notes
    -----
    Threads may use it at once.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._recipes: dict[int, Recipe] = {}
        self._open: OrderedDict[int, RawMatrix] = OrderedDict()
        self._in_use: dict[int, int] = {}
        self._kept: dict[int, RawMatrix] = {}

    def add(self, number: int, raw: RawMatrix) -> None:
        """Take an open input; one that cannot be opened again, or that is transposed when it is, stays open."""
        with self._lock:
            if raw.recipe is not None:
                self._recipes[number] = raw.recipe.stamped()
            if raw.recipe is None or isinstance(raw.rows, TransposedRows):
                self._kept[number] = raw
                return
            self._open[number] = raw
            self._shrink()

    @contextmanager
    def use(self, number: int) -> Iterator[RawMatrix]:
        """Lend an input, open until it is given back."""
        if number in self._kept:
            yield self._kept[number]
            return
        with self._lock:  # the others wait: to open an input twice takes as long
            if number not in self._open:
                self._open[number] = self._recipes[number].open()
            self._open.move_to_end(number)
            self._in_use[number] = self._in_use.get(number, 0) + 1
            raw = self._open[number]
        try:
            yield raw
        finally:
            with self._lock:
                self._in_use[number] -= 1
                self._shrink()

    def recipes(self, count: int) -> tuple[Recipe, ...] | None:
        """How the first inputs are opened again, in their order; None where one cannot be."""
        found = [self._recipes.get(number) for number in range(count)]
        return None if None in found else tuple(recipe for recipe in found if recipe is not None)

    def vars(self, names: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
        """Read the tables of genes of all inputs, which have these names; those without tables are left out."""
        found: list[tuple[str, pd.DataFrame]] = []
        for number, name in enumerate(names):
            with self.use(number) as raw:
                found += [(name, var) for _, var in raw.read_vars()]
        return found

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for raw in (*self._open.values(), *self._kept.values()):
                raw.close()
            self._open.clear()

    def _shrink(self) -> None:
        idle = [number for number in self._open if not self._in_use.get(number)]
        for number in idle[: max(0, len(self._open) - self._most)]:
            self._open.pop(number).close()


@dataclass(frozen=True, eq=False)
class StackedRows:
    """Rows of several inputs, one input below the other, with the columns of all.

    Attributes
    ----------
    handles
        The inputs, by their number.
    starts
        (inputs + 1,) int64, first row of each input, and the number of all rows.
    targets
        Of each input the new column of each of its own, or -1 to leave it out; None where they are the same.
    shape
        (N, G).
    dtype
        One that holds the values of all inputs exactly.
    n_stored
        Stored values of all inputs.
    """

    handles: Handles
    starts: NDArray[np.int64]
    targets: tuple[NDArray[np.int64] | None, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    n_stored: int

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive), of as many inputs as they are in."""
        blocks = []
        number = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[number + 1]))
            if start < end:
                blocks.append(self._read(number, start, end))
                start = end
            number += 1
        if not blocks:
            return sparse.csr_matrix((0, self.shape[1]), dtype=self.dtype)
        return stacked(blocks)

    def _read(self, number: int, start: int, stop: int) -> sparse.csr_matrix:
        first, target = int(self.starts[number]), self.targets[number]
        with self.handles.use(number) as raw:
            block = raw.read_block(start - first, stop - first)
        if target is not None:
            block = take_columns(block, target, self.shape[1])
        if block.dtype != self.dtype:
            block = block.astype(self.dtype)
        return block


@dataclass(frozen=True, eq=False)
class PickedRows:
    """Some rows of others, in their order.

    Attributes
    ----------
    base
        What they are rows of.
    picks
        (N,) int64, ascending: which.
    """

    base: Rows
    picks: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return len(self.picks), self.base.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        return self.base.dtype

    @property
    def n_stored(self) -> int:
        """Stored values, by the share of the rows: how many these have is not known before they are read."""
        return round(self.base.n_stored * len(self.picks) / max(self.base.shape[0], 1))

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the picked cells `start` to `stop` (exclusive)."""
        picks = self.picks[start:stop]
        cuts = np.flatnonzero(np.diff(picks) > 1) + 1
        starts = picks[np.concatenate([[0], cuts])] if picks.size else picks
        stops = picks[np.concatenate([cuts - 1, [picks.size - 1]])] + 1 if picks.size else picks
        blocks = [self._read(*runs) for runs in near_runs(starts, stops, GAP_CELLS, READ_CELLS)]
        return stacked(blocks) if blocks else sparse.csr_matrix((0, self.shape[1]), dtype=self.dtype)

    def _read(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> sparse.csr_matrix:
        first, last = int(starts[0]), int(stops[-1])
        block = self.base.read(first, last)
        return block if (stops - starts).sum() == last - first else block[rows_of(starts, stops) - first]


def stacked(blocks: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Put blocks of equal columns one below the other; indices stay sorted within each row."""
    if len(blocks) == 1:
        return blocks[0]
    whole = sparse.vstack(blocks, format="csr")
    whole.has_canonical_format = True  # each block is
    return whole
