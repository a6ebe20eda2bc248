"""The passes over an input that check and sum: pure functions of one block of cells, and how their results are folded.

Results are folded in the order of the blocks, so that every engine gives the same bits.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.csr import take_columns
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.flavors.sums import Moments
from scamac_scale.ingestion.many.evidence import bounds_of, evidence_of_each, no_evidence
from scamac_scale.ingestion.normalise import cell_totals, kernel_values
from scamac_scale.store.rows import tidied

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.kinds import Verdict
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.store.rows import RowForm, Rows

SMALLEST_VALUE = 1e-30
"""Where the largest value is below this, the inverse of a total is none, or of few digits."""


class Entry(NamedTuple):
    """One value of the matrix: where it lies, and what it is."""

    cell: int
    gene: int
    value: float


@dataclass(frozen=True, eq=False)
class Census:
    """What one look at every value tells.

    Attributes
    ----------
    n_cells
        Cells seen.
    n_expressing
        (G,) cells with a value above zero.
    largest
        (G,) largest value.
    fraction
        The first value that is not whole; None if there is none.
    evidence
        What the cells tell of what their values are.
    of_inputs
        The same of the cells of each input, where there are several.
    """

    n_cells: int
    n_expressing: NDArray[np.int64]
    largest: NDArray[np.float64]
    fraction: Entry | None
    evidence: Evidence
    of_inputs: tuple[Evidence, ...] = ()


class CensusPart(NamedTuple):
    """What `check_block` finds.

    Attributes
    ----------
    n_expressing, largest
        As of `Census`, of the block.
    wrong
        The first value that is negative or not finite; then the rest means nothing.
    fraction, evidence
        As of `Census`, of the block.
    of_inputs
        Number of an input, and evidence of its cells.
    """

    n_expressing: NDArray[np.int64]
    largest: NDArray[np.float64]
    wrong: Entry | None
    fraction: Entry | None
    evidence: Evidence
    of_inputs: tuple[tuple[int, Evidence], ...] = ()


def check_block(index: int, block: sparse.csr_matrix, start: int, bounds: tuple[int, ...]) -> CensusPart:
    """Look at every value of a block (B, G) of inputs that end where `bounds` says, the last of them with all cells."""
    n_expressing, largest = np.zeros(block.shape[1], np.int64), np.zeros(block.shape[1])
    wrong, seen = count_block(block, n_expressing, largest)
    if wrong >= 0:
        return CensusPart(n_expressing, largest, _entry(block, wrong, start), None, Evidence())
    broken = seen.broken[seen.broken >= 0]
    fraction = _entry(block, int(broken[0]), start) if broken.size else None
    evidence = Evidence.of_block(block, seen, start, bounds[-1])
    return CensusPart(n_expressing, largest, None, fraction, evidence, evidence_of_each(block, seen, start, bounds))


def take_census(raw: RawMatrix, engine: Engine) -> Census:
    """Look at every value once: the first pass.

    Parameters
    ----------
    raw
        (N, G) raw values.
    engine
        Maps over the blocks.

    Returns
    -------
    Census
        Counts of each gene.

    Raises
    ------
    InputError
        If there are fewer than two cells, or a value is negative, NaN or infinite; the first such cell and its gene are
        named.
    """
    if raw.n_cells < 2:
        raise InputError(f"{raw.name} has {raw.n_cells} cells; at least 2 are needed.")
    n_expressing = np.zeros(raw.n_genes, dtype=np.int64)
    largest = np.zeros(raw.n_genes, dtype=np.float64)
    fraction: Entry | None = None
    evidence, of_inputs = Evidence(), no_evidence(raw)
    with closing(engine.map(raw, check_block, bounds_of(raw), "checking values")) as parts:
        for _, part in parts:
            if part.wrong is not None:
                raise InputError(
                    f"{raw.name}: {raw.matrix} holds {part.wrong.value:g} for {place_of(raw, part.wrong)}; expected counts, linear "
                    "or log values, which are finite and not negative. Give the matrix before scaling or correction, with "
                    "ingest.matrix if it is in raw or a layer."
                )
            n_expressing += part.n_expressing
            np.maximum(largest, part.largest, out=largest)
            fraction = fraction or part.fraction
            evidence.fold(part.evidence)
            for number, own in part.of_inputs:
                of_inputs[number].fold(own)
    for found in (evidence, *of_inputs):
        found.complete(raw.read_block, engine.block_cells)
    return Census(raw.n_cells, n_expressing, largest, fraction, evidence, of_inputs)


class Measure(NamedTuple):
    """What `sum_block` is told.

    Attributes
    ----------
    is_filtered
        (G,) genes that pass.
    kind, base
        Of the values, as of `Verdict`.
    tech
        (N,) technical batch of each cell, 0 to T - 1; None has none.
    """

    is_filtered: NDArray[np.bool_]
    kind: str
    base: float | None
    tech: IntArray | None


class BatchSums(NamedTuple):
    """Sums of the genes that the cells of each technical batch express, without the zeros of all others.

    Attributes
    ----------
    batches
        (T',) technical batches that the block has.
    ends
        (T' + 1,) where each begins in what follows, and the end of the last.
    genes
        (n,) of the genes that pass.
    sums
        (4, n) of the values, of their squares, and what was rounded off either: so that the sums of all blocks do not depend on these.
    """

    batches: IntArray
    ends: IntArray
    genes: IntArray
    sums: NDArray[np.float64]


class MomentsPart(NamedTuple):
    """What `sum_block` gives: (B,) total of each cell, and sums: (2, genes that pass), or of each technical batch."""

    totals: NDArray[np.float64]
    sums: NDArray[np.float64] | BatchSums


def sum_block(index: int, block: sparse.csr_matrix, start: int, measure: Measure) -> MomentsPart:
    """Sum over the cells of a block (B, G) what the choice of genes needs."""
    totals = cell_totals(block, measure.is_filtered)
    data, scale = kernel_values(block.data), np.ones_like(totals)
    if measure.kind == "log":  # in the order and the precision of scanpy, which multiplies only by what is noted
        is_natural = measure.base is None or math.isclose(measure.base, math.e)
        data = np.expm1(data if is_natural else data * data.dtype.type(math.log(measure.base or math.e)))
    else:
        scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals >= SMALLEST_VALUE)
    n_filtered = int(measure.is_filtered.sum())
    column = np.where(measure.is_filtered, np.cumsum(measure.is_filtered) - 1, -1)
    rows = (block.indptr, block.indices, data)
    if measure.tech is None:
        sums = np.zeros((2, n_filtered))
        _add_values(rows, scale, column, sums)
        return MomentsPart(totals, sums)
    tech = measure.tech[start : start + len(totals)]
    order = np.argsort(tech, kind="stable")
    batches, first = np.unique(tech[order], return_index=True)
    edges = np.append(first, len(order))
    most = min(block.nnz, len(batches) * n_filtered)
    ends, genes, pairs = np.zeros(len(edges), np.int64), np.empty(most, np.int32), np.empty((4, most))
    n = _add_by_batch(rows, scale, column, (order, edges), (ends, genes, pairs, np.full((2, n_filtered), -1)))
    return MomentsPart(totals, BatchSums(batches, ends, genes[:n].copy(), pairs[:, :n].copy()))


def sum_moments(
    raw: RawMatrix, is_filtered: NDArray[np.bool_], values: Verdict, engine: Engine, tech: IntArray | None = None
) -> tuple[NDArray[np.float64], list[Moments]]:
    """Sum over cells what the choice of genes needs: the second pass.

    Parameters
    ----------
    raw
        (N, G) raw values.
    is_filtered
        (G,) genes that pass.
    values
        What the values are.
    engine
        Maps over the blocks.
    tech
        (N,) technical batch of each cell, 0 to T - 1; None has none.

    Returns
    -------
    totals : ndarray
        (N,) sum of each cell over the genes that pass.
    moments : list of Moments
        Of the genes that pass: ``x / total``, or ``base**x - 1`` for log values. Those of each technical batch, or of all cells.

    Raises
    ------
    InputError
        If the total of a cell is above 0 and below `SMALLEST_VALUE`, and values are not logarithms.
    """
    totals = np.zeros(raw.n_cells, dtype=np.float64)
    n_cells = [raw.n_cells] if tech is None else np.bincount(tech).tolist()
    into = np.zeros((2 if tech is None else 4, len(n_cells), int(is_filtered.sum())))
    measure = Measure(is_filtered, values.kind, values.base, tech)
    with closing(engine.map(raw, sum_block, measure, "measuring genes")) as parts:
        for start, part in parts:
            _refuse_tiny(raw, part.totals, start, values.kind)
            totals[start : start + len(part.totals)] = part.totals
            if isinstance(part.sums, BatchSums):
                _fold_batches(*part.sums, into)
            else:
                into[:, 0] += part.sums
    if tech is not None:
        into[:2] += into[2:]
    return totals, [Moments(*parts) for parts in zip(n_cells, *into[:2], strict=True)]


def select_block(index: int, block: sparse.csr_matrix, start: int, wanted: tuple[NDArray[np.int64], RowForm]) -> Rows:
    """Pick the chosen genes of a block (B, G), in the types of a store: the third pass.

    Parameters
    ----------
    index, block, start
        As of `BlockFunction`.
    wanted
        (G,) place of each gene among the chosen, or -1; and the form of the store.
    """
    target, form = wanted
    return tidied(take_columns(block, target, form.n_genes), form)


def _refuse_tiny(raw: RawMatrix, total: NDArray[np.float64], start: int, kind: str) -> None:
    """Refuse a cell whose total has no inverse, or one of few digits."""
    is_tiny = (total > 0) & (total < SMALLEST_VALUE)
    if kind != "log" and is_tiny.any():
        cell = int(np.argmax(is_tiny))
        raise InputError(
            f"{raw.name}: {raw.matrix} of cell {_cell_of(raw, start + cell)} sums to {total[cell]:g}; no cell has "
            "so little RNA. The file is damaged, write it again."
        )


def _entry(block: sparse.csr_matrix, at: int, start: int) -> Entry:
    cell = int(np.searchsorted(block.indptr, at, side="right")) - 1
    return Entry(start + cell, int(block.indices[at]), float(block.data[at]))


def place_of(raw: RawMatrix, entry: Entry) -> str:
    """Name the cell and the gene of an entry in a message."""
    return f"cell {_cell_of(raw, entry.cell)}, gene {raw.gene_names[entry.gene]!r}"


def _cell_of(raw: RawMatrix, cell: int) -> str:
    """Name a cell and its number, which the name says itself where not all cells of one input are taken."""
    return raw.cell_named(cell) + ("" if raw.parts else f" (number {cell})")


@compiled
def _add_values(rows: Any, scale: Any, column: Any, into: Any) -> None:  # pragma: no cover  compiled
    """Add ``values * scale`` of a block, and their squares, to the (2, genes that pass) sums."""
    indptr, indices, data = rows
    for row in range(len(indptr) - 1):
        for at in range(indptr[row], indptr[row + 1]):
            to = column[indices[at]]
            if to >= 0:
                value = np.float64(data[at]) * scale[row]
                into[0, to] += value
                into[1, to] += value * value


@compiled
def _add_exactly(sums: Any, at: Any, value: Any, square: Any) -> None:  # pragma: no cover  compiled
    """Add to the first two of four sums, and what is rounded off to the others (Knuth's TwoSum)."""
    for which, term in ((0, value), (1, square)):
        before = sums[which, at]
        after = before + term
        part = after - before
        sums[which, at] = after
        sums[which + 2, at] += (before - (after - part)) + (term - part)


@compiled
def _add_by_batch(rows: Any, scale: Any, column: Any, cells: Any, out: Any) -> Any:  # pragma: no cover  compiled
    """Do so for the cells of each technical batch, into sums of those genes alone that they express."""
    indptr, indices, data = rows
    order, edges = cells
    ends, genes, sums, met = out
    n = 0
    for batch in range(len(edges) - 1):
        for i in range(edges[batch], edges[batch + 1]):
            row = order[i]
            for at in range(indptr[row], indptr[row + 1]):
                to = column[indices[at]]
                if to >= 0:
                    if met[0, to] != batch:
                        met[0, to], met[1, to] = batch, n
                        genes[n] = to
                        sums[:, n] = 0.0
                        n += 1
                    value = np.float64(data[at]) * scale[row]
                    _add_exactly(sums, met[1, to], value, value * value)
        ends[batch + 1] = n
    return n


@compiled
def _fold_batches(batches: Any, ends: Any, genes: Any, sums: Any, into: Any) -> None:  # pragma: no cover  compiled
    for i in range(len(batches)):
        for at in range(ends[i], ends[i + 1]):
            _add_exactly(into[:, batches[i]], genes[at], sums[0, at], sums[1, at])
            into[2, batches[i], genes[at]] += sums[2, at]
            into[3, batches[i], genes[at]] += sums[3, at]
