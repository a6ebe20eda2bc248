"""Cells that are left out for what their values are: few genes, or much of mitochondria; one pass over the values."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.kinds import judge
from scamac_scale.ingestion.many.opening import take_cells
from scamac_scale.ingestion.normalise import cell_totals, kernel_values
from scamac_scale.ingestion.raw import read_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.store.journal import Journal

logger = logging.getLogger(__name__)

_GOOD = "good"
"""Note: the rows of the cells that are kept."""


def asks_for_quality(config: IngestConfig) -> bool:
    """Whether cells are left out by their values."""
    return config.min_genes is not None or config.max_mito is not None


def without_poor(raw: RawMatrix, config: IngestConfig, journal: Journal | None = None) -> RawMatrix:
    """Leave out cells of few genes, and of a large share of mitochondrial counts.

    Parameters
    ----------
    raw
        Open; closed with what is returned.
    config
        With `min_genes`, `max_mito` and `mito_prefix`.
    journal
        Where the cells that are kept are noted, so that a later run need not look again; None notes nothing.

    Returns
    -------
    RawMatrix
        `raw` itself where nothing is asked for. Cells are left out as by ``sc.pp.filter_cells(min_genes=...)`` and
        ``pct_counts_mt <= max_mito`` of ``sc.pp.calculate_qc_metrics``; with a `max_mito`, also those without counts.

    Raises
    ------
    InputError
        If no gene has the prefix, a share of counts is asked of logarithms, or no cell is left.
    """
    if not asks_for_quality(config):
        return raw
    noted = None if journal is None else journal.read(_GOOD)
    picks = _good_cells(raw, config) if noted is None else noted["rows"]
    if noted is None and journal is not None:
        journal.note(_GOOD, rows=picks)
    return take_cells(raw, picks)


def mito_genes(raw: RawMatrix, prefix: str) -> NDArray[np.bool_]:
    """Mark the genes whose names begin with a prefix, in capital or small letters; raises InputError where none does."""
    is_mito = np.array([name.upper().startswith(prefix.upper()) for name in raw.gene_names], dtype=bool)
    if not is_mito.any():
        raise InputError(
            f"{raw.name}: no gene has a name that begins with {prefix!r} (ingest.mito_prefix), so that ingest.max_mito cannot be told; genes "
            f"are named like {raw.gene_names[0]!r}. Name symbols in var, give another prefix, or leave max_mito out."
        )
    logger.info(
        "%s: %d genes begin with %s, such as %s", raw.name, is_mito.sum(), prefix, raw.gene_names[int(is_mito.argmax())]
    )
    return is_mito


def _good_cells(raw: RawMatrix, config: IngestConfig) -> NDArray[np.int64]:
    is_mito = None if config.max_mito is None else mito_genes(raw, config.mito_prefix)
    is_poor, is_dying = np.zeros(raw.n_cells, bool), np.zeros(raw.n_cells, bool)
    n_expressing, largest = np.zeros(raw.n_genes, np.int64), np.zeros(raw.n_genes)
    evidence = Evidence()
    all_genes = np.ones(raw.n_genes, bool)
    for start, block in read_blocks(raw, config.block_cells, "looking at cells"):
        per_cell = np.empty((block.shape[0], 3), np.int64)
        wrong = count_block((block.indptr, block.indices, kernel_values(block.data)), n_expressing, largest, per_cell)
        if wrong >= 0:
            cell = start + int(np.searchsorted(block.indptr, wrong, side="right")) - 1
            raise InputError(
                f"{raw.name}: {raw.matrix} holds {block.data[wrong]:g} for cell {raw.cell_named(cell)} and gene "
                f"{raw.gene_names[block.indices[wrong]]!r}; expected values that are finite and not negative."
            )
        stop = start + block.shape[0]
        if config.min_genes is not None:
            is_poor[start:stop] = per_cell[:, 2] < config.min_genes
        if is_mito is not None and config.max_mito is not None:
            evidence.fold(block, per_cell, start)
            total, of_mito = cell_totals(block, all_genes), cell_totals(block, is_mito)
            is_dying[start:stop] = (total <= 0) | (of_mito * 100 > config.max_mito * total)
    if is_mito is not None:
        _refuse_logs(raw, config, evidence)
    return _kept(raw, config, is_poor, is_dying)


def _refuse_logs(raw: RawMatrix, config: IngestConfig, evidence: Evidence) -> None:
    """Refuse a share of counts where values are logarithms, said or seen."""
    verdict = judge(evidence, raw.cell_named, raw.noted_base)
    if config.kind == "log" or (config.kind == "auto" and verdict.kind == "log"):
        raise InputError(
            f"{raw.name}: ingest.max_mito is a percentage of counts, and {raw.matrix} holds {verdict.named} values ({verdict.why}); give the "
            "matrix of counts with ingest.matrix, or choose by a column of obs with ingest.where."
        )


def _kept(
    raw: RawMatrix, config: IngestConfig, is_poor: NDArray[np.bool_], is_dying: NDArray[np.bool_]
) -> NDArray[np.int64]:
    reasons = []
    if config.min_genes is not None:
        reasons.append(f"{int(is_poor.sum()):,} have fewer than {config.min_genes} genes (ingest.min_genes)")
    if config.max_mito is not None:
        reasons.append(
            f"{int(is_dying.sum()):,} more than {config.max_mito:g} % of their counts in mitochondrial genes, or no counts (ingest.max_mito)"
        )
    is_out = is_poor | is_dying
    told = f"{int(is_out.sum()):,} of {raw.n_cells:,} cells are left out: {'; '.join(reasons)}"
    if is_out.all():
        raise InputError(f"{raw.name}: no cell is left. {told}.")
    logger.info("%s: %s", raw.name, told)
    return np.flatnonzero(~is_out)
