"""Gene statistics in two passes over the cells: which genes pass, what the values are, which genes vary most.

Pass one checks every value and counts; pass two sums; a flavor may add others (``flavors``). All fold pure functions of one block, so memory does not depend on
the number of cells (but for 8 bytes a cell: its total). The whole matrix is never held.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.cells.genes import GeneSpace, ValueRecord
from scamac_scale.cells.tech_batches import TechBatches, find_tech_batches, split_key
from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.flavors.choose import check_flavor, choose_genes
from scamac_scale.ingestion.flavors.filter import filter_genes
from scamac_scale.ingestion.flavors.given import given_genes
from scamac_scale.ingestion.flavors.sums import Candidates, Moments
from scamac_scale.ingestion.kinds import Verdict, largest_log, settle
from scamac_scale.ingestion.names import name_doubts
from scamac_scale.ingestion.normalise import cell_totals, kernel_values
from scamac_scale.ingestion.raw import read_blocks

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
    """

    n_cells: int
    n_expressing: NDArray[np.int64]
    largest: NDArray[np.float64]
    fraction: Entry | None
    evidence: Evidence


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
        (chosen genes) ``n_cells`` that express it, and what the flavor measures, named as in scanpy: ``means``, ``dispersions``,
        ``dispersions_norm`` of the default; with technical batches ``highly_variable_nbatches``, too; gene names as its index.
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
        Kind, filter, number of genes and how they are chosen, target, and cells held at a time.
    census
        Of `take_census`, where that was done already.

    Returns
    -------
    RawStatistics
        The chosen genes are those of ``sc.pp.filter_genes``, ``normalize_total``, ``log1p`` and
        ``highly_variable_genes`` of the same flavor, with its ``batch_key`` where there are technical batches; where fewer
        pass than are asked for, all of them.

    Raises
    ------
    InputError
        If there are fewer than two cells, a value is negative or not finite (cell and gene are named), values are not of
        the kind that was said or that the flavor needs, no gene is left, or a column of the batch key is no such column (before
        any pass).
    MissingExtraError
        If the flavor needs scikit-misc, and it is not installed (before any pass).

    Notes
    -----
    A gene passes if it is above zero in at least ``min_cell_fraction`` of all cells, taken as the decimal number it is
    written as: of 140 cells, 0.05 asks for 7, where ``ceil(0.05 * 140)`` gives 8 in binary. The default target is the
    median total of the cells that have any, over the genes that pass. Filter and target do not look at technical batches;
    these take 16 bytes a gene and batch.
    """
    check_flavor(config.flavor, config.kind, f"{raw.name}: {raw.matrix}")
    given = None if config.genes is None else given_genes(raw, config.genes)
    tech = tech_batches_of(raw, config)
    for doubt in name_doubts(raw):
        logger.warning("%s: %s", raw.name, doubt)
    if census is None:
        census = take_census(raw, config.block_cells)
    _refuse_beyond_numbers(raw, census)
    found = KIND_RULES[config.kind](raw, census)
    kind = found.kind
    check_flavor(config.flavor, kind, f"{raw.name}: {raw.matrix}")
    is_filtered = filter_genes(raw, census.n_expressing, config, given)
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
    candidates = Candidates(
        raw, is_filtered, kind, target_sum, totals, moments, joint, config.n_genes, config.block_cells
    )
    choice = choose_genes(candidates, config.flavor, tech, given)
    chosen = filtered[choice.is_variable]
    var = choice.table[choice.is_variable].set_index(names[chosen])
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
    evidence = Evidence()
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
    return Census(raw.n_cells, n_expressing, largest, fraction, evidence)


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
