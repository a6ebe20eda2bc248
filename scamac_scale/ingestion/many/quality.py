"""Cells that are left out for what their values are: few genes, or much of mitochondria; one pass over the values."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.kinds import judge
from scamac_scale.ingestion.many.opening import take_cells, with_all_genes
from scamac_scale.ingestion.normalise import cell_totals

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.store.journal import Journal

logger = logging.getLogger(__name__)

TOLD = 10
"""Inputs that are named in a message, at most."""
_GOOD = "good"
"""Note: the rows of the cells that are kept, and how many each filter left out."""
_FILTERS = ("min_genes", "max_mito")


def asks_for_quality(config: IngestConfig) -> bool:
    """Whether cells are left out by their values."""
    return config.min_genes is not None or config.max_mito is not None


def without_poor(raw: RawMatrix, config: IngestConfig, engine: Engine, journal: Journal | None = None) -> RawMatrix:
    """Leave out cells of few genes, and of a large share of mitochondrial counts.

    Parameters
    ----------
    raw
        Open; closed with what is returned.
    config
        With `min_genes`, `max_mito` and `mito_prefix`.
    engine
        Maps over the blocks.
    journal
        Where the cells that are kept are noted, so that a later run need not look again; None notes nothing.

    Returns
    -------
    RawMatrix
        `raw` itself where nothing is asked for. Cells are left out as by ``sc.pp.filter_cells(min_genes=...)`` and
        ``pct_counts_mt <= max_mito`` of ``sc.pp.calculate_qc_metrics``; with a `max_mito`, also those without counts. Of several inputs both
        are over all genes of the input that a cell is from, also those that the join leaves out.

    Raises
    ------
    InputError
        If an input has no gene with the prefix, a share of counts is asked of logarithms, or no cell is left.
    """
    if not asks_for_quality(config):
        return raw
    noted = None if journal is None else journal.read(_GOOD)
    if noted is None:
        picks, left_out = _good_cells(raw, config, engine)
        if journal is not None:
            journal.note(_GOOD, rows=picks, **left_out)
    else:
        picks, left_out = noted["rows"], {name: int(noted[name]) for name in _FILTERS if name in noted}
    return take_cells(raw, picks, left_out)


class Quality(NamedTuple):
    """What `look_block` finds.

    Attributes
    ----------
    n_genes
        (B,) genes above zero of each cell.
    total, mito
        (B,) sum of each cell over all genes, and over mitochondrial ones.
    evidence
        Of what the values are.
    wrong
        Row, gene and value of the first one that is negative or not finite; then the rest means nothing.
    """

    n_genes: NDArray[np.int64]
    total: NDArray[np.float64]
    mito: NDArray[np.float64]
    evidence: Evidence
    wrong: tuple[int, int, float] | None = None


def look_block(index: int, block: sparse.csr_matrix, start: int, wanted: tuple[NDArray[np.bool_], int]) -> Quality:
    """Look at the cells of a block (B, G): marks of mitochondrial genes and the number of all cells are given."""
    is_mito, n_cells = wanted
    wrong, seen = count_block(block, np.zeros(block.shape[1], np.int64), np.zeros(block.shape[1]))
    if wrong >= 0:
        row = int(np.searchsorted(block.indptr, wrong, side="right")) - 1
        entry = (start + row, int(block.indices[wrong]), float(block.data[wrong]))
        return Quality(seen.n_filled, seen.total, seen.total, Evidence(), entry)
    evidence = Evidence.of_block(block, seen, start, n_cells)
    return Quality(seen.n_filled, seen.total, cell_totals(block, is_mito), evidence)


def mito_genes(raw: RawMatrix, prefix: str) -> NDArray[np.bool_]:
    """Mark the genes whose names begin with a prefix, in capital or small letters.

    Parameters
    ----------
    raw
        With all genes of its inputs.
    prefix
        ``ingest.mito_prefix``.

    Raises
    ------
    InputError
        If an input has no such gene.

    Notes
    -----
    Inputs that have other numbers of them are told in a warning.
    """
    of_inputs = {part.name: part.gene_names for part in raw.parts} or {raw.name: raw.gene_names}
    counted = {genes: sum(_is_mito(gene, prefix) for gene in genes) for genes in set(of_inputs.values())}
    counts = {name: counted[genes] for name, genes in of_inputs.items()}
    if without := [name for name, count in counts.items() if not count]:
        more = f" and {len(without) - 1} more inputs" if len(without) > 1 else ""
        raise InputError(
            f"{without[0]}{more}: no gene has a name that begins with {prefix!r} (ingest.mito_prefix), so that ingest.max_mito cannot be told; "
            f"genes are named like {of_inputs[without[0]][0]!r}. Name symbols in var, give another prefix, or leave max_mito out."
        )
    is_mito = np.array([_is_mito(gene, prefix) for gene in raw.gene_names], dtype=bool)
    logger.info(
        "%s: %d genes begin with %s, such as %s", raw.name, is_mito.sum(), prefix, raw.gene_names[int(is_mito.argmax())]
    )
    if len(set(counts.values())) > 1:
        told = [f"{name}: {count}" for name, count in sorted(counts.items(), key=lambda pair: pair[1])]
        logger.warning(
            "inputs have other numbers of genes that begin with %s (%s%s): percentages of ingest.max_mito mean less where some are missing",
            prefix,
            ", ".join(told[:TOLD]),
            ", ..." if len(told) > TOLD else "",
        )
    return is_mito


def _is_mito(gene: str, prefix: str) -> bool:
    return gene.upper().startswith(prefix.upper())


def _good_cells(taken: RawMatrix, config: IngestConfig, engine: Engine) -> tuple[NDArray[np.int64], dict[str, int]]:
    raw = with_all_genes(taken)  # as where each input is looked at before they are joined
    is_mito = np.zeros(raw.n_genes, bool) if config.max_mito is None else mito_genes(raw, config.mito_prefix)
    is_poor, is_dying = np.zeros(raw.n_cells, bool), np.zeros(raw.n_cells, bool)
    evidence = Evidence()
    with closing(engine.map(raw, look_block, (is_mito, raw.n_cells), "looking at cells")) as parts:
        for start, part in parts:
            if part.wrong is not None:
                cell, gene, value = part.wrong
                raise InputError(
                    f"{raw.name}: {raw.matrix} holds {value:g} for cell {raw.cell_named(cell)} and gene {raw.gene_names[gene]!r}; "
                    "expected values that are finite and not negative."
                )
            evidence.fold(part.evidence)
            stop = start + len(part.total)
            if config.min_genes is not None:
                is_poor[start:stop] = part.n_genes < config.min_genes
            if config.max_mito is not None:
                is_dying[start:stop] = (part.total <= 0) | (part.mito * 100 > config.max_mito * part.total)
    if config.max_mito is not None:
        evidence.complete(raw.read_block, engine.block_cells)
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
) -> tuple[NDArray[np.int64], dict[str, int]]:
    reasons, left_out = [], {}
    if config.min_genes is not None:
        left_out["min_genes"] = int(is_poor.sum())
        reasons.append(f"{int(is_poor.sum()):,} have fewer than {config.min_genes} genes (ingest.min_genes)")
    if config.max_mito is not None:
        left_out["max_mito"] = int((is_dying & ~is_poor).sum())
        reasons.append(
            f"{int(is_dying.sum()):,} more than {config.max_mito:g} % of their counts in mitochondrial genes, or no counts (ingest.max_mito)"
        )
    is_out = is_poor | is_dying
    told = f"{int(is_out.sum()):,} of {raw.n_cells:,} cells are left out: {'; '.join(reasons)}"
    if is_out.all():
        raise InputError(f"{raw.name}: no cell is left. {told}.")
    logger.info("%s: %s", raw.name, told)
    return np.flatnonzero(~is_out), left_out
