"""Gene statistics in two passes over the cells: which genes pass, what the values are, which genes vary most.

Pass one checks every value and counts; pass two sums. Both fold pure functions of one block, so memory does not depend on
the number of cells (but for 8 bytes a cell: its total). The whole matrix is never held.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.cells.genes import GeneSpace, ValueRecord
from scamac_scale.cells.tech_batches import TechBatches, find_tech_batches, split_key
from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.kinds import Verdict, largest_log, settle
from scamac_scale.ingestion.many.agreement import evidence_of, fold_each, refuse_disagreement
from scamac_scale.ingestion.names import name_doubts
from scamac_scale.ingestion.normalise import cell_totals, kernel_values
from scamac_scale.ingestion.raw import read_blocks
from scamac_scale.ingestion.variable import Moments, choose_over_batches, dispersion_table, variable_genes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)


LARGEST_VALUE = 2.0**53
"""Beyond this float64 does not hold all whole numbers."""
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
        The same of each input alone, where there are several.
    """

    n_cells: int
    n_expressing: NDArray[np.int64]
    largest: NDArray[np.float64]
    fraction: Entry | None
    evidence: Evidence
    of_inputs: tuple[Evidence, ...] = ()


@dataclass(frozen=True, eq=False)
class RawStatistics:
    """All that is known of an input before it is written.

    Attributes
    ----------
    gene_space
        Kind, target sum, filtered and chosen genes.
    totals
        (N,) sum of each cell over the filtered genes; float64.
    n_empty
        Cells whose total is 0; they stay.
    n_stored
        Values above zero of the chosen genes: what the store will hold.
    largest
        Largest value of a chosen gene.
    var
        (chosen genes) ``n_cells`` that express it, ``means``, ``dispersions``, ``dispersions_norm`` as in scanpy, with
        technical batches ``highly_variable_nbatches``, too; gene names as its index.
    """

    gene_space: GeneSpace
    totals: NDArray[np.float64]
    n_empty: int
    n_stored: int
    largest: float
    var: pd.DataFrame


def measure(raw: RawMatrix, config: IngestConfig, census: Census | None = None) -> RawStatistics:
    """Check every value and gather the statistics of all genes.

    Parameters
    ----------
    raw
        (N, G) raw values.
    config
        Kind, filter, number of genes, target, and cells held at a time.
    census
        Of `take_census`, where that was done already.

    Returns
    -------
    RawStatistics
        The chosen genes are those of ``sc.pp.filter_genes``, ``normalize_total``, ``log1p`` and
        ``highly_variable_genes(flavor="seurat")``, with its ``batch_key`` where there are technical batches; where fewer
        pass than are asked for, all of them.

    Raises
    ------
    InputError
        If there are fewer than two cells, a value is negative or not finite (cell and gene are named), values are not of
        the kind that was said, no gene is left, or a column of the batch key is no such column (before any pass).

    Notes
    -----
    A gene passes if it is above zero in at least ``min_cell_fraction`` of all cells, taken as the decimal number it is
    written as: of 140 cells, 0.05 asks for 7, where ``ceil(0.05 * 140)`` gives 8 in binary. The default target is the
    median total of the cells that have any, over the genes that pass. Filter and target do not look at technical batches;
    these take 16 bytes a gene and batch.
    """
    tech = tech_batches_of(raw, config)
    for doubt in name_doubts(raw):
        logger.warning("%s: %s", raw.name, doubt)
    if census is None:
        census = take_census(raw, config.block_cells)
    _refuse_beyond_numbers(raw, census)
    refuse_disagreement(raw, census.of_inputs, config.kind)
    found = KIND_RULES[config.kind](raw, census)
    kind = found.kind
    is_filtered = _filter_genes(raw, census, config.min_cell_fraction)
    joint = None if tech is None else tech.joint()
    totals, moments = sum_moments(raw, is_filtered, found, config.block_cells, joint)
    n_empty = int((totals == 0).sum())
    if n_empty:
        logger.warning(
            "%s: %d of %d cells have no counts in the genes that pass; they stay, as zeros",
            raw.name,
            n_empty,
            raw.n_cells,
        )
    target_sum = _target_sum(raw, kind, totals, config.target_sum)
    filtered = np.flatnonzero(is_filtered)
    names = np.array(raw.gene_names, dtype=object)
    scaled = (part if target_sum is None else part.scaled(target_sum) for part in moments)
    if tech is None:
        table = dispersion_table(next(scaled))
        is_variable = variable_genes(table["dispersions_norm"].to_numpy(), config.n_genes)
    else:
        table, is_variable, silent = choose_over_batches(scaled, names[filtered].tolist(), config.n_genes)
        _log_batches(raw, tech, len(moments), silent)
    _log_choice(raw, is_variable, config.n_genes)
    chosen = filtered[is_variable]
    var = table[is_variable].set_index(names[chosen])
    var.insert(0, "n_cells", census.n_expressing[chosen])
    return RawStatistics(
        GeneSpace(kind, target_sum, tuple(names[filtered]), tuple(names[chosen]), values=_record(found, moments)),
        totals,
        n_empty,
        int(census.n_expressing[chosen].sum()),
        float(census.largest[chosen].max()),
        var,
    )


def _record(found: Verdict, moments: Sequence[Moments]) -> ValueRecord:
    """Keep what cells to come are compared with; the means of genes to three digits."""
    means = np.sum([part.total for part in moments], axis=0) / sum(part.n_cells for part in moments)
    return ValueRecord(
        found.seen or found.kind, found.base, found.total, found.is_sure, tuple(float(f"{mean:.3g}") for mean in means)
    )


def tech_batches_of(raw: RawMatrix, config: IngestConfig) -> TechBatches | None:
    """Read where each cell comes from; None where no batch key is given.

    Raises
    ------
    InputError
        If a column of the batch key is missing, lacks values, holds measurements, or has a level for every cell.
    """
    columns = split_key(config.batch_key)
    return find_tech_batches(raw.obs, columns, where=f"{raw.name}: obs") if columns else None


def take_census(raw: RawMatrix, block_cells: int) -> Census:
    """Look at every value once: the first pass.

    Parameters
    ----------
    raw
        (N, G) raw values.
    block_cells
        Cells held at a time.

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
    evidence, of_inputs = Evidence(), evidence_of(raw)
    for start, block in read_blocks(raw, block_cells, "checking values"):
        per_cell = np.empty((block.shape[0], 3), np.int64)
        wrong = count_block((block.indptr, block.indices, kernel_values(block.data)), n_expressing, largest, per_cell)
        if wrong >= 0:
            entry = _entry(block, wrong, start)
            raise InputError(
                f"{raw.name}: {raw.matrix} holds {entry.value:g} for {_place(raw, entry)}; expected counts, linear or "
                "log values, which are finite and not negative. Give the matrix before scaling or correction, with "
                "ingest.matrix if it is in raw or a layer."
            )
        broken = per_cell[per_cell[:, 0] >= 0, 0]
        if fraction is None and broken.size:
            fraction = _entry(block, int(broken[0]), start)
        evidence.fold(block, per_cell, start)
        fold_each(of_inputs, raw, block, per_cell, start)
    return Census(raw.n_cells, n_expressing, largest, fraction, evidence, of_inputs)


def sum_moments(
    raw: RawMatrix, is_filtered: NDArray[np.bool_], values: Verdict, block_cells: int, tech: IntArray | None = None
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
    block_cells
        Cells held at a time.
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
    column = np.where(is_filtered, np.cumsum(is_filtered) - 1, -1)
    n_filtered = int(is_filtered.sum())
    totals = np.zeros(raw.n_cells, dtype=np.float64)
    n_cells = [0] if tech is None else np.bincount(tech).tolist()
    into = np.zeros((2, len(n_cells), n_filtered))
    is_natural = values.base is None or math.isclose(values.base, math.e)
    moments = [Moments(*parts) for parts in zip(n_cells, *into, strict=True)]
    for start, block in read_blocks(raw, block_cells, "measuring genes"):
        total = cell_totals(block, is_filtered)
        _refuse_tiny(raw, total, start, values.kind)
        totals[start : start + len(total)] = total
        data, scale = kernel_values(block.data), np.ones_like(total)
        if values.kind == "log":  # in the order and the precision of scanpy, which multiplies only by what is noted
            data = np.expm1(data if is_natural else data * data.dtype.type(math.log(values.base or math.e)))
        else:
            scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        if tech is None:
            added = np.zeros((2, 1, n_filtered))
            _add_moments(block, data, scale, column, np.zeros(len(total), np.int32), added)
            moments[0] += Moments(len(total), added[0, 0], added[1, 0])
        else:  # no sums of the block: those of many batches are far more numbers than its values
            _add_moments(block, data, scale, column, tech[start : start + len(total)], into)
    return totals, moments


KIND_RULES: dict[str, Callable[[RawMatrix, Census], Verdict]] = {
    "auto": lambda raw, census: settle(raw, "auto", census.evidence),
    "counts": lambda raw, census: _require_counts(raw, census),
    "linear": lambda raw, census: settle(raw, "linear", census.evidence),
    "log": lambda raw, census: _require_log(raw, census),
}
"""How ``ingest.kind`` becomes what the values are, and what is refused."""


def _refuse_beyond_numbers(raw: RawMatrix, census: Census) -> None:
    """Refuse what float64 holds with gaps, or hardly at all: no cell has so much RNA, or so little."""
    gene = int(census.largest.argmax())
    largest = float(census.largest[gene])
    if largest > LARGEST_VALUE or 0 < largest < SMALLEST_VALUE:
        raise InputError(
            f"{raw.name}: {raw.matrix} holds {largest:g} for gene {raw.gene_names[gene]!r}, and no value is larger; expected amounts of RNA, "
            "from 1e-30 to 2^53. The file is damaged, write it again."
        )


def _refuse_tiny(raw: RawMatrix, total: NDArray[np.float64], start: int, kind: str) -> None:
    """Refuse a cell whose total has no inverse, or one of few digits."""
    is_tiny = (total > 0) & (total < SMALLEST_VALUE)
    if kind != "log" and is_tiny.any():
        cell = int(np.argmax(is_tiny))
        raise InputError(
            f"{raw.name}: {raw.matrix} of cell {raw.cell_named(start + cell)} (number {start + cell}) sums to {total[cell]:g}; no cell has "
            "so little RNA. The file is damaged, write it again."
        )


def _require_counts(raw: RawMatrix, census: Census) -> Verdict:
    if census.fraction is not None:
        raise InputError(
            f"{raw.name}: ingest.kind=counts, but {raw.matrix} holds {census.fraction.value:g} for "
            f"{_place(raw, census.fraction)}; counts are whole. Say linear or log, or give the matrix of counts."
        )
    return settle(raw, "counts", census.evidence)


def _require_log(raw: RawMatrix, census: Census) -> Verdict:
    found = settle(raw, "log", census.evidence)
    if census.largest.max(initial=0.0) > largest_log(found.base):
        gene = int(census.largest.argmax())
        raise InputError(
            f"{raw.name}: ingest.kind=log, but {raw.matrix} holds {census.largest[gene]:g} for gene "
            f"{raw.gene_names[gene]!r}, which is no logarithm; say counts or linear."
        )
    return found


def min_cells(fraction: float, n_cells: int) -> int:
    """Count the cells that a share means: the smallest whole number at or above it, 0.05 being a twentieth exactly."""
    share = Fraction(repr(float(fraction))) * n_cells
    return -(-share.numerator // share.denominator)


def _filter_genes(raw: RawMatrix, census: Census, fraction: float) -> NDArray[np.bool_]:
    needed = min_cells(fraction, census.n_cells)
    is_filtered = census.n_expressing >= needed
    if not is_filtered.any():
        most = int(census.n_expressing.max(initial=0))
        raise InputError(
            f"{raw.name}: no gene is left: none of {raw.n_genes} is above zero in at least {needed} of {census.n_cells} "
            f"cells (ingest.min_cell_fraction={fraction}), the commonest is in {most}; lower it, take the filtered "
            f"matrix if most cells are empty droplets, or check {raw.matrix}."
        )
    logger.info("%s: %d of %d genes are in at least %d cells", raw.name, is_filtered.sum(), raw.n_genes, needed)
    return np.asarray(is_filtered)


def _target_sum(raw: RawMatrix, kind: str, totals: NDArray[np.float64], asked: float | None) -> float | None:
    if kind == "log":
        if asked is not None:
            logger.warning("%s: ingest.target_sum=%g is not used, for the values are logged already", raw.name, asked)
        return None
    if asked is not None:
        return asked
    filled = totals[totals > 0]
    if not filled.size:
        raise InputError(f"{raw.name}: no cell is left: all {len(totals)} are empty; check {raw.matrix}.")
    return float(np.median(filled))


def _log_batches(raw: RawMatrix, tech: TechBatches, n_batches: int, silent: Sequence[int]) -> None:
    joint, what = tech.joint(), " x ".join(tech.columns)
    logger.info("%s: genes are ranked in each of %d batches (%s)", raw.name, n_batches, what)
    if silent:
        cells = [int(np.argmax(joint == batch)) for batch in silent[:5]]
        levels = [
            " x ".join(names[code] for names, code in zip(tech.names, tech.codes[cell], strict=True)) for cell in cells
        ]
        logger.warning(
            "%s: in %d of %d batches no gene varies (one cell, say): %s%s; they have no say in the choice of genes",
            raw.name,
            len(silent),
            n_batches,
            ", ".join(levels),
            ", ..." if len(silent) > len(levels) else "",
        )


def _log_choice(raw: RawMatrix, is_variable: NDArray[np.bool_], asked: int) -> None:
    n_chosen, n_filtered = int(is_variable.sum()), len(is_variable)
    if n_chosen < asked:
        logger.warning(
            "%s: %d genes asked for, %d pass the filter and vary; all of them are taken", raw.name, asked, n_chosen
        )
    elif n_chosen > asked:
        logger.info("%s: %d genes for %d asked, for some vary equally", raw.name, n_chosen, asked)
    logger.info("%s: %d of %d genes chosen", raw.name, n_chosen, n_filtered)


def _entry(block: sparse.csr_matrix, at: int, start: int) -> Entry:
    cell = int(np.searchsorted(block.indptr, at, side="right")) - 1
    return Entry(start + cell, int(block.indices[at]), float(block.data[at]))


def _place(raw: RawMatrix, entry: Entry) -> str:
    return f"cell {raw.cell_named(entry.cell)} (number {entry.cell}), gene {raw.gene_names[entry.gene]!r}"


def _add_moments(
    block: sparse.csr_matrix,
    values: NDArray[Any],
    scale: NDArray[np.float64],
    column: NDArray[np.int64],
    tech: IntArray,
    into: NDArray[np.float64],
) -> None:
    """Add ``values * scale`` of a block, and their squares, to the (2, T, genes that pass) sums of each technical batch."""
    _add_values((block.indptr, block.indices, values), scale, column, tech, into)


@compiled
def _add_values(rows: Any, scale: Any, column: Any, tech: Any, into: Any) -> None:  # pragma: no cover  compiled
    indptr, indices, data = rows
    for row in range(len(indptr) - 1):
        batch = tech[row]
        for at in range(indptr[row], indptr[row + 1]):
            to = column[indices[at]]
            if to >= 0:
                value = np.float64(data[at]) * scale[row]
                into[0, batch, to] += value
                into[1, batch, to] += value * value
