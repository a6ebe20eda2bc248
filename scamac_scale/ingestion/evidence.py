"""What the values of single cells tell of themselves, gathered while blocks of cells pass by.

Whole cells cost a comparison a value. Of cells that hold a fraction, a bounded sample is looked at closely: sums of the values
and of what they are the logarithms of, and whether all are multiples of the smallest, as counts that were scaled are. What
follows from it is decided in ``kinds.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.normalise import kernel_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from scipy import sparse

SAMPLE_CELLS = 8192
"""Cells with fractions that are looked at closely, at most."""
BASES = (math.e, 2.0, 10.0)
"""Of the logarithms that are looked for."""
LOG_MAX = 88.0
"""Above this, values cannot be natural logarithms: the exponential leaves float32."""
NEAR = 0.02
"""How far from a whole number a value is still taken for one that was rounded on its way: by chance 4 % of fractions are."""
DENOMINATOR = 120.0
"""Halves, thirds, quarters, fifths, sixths and eighths are whole when they are multiplied by this."""
DECIMALS = 1e4
"""A value that is whole when it is multiplied by this was rounded to four decimals or fewer."""
N_SURE_COUNTS = 3
"""Values of 2 or more that a whole cell must have before it is sure to hold counts."""
FORMS = 1 + len(BASES)
"""What a value may be: linear (0), or the logarithm of a linear one, in each of `BASES`."""

CELL, N_VALUES, LARGEST, N_NEAR, N_NEARS, N_PARTS, N_SQUARES = range(7)
SUMS, N_WHOLE, N_SMALL, N_STEPS = (7 + FORMS * part for part in range(4))
WIDTH = 7 + FORMS * 4
"""Columns of a sample: cell; values above zero; the largest; how many are near a whole number, near how many different ones, how many are
of few denominators, or square roots of whole numbers; then for each of `FORMS` the sum, how many are whole, of how many below 1000, and of how many different multiples of the
smallest value there are (-1: of some other)."""


SURE_FACTOR = 2
"""A block looks closely at so many times the cells that its share of the sample would be, if all held fractions."""


_COUNTS = ("n_cells", "n_empty", "n_whole", "n_counts", "n_fraction")


class SeenCells(NamedTuple):
    """What `count_block` finds of each cell of a block.

    Attributes
    ----------
    broken
        (B,) where its first fraction lies in the block, or -1.
    n_above
        (B,) how many values are 2 or more.
    n_filled
        (B,) how many values are above zero.
    total
        (B,) sum of all values.
    largest
        Largest value of the block.
    """

    broken: NDArray[np.int64]
    n_above: NDArray[np.int64]
    n_filled: NDArray[np.int64]
    total: NDArray[np.float64]
    largest: float


@dataclass
class Evidence:
    """What the cells seen so far tell of their values.

    Attributes
    ----------
    n_cells, n_empty, n_whole, n_counts, n_fraction
        Cells seen; of these without values; with whole values only; of these sure to be counts; with a fraction.
    count_cell
        First cell that is sure to be counts; -1 if there is none.
    count_totals
        (at most `room`,) sums of the first cells that are sure to be counts.
    largest
        Largest value.
    sample
        (at most `room`, `WIDTH`) a uniform sample of the cells with a fraction: the first ones in an order that is as good as random.
    waiting
        Numbers of the cells with a fraction that `complete` may have to look at.
    room
        Cells of the sample: `SAMPLE_CELLS`, or fewer where there is evidence of each of many inputs.
    """

    n_cells: int = 0
    n_empty: int = 0
    n_whole: int = 0
    n_counts: int = 0
    n_fraction: int = 0
    count_cell: int = -1
    largest: float = 0.0
    count_totals: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    sample: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, WIDTH)))
    waiting: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    room: int = field(default_factory=lambda: SAMPLE_CELLS)

    @classmethod
    def of_block(
        cls, block: sparse.csr_matrix, seen: SeenCells, start: int, n_cells: int, room: int | None = None
    ) -> Evidence:
        """Gather what a block of cells tells; a pure function of it.

        Parameters
        ----------
        block
            (B, G) values, none negative, all finite.
        seen
            What `count_block` found of each cell.
        start
            Number of the first cell.
        n_cells
            Cells that are going to be folded, all together: says how many of a block are looked at closely.
        room
            As of the class; None takes `SAMPLE_CELLS`.
        """
        room = SAMPLE_CELLS if room is None else room
        is_fraction = seen.broken >= 0
        is_counts = ~is_fraction & (seen.n_above >= N_SURE_COUNTS)
        n_empty, n_fraction = int((seen.n_filled == 0).sum()), int(is_fraction.sum())
        rows = np.flatnonzero(is_fraction)
        order = _scrambled(start + rows)
        if len(rows) > room:  # none but the first in this order can be drawn
            kept = np.sort(np.argpartition(order, room)[:room])
            rows, order = rows[kept], order[kept]
        is_sure = order <= np.uint64(min(SURE_FACTOR * room * 2**64 // max(n_cells, 1), 2**64 - 1))
        return cls(
            n_cells=len(is_fraction),
            n_empty=n_empty,
            n_whole=len(is_fraction) - n_empty - n_fraction,
            n_counts=int(is_counts.sum()),
            n_fraction=n_fraction,
            count_cell=start + int(is_counts.argmax()) if is_counts.any() else -1,
            largest=seen.largest,
            count_totals=seen.total[is_counts][:room],
            sample=_looked_at(block, rows[is_sure], start),
            waiting=start + rows[~is_sure],
            room=room,
        )

    def fold(self, other: Evidence) -> None:
        """Add what the cells behind these tell: the same whatever the blocks."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if self.count_cell < 0:
            self.count_cell = other.count_cell
        self.largest = max(self.largest, other.largest)
        room = self.room - len(self.count_totals)
        if room and other.count_totals.size:
            self.count_totals = np.concatenate([self.count_totals, other.count_totals[:room]])
        if len(other.sample):
            self.sample = _drawn(np.vstack([self.sample, other.sample]), CELL, self.room)
        if len(self.sample) >= self.room:
            self.waiting = np.zeros(0, np.int64)
        elif other.waiting.size:
            self.waiting = _drawn(np.concatenate([self.waiting, other.waiting])[:, None], 0, self.room)[:, 0]

    def complete(self, read: Callable[[int, int], sparse.csr_matrix], block_cells: int) -> None:
        """Look at the cells of the sample that no block was sure of, at the end: where less than half of all hold fractions.

        Parameters
        ----------
        read
            Reads a run of cells.
        block_cells
            Cells that are read at a time.
        """
        room = self.room - len(self.sample)
        numbers = self.waiting[np.argsort(_scrambled(self.waiting), kind="stable")[:room]]
        self.waiting = np.zeros(0, np.int64)
        for index in np.unique(numbers // block_cells).tolist():
            cells = np.sort(numbers[numbers // block_cells == index])
            first = int(cells[0])
            self.sample = np.vstack([self.sample, _looked_at(read(first, int(cells[-1]) + 1), cells - first, first)])
        self.sample = self.sample[np.argsort(self.sample[:, CELL])]

    def to_arrays(self) -> dict[str, Any]:  # Any: numbers and an array
        """Give what `from_arrays` reads back, for a note; of evidence that is complete."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("waiting", "room")}

    @classmethod
    def from_arrays(cls, noted: dict[str, NDArray[Any]]) -> Evidence:
        """Read what `to_arrays` gave."""
        found = cls()
        for name in (*_COUNTS, "count_cell"):
            setattr(found, name, int(noted[name]))
        found.largest = float(noted["largest"])
        found.count_totals, found.sample = np.array(noted["count_totals"]), np.array(noted["sample"])
        return found


def _looked_at(block: sparse.csr_matrix, rows: NDArray[np.int64], start: int) -> NDArray[np.float64]:
    """(rows, `WIDTH`) of some cells of a block that begins with cell `start`."""
    found = np.zeros((len(rows), WIDTH))
    found[:, CELL] = rows
    if len(rows):
        _measure(block.indptr, kernel_values(block.data), found)
    found[:, CELL] += start
    return found


def _drawn(cells: NDArray[Any], column: int, room: int) -> NDArray[Any]:
    """Keep the rows of the `room` cells that are the first in the random order."""
    if len(cells) <= room:
        return cells
    return cells[np.argpartition(_scrambled(cells[:, column].astype(np.int64)), room)[:room]]


def _scrambled(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Turn numbers into others that look random, no two alike: splitmix64."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def count_block(
    block: sparse.csr_matrix, n_expressing: NDArray[np.int64], largest: NDArray[np.float64]
) -> tuple[int, SeenCells]:
    """Count a block (B, G) into (G,) cells that express a gene and its largest value.

    Returns
    -------
    wrong : int
        Where the first value lies that is negative or not finite, or -1.
    seen : SeenCells
        What `Evidence.of_block` needs; only where nothing is wrong.
    """
    n_cells = block.shape[0]
    per_cell, totals = np.zeros((3, n_cells), np.int64), np.zeros(n_cells)
    values = kernel_values(block.data)
    wrong = int(_count((block.indptr, block.indices, values), n_expressing, largest, per_cell, totals))
    broken, n_above, n_filled = per_cell
    return wrong, SeenCells(broken, n_above, n_filled, totals, float(largest.max(initial=0.0)))


@compiled
def _count(rows: Any, n_expressing: Any, largest: Any, per_cell: Any, totals: Any) -> Any:  # pragma: no cover  compiled
    indptr, indices, data = rows
    for row in range(len(indptr) - 1):
        broken, n_above, n_filled, total = -1, 0, 0, 0.0
        for at in range(indptr[row], indptr[row + 1]):
            value = data[at]
            if not (value >= 0 and value < np.inf):
                return at
            if value > 0:
                gene = indices[at]
                n_expressing[gene] += 1
                n_filled += 1
                n_above += value >= 2
                total += value
                if value > largest[gene]:
                    largest[gene] = value
                if broken < 0 and value != np.floor(value):
                    broken = at
        per_cell[0, row], per_cell[1, row], per_cell[2, row] = broken, n_above, n_filled
        totals[row] = total
    return -1


_FACTORS = np.array([0.0, *map(math.log, BASES)])


@compiled
def _linear(value: Any, form: Any) -> Any:  # pragma: no cover  compiled
    """Give what a value is the logarithm of, if it is one of this form; infinite where it cannot be one."""
    if form == 0:
        return value
    power = value * _FACTORS[form]
    return np.expm1(power) if power < LOG_MAX else np.inf


@compiled
def _measure(indptr: Any, data: Any, found: Any) -> None:  # pragma: no cover  compiled
    """Look closely at the cells that the first column of `found` numbers, with columns as `WIDTH` says."""
    for i in range(len(found)):
        row = np.int64(found[i, CELL])
        smallest, seen = np.inf, np.uint64(0)
        for at in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[at])
            if value > 0:
                smallest = min(smallest, value)
                found[i, LARGEST] = max(found[i, LARGEST], value)
                found[i, N_VALUES] += 1
                whole = np.rint(value)
                if whole >= 1 and abs(value - whole) <= NEAR:
                    found[i, N_NEAR] += 1
                    seen |= np.uint64(1) << np.uint64(min(whole, 63))
                found[i, N_PARTS] += value > 1 / DENOMINATOR and _is_whole(value * DENOMINATOR, NEAR)
                found[i, N_SQUARES] += _is_whole(value * value, NEAR)
        found[i, N_NEARS] = _n_bits(seen)
        for form in range(FORMS):
            unit = _linear(smallest, form)
            seen = np.uint64(0)
            is_broken = False
            for at in range(indptr[row], indptr[row + 1]):
                value = np.float64(data[at])
                if value > 0:
                    linear = _linear(value, form)
                    found[i, SUMS + form] += linear
                    if linear <= 1000:
                        found[i, N_SMALL + form] += 1
                        found[i, N_WHOLE + form] += _is_whole(linear, 0.01)
                    multiple = linear / unit
                    if multiple <= 300:
                        whole = np.rint(multiple)
                        is_broken |= abs(multiple - whole) > 0.004 + 2e-5 * multiple
                        if 2 <= whole < 64:
                            seen |= np.uint64(1) << np.uint64(whole)
            if form == 0 and smallest < 1 and _is_whole(smallest * DECIMALS, 0.001):
                seen = np.uint64(0)  # numbers of few decimals are multiples of the last one, whatever they are
            found[i, N_STEPS + form] = -1 if is_broken else _n_bits(seen)


@compiled
def _is_whole(value: Any, tolerance: Any) -> Any:  # pragma: no cover  compiled
    whole = np.rint(value)
    return whole >= 1 and abs(value - whole) <= tolerance


@compiled
def _n_bits(seen: Any) -> Any:  # pragma: no cover  compiled
    n_bits = 0
    while seen:
        seen &= seen - np.uint64(1)
        n_bits += 1
    return n_bits
