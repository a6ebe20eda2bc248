"""What every flavor is given and gives back, and its passes over the cells: pure functions of one block, folded in the order of the blocks.

Sums carry their rounding error along (two numbers each), so that they do not depend on where blocks are cut.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.normalise import kernel_values

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix


class Moments(NamedTuple):
    """Sums over cells that add up over blocks.

    Attributes
    ----------
    n_cells
        Cells summed over.
    total
        (G,) sum of the values of each gene.
    squared
        (G,) sum of their squares.
    """

    n_cells: int
    total: NDArray[np.float64]
    squared: NDArray[np.float64]

    def __add__(self, other: object) -> Moments:
        """Add the sums of other cells."""
        if not isinstance(other, Moments):
            return NotImplemented
        return Moments(self.n_cells + other.n_cells, self.total + other.total, self.squared + other.squared)

    def scaled(self, factor: float) -> Moments:
        """Return the sums of the values times `factor`."""
        return Moments(self.n_cells, self.total * factor, self.squared * factor**2)

    def of(self, genes: NDArray[np.bool_]) -> Moments:
        """Return the sums of some genes."""
        return Moments(self.n_cells, self.total[genes], self.squared[genes])

    def mean_and_variance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean of each gene and its unbiased variance, 0 of a single cell."""
        n = max(self.n_cells, 1)
        mean = self.total / n
        variance = np.maximum(self.squared / n - mean**2, 0.0)  # rounding may leave -1e-20
        return mean, variance * (n / (n - 1)) if n > 1 else variance


@dataclass(frozen=True, eq=False)
class Candidates:
    """The genes that passed the filter, and what is known of them when some are to be chosen.

    Attributes
    ----------
    raw
        (N, G) values; a flavor may pass over them again.
    is_filtered
        (G,) the F genes to choose from.
    kind
        Of the values: counts, linear or log.
    target_sum
        Total that every cell is scaled to; None for log values.
    totals
        (N,) sum of each cell over the filtered genes.
    moments
        Of each technical batch, or of all cells where there are none: of ``x / total``, or of what log values are the logarithm of.
    tech
        (N,) technical batch of each cell, 0 to T - 1; None has none.
    n_genes
        How many are asked for.
    engine
        Maps over the blocks of `raw`.
    """

    raw: RawMatrix
    is_filtered: NDArray[np.bool_]
    kind: str
    target_sum: float | None
    totals: NDArray[np.float64]
    moments: list[Moments]
    tech: IntArray | None
    n_genes: int
    engine: Engine

    @property
    def names(self) -> list[str]:
        """(F,) names of the filtered genes."""
        return [name for name, passes in zip(self.raw.gene_names, self.is_filtered, strict=True) if passes]

    @property
    def column(self) -> NDArray[np.int64]:
        """(G,) place of each gene among the filtered ones, -1 of the others."""
        return np.where(self.is_filtered, np.cumsum(self.is_filtered) - 1, -1)

    @property
    def shape(self) -> tuple[int, int]:
        """Technical batches T (one where there are none), and filtered genes F."""
        return len(self.moments), int(self.is_filtered.sum())


class Choice(NamedTuple):
    """The genes that a flavor chose.

    Attributes
    ----------
    table
        (F rows) what it measured of every gene, columns named as in scanpy.
    is_variable
        (F,) marks of the chosen genes.
    silent
        Technical batches that had no say.
    why
        They had none, in words.
    """

    table: pd.DataFrame
    is_variable: NDArray[np.bool_]
    silent: tuple[int, ...] = ()
    why: str = "no gene varies (one cell, say)"


class BlockSums(NamedTuple):
    """Sums over the cells of one block, of each technical batch it has and of the genes that these express.

    Attributes
    ----------
    batches
        (B,) the technical batches that occur in the block.
    ends
        (B + 1,) where each begins in what follows, and the end of the last.
    genes
        (n,) of the F that are summed.
    sums
        (2, k, n) k sums, and what rounding took from each.
    """

    batches: IntArray
    ends: IntArray
    genes: IntArray
    sums: NDArray[np.float64]


class Common(NamedTuple):
    """What a function of one block is told beside the block.

    Attributes
    ----------
    column
        (G,) place of each gene among the F that are summed, -1 of the others.
    n_genes
        F.
    tech
        (N,) technical batch of each cell; None has one.
    cells
        (N,) a number for each cell, such as its total.
    of_batches
        (T, F) a number for each technical batch and gene, such as where values are clipped.
    limits
        (T, k) numbers for each technical batch.
    """

    column: NDArray[np.int64]
    n_genes: int
    tech: IntArray | None
    cells: NDArray[np.float64] | None = None
    of_batches: NDArray[np.float64] | None = None
    limits: NDArray[np.float64] | None = None


def fold(
    candidates: Candidates,
    function: Callable[[int, sparse.csr_matrix, int, Common], BlockSums],
    common: Common,
    label: str,
) -> NDArray[np.float64]:
    """Pass over all cells once more and add up what a function finds in each block.

    Parameters
    ----------
    candidates
        Where the cells lie.
    function
        A pure function of a module, of the number of a block, the block (cells, G), its first cell and `common`.
    common
        What it is told.
    label
        What is being done, for the progress report.

    Returns
    -------
    ndarray
        (k, T, F) sums.
    """
    n_batches, n_genes = candidates.shape
    high = low = np.zeros((0, n_batches, n_genes))
    with closing(candidates.engine.map(candidates.raw, function, common, label)) as parts:
        for _, found in parts:
            if not len(high):
                high, low = np.zeros((2, found.sums.shape[1], n_batches, n_genes))
            for batch, start, stop in zip(found.batches, found.ends[:-1], found.ends[1:], strict=True):
                genes, (added, taken) = found.genes[start:stop], found.sums[:, :, start:stop]
                before = high[:, batch, genes]
                total = before + added
                part = total - before
                low[:, batch, genes] += (before - (total - part)) + (added - part) + taken  # what rounding took
                high[:, batch, genes] = total
    return high + low


Rows = tuple[Any, Any, Any]
"""Row pointer, columns and values of a block, for kernels."""


def summed(
    block: sparse.csr_matrix,
    start: int,
    common: Common,
    n_sums: int,
    add: Callable[[Rows, IntArray, int, NDArray[np.float64]], None],
) -> BlockSums:
    """Sum over the cells of a block, one technical batch after the other.

    Parameters
    ----------
    block, start, common
        As of `fold`.
    n_sums
        k.
    add
        Adds what it finds in some cells: given the rows of the block, which of them, their technical batch, and (2, k, F) sums and what
        rounding took from these.

    Returns
    -------
    BlockSums
        Without the zeros of genes that no cell of a batch expresses.
    """
    n_cells = block.shape[0]
    tech = np.zeros(n_cells, np.int64) if common.tech is None else common.tech[start : start + n_cells]
    order = np.argsort(tech, kind="stable")
    batches, first = np.unique(tech[order], return_index=True)
    rows = (block.indptr, block.indices, kernel_values(block.data))
    genes, sums = [np.zeros(0, np.int64)], [np.zeros((2, n_sums, 0))]
    for batch, cells in zip(batches.tolist(), np.split(order, first[1:]), strict=True):
        into = np.zeros((2, n_sums, common.n_genes))
        add(rows, cells, batch, into)
        genes.append(np.flatnonzero(into.any(axis=(0, 1))))
        sums.append(into[:, :, genes[-1]])
    ends = np.cumsum([len(part) for part in genes])
    return BlockSums(batches, ends, np.concatenate(genes), np.concatenate(sums, axis=2))


def raw_moments(index: int, block: sparse.csr_matrix, start: int, common: Common) -> BlockSums:
    """Sum the values of a block as they are, and their squares."""

    def add(rows: Rows, cells: IntArray, batch: int, into: NDArray[np.float64]) -> None:
        _add_values(rows, cells, common.column, into)

    return summed(block, start, common, 2, add)


def log_moments(index: int, block: sparse.csr_matrix, start: int, common: Common) -> BlockSums:
    """Sum ``log1p(x * scale)`` of a block with the scales of its cells, and their squares."""
    assert common.cells is not None
    scale = np.repeat(common.cells[start : start + block.shape[0]], np.diff(block.indptr))
    logs = np.log1p(kernel_values(block.data) * scale)

    def add(rows: Rows, cells: IntArray, batch: int, into: NDArray[np.float64]) -> None:
        _add_values((*rows[:2], logs), cells, common.column, into)

    return summed(block, start, common, 2, add)


def moments_of_batches(candidates: Candidates, sums: NDArray[np.float64]) -> list[Moments]:
    """Put (2, T, F) sums and the cells of each technical batch together."""
    return [Moments(part.n_cells, *sums[:, at]) for at, part in enumerate(candidates.moments)]


@compiled
def add_exactly(into: Any, which: Any, gene: Any, value: Any) -> None:  # pragma: no cover  compiled
    """Add a value to one of (2, k, F) sums, and what rounding takes from it (Knuth's two-sum); callable from other kernels."""
    before = into[0, which, gene]
    total = before + value
    part = total - before
    into[1, which, gene] += (before - (total - part)) + (value - part)
    into[0, which, gene] = total


@compiled
def _add_values(rows: Any, cells: Any, column: Any, into: Any) -> None:  # pragma: no cover  compiled
    indptr, indices, data = rows
    for row in cells:
        for at in range(indptr[row], indptr[row + 1]):
            gene = column[indices[at]]
            if gene >= 0:
                value = np.float64(data[at])
                add_exactly(into, 0, gene, value)
                add_exactly(into, 1, gene, value * value)
