"""Gene statistics in two passes over the cells: which genes pass, what the values are, which genes vary most.

Pass one checks every value and counts; pass two sums (``passes.py``); a flavor may add others (``flavors``). Memory does not depend
on the number of cells (but for 8 bytes a cell: its total). The whole matrix is never held.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.genes import GeneSpace, InputRecord, ValueRecord
from scamac_scale.cells.tech_batches import TechBatches, find_tech_batches, split_key
from scamac_scale.errors import InputError
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.flavors.choose import check_flavor, choose_genes
from scamac_scale.ingestion.flavors.filter import filter_genes, needed_cells
from scamac_scale.ingestion.flavors.given import given_genes
from scamac_scale.ingestion.flavors.sums import Candidates
from scamac_scale.ingestion.kinds import Verdict, largest_log, settle
from scamac_scale.ingestion.many.agreement import refuse_disagreement
from scamac_scale.ingestion.names import name_doubts
from scamac_scale.ingestion.passes import SMALLEST_VALUE, Census, place_of, sum_moments, take_census

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.flavors.sums import Moments
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

LARGEST_VALUE = 2.0**53
"""Beyond this float64 does not hold all whole numbers."""


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


def measure(
    raw: RawMatrix, config: IngestConfig, census: Census | None = None, engine: Engine | None = None
) -> RawStatistics:
    """Check every value and gather the statistics of all genes.

    Parameters
    ----------
    raw
        (N, G) raw values.
    config
        Kind, filter, number of genes and how they are chosen, target, and cells held at a time.
    census
        Of `take_census`, where that was done already.
    engine
        Maps over blocks of ``config.block_cells``; None takes threads of this process.

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
    with nullcontext(engine) if engine else LocalEngine(config.block_cells) as blocks:
        if census is None:
            census = take_census(raw, blocks)
        _refuse_beyond_numbers(raw, census)
        refuse_disagreement(raw, census.of_inputs, config.kind)
        found = KIND_RULES[config.kind](raw, census)
        kind = found.kind
        check_flavor(config.flavor, kind, f"{raw.name}: {raw.matrix}")
        is_filtered = filter_genes(raw, census.n_expressing, config, given)
        joint = None if tech is None else tech.joint()
        totals, moments = sum_moments(raw, is_filtered, found, blocks, joint)
        n_empty = _count_empty(raw, totals)
        target_sum = _target_sum(raw, kind, totals, config.target_sum)
        candidates = Candidates(raw, is_filtered, kind, target_sum, totals, moments, joint, config.n_genes, blocks)
        choice = choose_genes(candidates, config.flavor, tech, given)
    filtered = np.flatnonzero(is_filtered)
    names = np.array(raw.gene_names, dtype=object)
    chosen = filtered[choice.is_variable]
    var = choice.table[choice.is_variable].set_index(names[chosen])
    var.insert(0, "n_cells", census.n_expressing[chosen])
    return RawStatistics(
        GeneSpace(
            *(kind, target_sum, tuple(names[filtered]), tuple(names[chosen])),
            values=_record(found, moments),
            input=_input_record(raw, config, n_empty),
        ),
        totals,
        n_empty,
        int(census.n_expressing[chosen].sum()),
        float(census.largest[chosen].max()),
        var,
    )


def _count_empty(raw: RawMatrix, totals: NDArray[np.float64]) -> int:
    """Count the cells whose total is 0, and say how many there are."""
    n_empty = int((totals == 0).sum())
    if n_empty:
        logger.warning(
            "%s: %d of %d cells have no counts in the genes that pass; they stay, as zeros",
            raw.name,
            n_empty,
            raw.n_cells,
        )
    return n_empty


def _record(found: Verdict, moments: Sequence[Moments]) -> ValueRecord:
    """Keep what cells to come are compared with; the means of genes to three digits."""
    means = np.sum([part.total for part in moments], axis=0) / sum(part.n_cells for part in moments)
    return ValueRecord(
        found.seen or found.kind, found.base, found.total, found.is_sure, tuple(float(f"{mean:.3g}") for mean in means)
    )


def _input_record(raw: RawMatrix, config: IngestConfig, n_empty: int) -> InputRecord:
    """Keep what the input held, and what the filters took away, for whoever reads of the fit later."""
    return InputRecord(
        n_inputs=max(len(raw.parts), 1),
        n_genes=raw.n_genes,
        n_cells=raw.n_cells_given,
        n_taken=raw.n_cells,
        left_out=raw.left_out,
        n_empty=n_empty,
        min_cells=None if config.genes is not None else needed_cells(config, raw.n_cells),
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


def _require_counts(raw: RawMatrix, census: Census) -> Verdict:
    if census.fraction is not None:
        raise InputError(
            f"{raw.name}: ingest.kind=counts, but {raw.matrix} holds {census.fraction.value:g} for "
            f"{place_of(raw, census.fraction)}; counts are whole. Say linear or log, or give the matrix of counts."
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
