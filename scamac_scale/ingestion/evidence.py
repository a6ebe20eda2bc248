"""What the values of single cells tell of themselves, gathered while blocks of cells pass by.

Whole cells cost a comparison a value. Of cells that hold a fraction, a bounded sample is looked at closely: sums of the values
and of what they are the logarithms of, and whether all are multiples of the smallest, as counts that were scaled are. What
follows from it is decided in ``kinds.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.normalise import kernel_values

if TYPE_CHECKING:
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
        (at most `SAMPLE_CELLS`,) sums of the first cells that are sure to be counts.
    largest
        Largest value.
    sample
        (at most `room`, `WIDTH`) a uniform sample of the cells with a fraction.
    room
        Cells of the sample, at most `SAMPLE_CELLS`.
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
    room: int = field(default_factory=lambda: SAMPLE_CELLS)

    def fold(self, block: sparse.csr_matrix, per_cell: NDArray[np.int64], start: int) -> None:
        """Add a block of cells.

        Parameters
        ----------
        block
            (B, G) values, none negative, all finite.
        per_cell
            (B, 3) of each cell where its first fraction lies in the block, or -1; how many values are 2 or more; how many are above zero.
        start
            Number of the first cell.
        """
        is_fraction = per_cell[:, 0] >= 0
        is_counts = ~is_fraction & (per_cell[:, 1] >= N_SURE_COUNTS)
        n_empty, n_fraction = int((per_cell[:, 2] == 0).sum()), int(is_fraction.sum())
        self.n_cells += len(per_cell)
        self.n_empty += n_empty
        self.n_whole += len(per_cell) - n_empty - n_fraction
        self.n_counts += int(is_counts.sum())
        if self.count_cell < 0 and is_counts.any():
            self.count_cell = start + int(is_counts.argmax())
        first = np.flatnonzero(is_counts)[: self.room - len(self.count_totals)]
        if first.size:
            totals = np.asarray(block[first].sum(axis=1), dtype=np.float64).ravel()
            self.count_totals = np.concatenate([self.count_totals, totals])
        if block.nnz:
            self.largest = max(self.largest, float(block.data.max()))
        self._draw(block, np.flatnonzero(is_fraction), start)

    def _draw(self, block: sparse.csr_matrix, rows: NDArray[np.int64], start: int) -> None:
        """Draw from cells with a fraction, each with the same chance whatever the blocks."""
        numbers = self.n_fraction + np.arange(len(rows))
        self.n_fraction += len(rows)
        slots = np.where(numbers < self.room, numbers, _scrambled(numbers) % (numbers + 1).astype(np.uint64))
        is_drawn = slots < self.room
        if not is_drawn.any():
            return
        found = np.zeros((int(is_drawn.sum()), WIDTH))
        found[:, CELL] = rows[is_drawn]
        _measure(block.indptr, kernel_values(block.data), found)
        found[:, CELL] += start
        filled = min(self.n_fraction, self.room)
        if filled > len(self.sample):
            self.sample = np.vstack([self.sample, np.zeros((filled - len(self.sample), WIDTH))])
        self.sample[slots[is_drawn].astype(np.int64)] = found

    def to_arrays(self) -> dict[str, Any]:  # Any: numbers and an array
        """Give what `from_arrays` reads back, for a note."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, noted: dict[str, NDArray[Any]]) -> Evidence:
        """Read what `to_arrays` gave."""
        number = {
            name: int(noted[name])
            for name in cls.__dataclass_fields__
            if name not in ("largest", "count_totals", "sample") and name in noted
        }
        return cls(
            **number,
            largest=float(noted["largest"]),
            count_totals=np.array(noted["count_totals"]),
            sample=np.array(noted["sample"]),
        )


def _scrambled(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Turn numbers into others that look random: splitmix64."""
    z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


@compiled
def count_block(rows: Any, n_expressing: Any, largest: Any, per_cell: Any) -> Any:  # pragma: no cover  compiled
    """Count a block into (G,) cells that express a gene and its largest value, and what `Evidence.fold` needs of each cell.

    Returns where the first value lies that is negative or not finite, or -1.
    """
    indptr, indices, data = rows
    for row in range(len(indptr) - 1):
        broken, n_above, n_filled = -1, 0, 0
        for at in range(indptr[row], indptr[row + 1]):
            value = data[at]
            if not (value >= 0 and value < np.inf):
                return at
            if value > 0:
                gene = indices[at]
                n_expressing[gene] += 1
                n_filled += 1
                n_above += value >= 2
                if value > largest[gene]:
                    largest[gene] = value
                if broken < 0 and value != np.floor(value):
                    broken = at
        per_cell[row, 0], per_cell[row, 1], per_cell[row, 2] = broken, n_above, n_filled
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
