"""The pass over the input: sums of the log-normalised values of each group of cells and gene, and the rows of a sample of cells.

A block gives the sums of those genes alone that its cells express, so that its result is of the size of the block. They are added
in the order of the blocks: every engine gives the same bits.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.cells.normalisation import TABLE, fill_table, log_scaled
from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.normalise import kernel_values
from scamac_scale.ingestion.passes import Entry, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.marker_genes.inputs import Scaling

SUM, SQUARE, COUNT = range(3)
"""Places of the last axis of the sums: of the values, of their squares, and of values above zero."""


@dataclass(frozen=True, eq=False)
class Measure:
    """What `sum_groups` is told.

    Attributes
    ----------
    codes
        (N,) group of each cell, 0 to K; those of K are of no group.
    n_groups
        K.
    scaling
        Genes that count for a total, and what values may be.
    target_sum
        Total that every cell is scaled to; None takes values as they are.
    sample
        Rows whose values are kept, ascending.
    """

    codes: IntArray
    n_groups: int
    scaling: Scaling
    target_sum: float | None
    sample: IntArray


class SampledRows(NamedTuple):
    """Rows of the sample: (n,) values of each; their genes and log-normalised values above zero, row after row."""

    lengths: NDArray[np.int64]
    genes: NDArray[Any]
    values: NDArray[np.float32]


class GroupPart(NamedTuple):
    """What `sum_groups` gives.

    Attributes
    ----------
    groups, ends
        Groups that the block has, and where each begins in what follows, with the end of the last.
    genes
        (n,) genes that cells of the group express.
    sums
        (n, 3) see `SUM`.
    sampled
        Of its cells that are in the sample.
    wrong
        The first value that is not what it must be; then the rest means nothing.
    """

    groups: IntArray
    ends: IntArray
    genes: IntArray
    sums: NDArray[np.float64]
    sampled: SampledRows
    wrong: Entry | None = None


def sum_groups(index: int, block: sparse.csr_matrix, start: int, measure: Measure) -> GroupPart:
    """Sum over the cells of each group of a block (B, G), see `BlockFunction`."""
    n_cells, n_genes = block.shape
    codes = measure.codes[start : start + n_cells]
    order = np.argsort(codes, kind="stable")
    groups, first = np.unique(codes[order], return_index=True)
    edges = np.append(first, n_cells)
    data = kernel_values(block.data)
    most = min(block.nnz, len(groups) * n_genes)
    genes, sums, ends = np.empty(most, np.int32), np.empty((most, 3)), np.zeros(len(edges), np.int64)
    slots = np.full(n_genes, -1, np.int64)
    rows = (block.indptr, block.indices, data)
    limits = (measure.target_sum is not None, measure.target_sum or 0.0, measure.scaling.whole, measure.scaling.largest)
    wrong = _sum(rows, measure.scaling.is_filtered, limits, (order, edges), (genes, sums, ends, slots))
    if wrong >= 0:
        row = int(np.searchsorted(block.indptr, wrong, side="right")) - 1
        entry = Entry(start + row, int(block.indices[wrong]), float(block.data[wrong]))
        return GroupPart(groups, ends, genes[:0], sums[:0], _no_rows(n_genes), entry)
    n = int(ends[-1])
    low, high = np.searchsorted(measure.sample, (start, start + n_cells))
    sampled = _sampled(rows, measure, measure.sample[low:high] - start)
    return GroupPart(groups, ends, genes[:n].copy(), sums[:n].copy(), sampled)


def gene_dtype(n_genes: int) -> np.dtype[Any]:
    """Smallest type that holds the number of a gene."""
    return np.dtype(np.uint16 if n_genes <= 2**16 else np.int32)


def _no_rows(n_genes: int) -> SampledRows:
    return SampledRows(np.zeros(0, np.int64), np.zeros(0, gene_dtype(n_genes)), np.zeros(0, np.float32))


def _sampled(rows: tuple[Any, Any, Any], measure: Measure, picks: IntArray) -> SampledRows:
    """Log-normalised values above zero of some cells of a block."""
    n_genes = len(measure.scaling.is_filtered)
    if not len(picks):
        return _no_rows(n_genes)
    indptr = rows[0]
    lengths = np.zeros(len(picks), np.int64)
    most = int((indptr[picks + 1] - indptr[picks]).sum())
    genes, values = np.empty(most, gene_dtype(n_genes)), np.empty(most, np.float32)
    limits = (measure.target_sum is not None, measure.target_sum or 0.0)
    n = _pick(rows, measure.scaling.is_filtered, limits, picks, (lengths, genes, values))
    return SampledRows(lengths, genes[:n].copy(), values[:n].copy())


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over all cells.

    Attributes
    ----------
    n_cells
        (K + 1,) cells of each group, and of none.
    sums
        (K + 1, G, 3) see `SUM`.
    sampled
        Rows of the sample, in order; one item for each block that has some.
    """

    n_cells: IntArray
    sums: NDArray[np.float64]
    sampled: list[SampledRows]


def gather(raw: RawMatrix, measure: Measure, engine: Engine) -> GroupSums:
    """Sum over all cells in one pass.

    Parameters
    ----------
    raw
        (N, G) raw values.
    measure
        Groups, normalisation and sample.
    engine
        Maps over the blocks.

    Raises
    ------
    InputError
        If a value is negative, not finite, or not of the kind that the fit had; cell and gene are named.
    """
    into = np.zeros((measure.n_groups + 1, raw.n_genes, 3))
    sampled: list[SampledRows] = []
    with closing(engine.map(raw, sum_groups, measure, "summing genes")) as parts:
        for _, part in parts:
            if part.wrong is not None:
                raise InputError(_told(raw, part.wrong, measure))
            _fold(part.groups, part.ends, part.genes, part.sums, into)
            if len(part.sampled.lengths):
                sampled.append(part.sampled)
    return GroupSums(np.bincount(measure.codes, minlength=measure.n_groups + 1), into, sampled)


def _told(raw: RawMatrix, entry: Entry, measure: Measure) -> str:
    what = "expected values that are finite and not negative"
    if np.isfinite(entry.value) and entry.value >= 0:
        what = "the fit had whole counts" if measure.scaling.whole else "the fit had logarithms, and this is none"
    return (
        f"{raw.name}: {raw.matrix} holds {entry.value:g} for {place_of(raw, entry)}; {what}. Give the matrix of raw values that the "
        "model was fitted to, with ingest.matrix if it is in raw or a layer."
    )


def columns_of(
    sampled: list[SampledRows], n_genes: int, wanted: IntArray
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Sort the rows of a sample by genes, for some genes.

    Parameters
    ----------
    sampled
        Rows in order; emptied meanwhile, so that they are held once.
    n_genes
        G.
    wanted
        (W,) genes.

    Returns
    -------
    indptr : ndarray
        (W + 1,) where each gene begins.
    cells : ndarray
        (nnz,) place of the cell in the sample.
    values : ndarray
        (nnz,) float32.
    """
    counts = np.zeros(n_genes, np.int64)
    for part in sampled:
        counts += np.bincount(part.genes, minlength=n_genes)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[wanted])])
    cells, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    free, first = np.full(n_genes, -1, np.int64), 0
    free[wanted] = indptr[:-1]
    for part in _drained(sampled):
        _place(part.lengths, part.genes, part.values, first, (free, cells, values))
        first += len(part.lengths)
    return indptr, cells, values


def _drained(sampled: list[SampledRows]) -> Iterator[SampledRows]:
    sampled.reverse()
    while sampled:
        yield sampled.pop()


# ------------------------------------------------------------------ kernels


@compiled
def _scale(rows: Any, is_filtered: Any, target: Any, row: Any) -> Any:  # pragma: no cover  compiled
    """``target / total`` of a cell; 0 where it has none."""
    indptr, indices, data = rows
    total = 0.0
    for at in range(indptr[row], indptr[row + 1]):
        total += data[at] if is_filtered[indices[at]] else 0.0
    return target / total if total > 0 else 0.0


@compiled
def _sum(rows: Any, is_filtered: Any, limits: Any, cells: Any, out: Any) -> Any:  # pragma: no cover  compiled
    """Sum by groups; give the place of the first wrong value, or -1."""
    indptr, indices, data = rows
    is_scaled, target, whole, largest = limits
    order, edges = cells
    genes, sums, ends, slots = out
    table = np.empty(TABLE, np.float32)
    n = 0
    for group in range(len(edges) - 1):
        begin = n
        for place in range(edges[group], edges[group + 1]):
            row = order[place]
            scale = 1.0
            if is_scaled:
                scale = _scale(rows, is_filtered, target, row)
                fill_table(scale, table)
            for at in range(indptr[row], indptr[row + 1]):
                raw = data[at]
                if not 0 <= raw <= largest:
                    return at
                if not is_scaled:
                    value = np.float32(raw)
                elif raw < TABLE and raw == np.int64(raw):
                    value = table[np.int64(raw)]
                else:
                    if whole and raw != np.rint(raw):
                        return at
                    value = log_scaled(raw, scale)
                if value > 0:
                    gene = indices[at]
                    slot = slots[gene]
                    if slot < begin:
                        slot = n
                        slots[gene] = n
                        genes[n] = gene
                        sums[n, 0], sums[n, 1], sums[n, 2] = 0.0, 0.0, 0.0
                        n += 1
                    exact = np.float64(value)
                    sums[slot, 0] += exact
                    sums[slot, 1] += exact * exact
                    sums[slot, 2] += 1.0
        ends[group + 1] = n
    return -1


@compiled
def _pick(rows: Any, is_filtered: Any, limits: Any, picks: Any, out: Any) -> Any:  # pragma: no cover  compiled
    indptr, indices, data = rows
    is_scaled, target = limits
    lengths, genes, values = out
    n = 0
    for place in range(len(picks)):
        row = picks[place]
        scale = _scale(rows, is_filtered, target, row) if is_scaled else 1.0
        for at in range(indptr[row], indptr[row + 1]):
            value = log_scaled(data[at], scale) if is_scaled else np.float32(data[at])
            if value > 0:
                genes[n] = indices[at]
                values[n] = value
                lengths[place] += 1
                n += 1
    return n


@compiled
def _fold(groups: Any, ends: Any, genes: Any, sums: Any, into: Any) -> None:  # pragma: no cover  compiled
    for i in range(len(groups)):
        for at in range(ends[i], ends[i + 1]):
            for which in range(3):
                into[groups[i], genes[at], which] += sums[at, which]


@compiled
def _place(lengths: Any, genes: Any, values: Any, first: Any, out: Any) -> None:  # pragma: no cover  compiled
    free, cells, sorted_values = out
    at = 0
    for row in range(len(lengths)):
        for _ in range(lengths[row]):
            to = free[genes[at]]
            if to >= 0:
                free[genes[at]] = to + 1
                cells[to] = first + row
                sorted_values[to] = values[at]
            at += 1
