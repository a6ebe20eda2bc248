"""Whether cells are such as a model was fitted to: a bounded look at an input before anything is predicted.

What differs is refused, and by which name it is accepted is said (`config.Accept`): a result that is normalised otherwise than the fit
must be asked for.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.genes import ValueRecord
from scamac_scale.errors import InputError
from scamac_scale.ingestion.evidence import Evidence, count_block
from scamac_scale.ingestion.kinds import LOG_MAX_DETECTED, Verdict, judge, named_base, named_total, named_values
from scamac_scale.ingestion.names import name_doubts
from scamac_scale.ingestion.normalise import cell_totals

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.ingestion.normalise import GeneColumns
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

LOOK_PLACES, LOOK_CELLS = 16, 256
"""Where an input is looked at: places spread over it, and cells at each."""
MAX_LOST = 0.05
"""Share of the total that genes which are not there may have had in the fit."""
MAX_LOST_GENES = 0.2
"""Share of the genes that may be missing, where their share of the total is not known."""
PADDED = 0.5
"""Share of the total beyond chance that genes which are zero everywhere may have had in the fit: cells of one real type lacked up to 0.4."""
MAX_APART = 0.1
"""Totals of log values that differ by more, as a share, are others."""
FAR, VERY_FAR = 2.0, 50.0
"""How many fold sums of log values may differ, where nobody knows the total: said; refused. Cells of one type may differ 20 fold from all."""
FEW_CELLS = 5
"""Of fewer cells some are taken for another kind by chance."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a look at some cells told.

    Attributes
    ----------
    evidence
        Of the cells.
    n_expressing
        (G,) of these cells that express a gene.
    sums
        (cells,) of each over the genes of the fit: of what the values are the logarithm of, if they are logarithms.
    """

    evidence: Evidence
    n_expressing: NDArray[np.int64]
    sums: NDArray[np.float64]


def look_at(raw: RawMatrix, is_filtered: NDArray[np.bool_] | None = None, base: float | None = None) -> Look:
    """Read some cells, spread over an input, and see what they are.

    Parameters
    ----------
    raw
        Open; at most ``LOOK_PLACES * LOOK_CELLS`` of its cells are read.
    is_filtered
        (G,) genes that `sums` are over; None takes all.
    base
        Of the logarithm that the values of the fit are; None where they are none.

    Notes
    -----
    Cells with a value that is negative or not finite are left for those who read them to refuse.
    """
    evidence, sums = Evidence(), []
    n_expressing, largest = np.zeros(raw.n_genes, np.int64), np.zeros(raw.n_genes)
    counted = np.ones(raw.n_genes, bool) if is_filtered is None else is_filtered
    for start, stop in _places(raw.n_cells):
        block = raw.read_block(start, stop)
        wrong, seen = count_block(block, n_expressing, largest)
        if wrong >= 0:
            continue
        evidence.fold(Evidence.of_block(block, seen, start, LOOK_PLACES * LOOK_CELLS))
        if base is not None:
            block = block.copy()
            with np.errstate(over="ignore"):
                block.data = np.expm1(block.data.astype(np.float64) * math.log(base))
        sums.append(cell_totals(block, counted))
    return Look(evidence, n_expressing, np.concatenate([np.zeros(0), *sums]))


def _places(n_cells: int) -> list[tuple[int, int]]:
    if n_cells <= LOOK_PLACES * LOOK_CELLS:
        return [(start, min(start + LOOK_CELLS, n_cells)) for start in range(0, n_cells, LOOK_CELLS)]
    starts = np.linspace(0, n_cells - LOOK_CELLS, LOOK_PLACES).astype(int).tolist()
    return [(start, start + LOOK_CELLS) for start in starts]


def compare(raw: RawMatrix, columns: GeneColumns, names: Sequence[str], accepted: Collection[str] = ()) -> None:
    """Compare an input with what a model was fitted to.

    Parameters
    ----------
    raw
        Open input.
    columns
        Where the genes of the model lie in it.
    names
        (G,) genes of the input, as they were matched with those of the model.
    accepted
        Names of `config.Accept`: what is said as a warning and not refused.

    Raises
    ------
    InputError
        If the values are of another kind, or logarithms in another base or of another total; or genes that made up more than
        `MAX_LOST` of a total of the fit are missing.

    Notes
    -----
    Genes that are zero in every cell are a warning: a table may be padded, but cells of one type lack most genes of all others, too.
    """
    space = columns.space
    fit = space.values
    base = (math.e if fit is None or fit.base is None else fit.base) if space.kind == "log" else None
    look = look_at(raw, columns.is_filtered, base)
    verdict = judge(look.evidence, raw.cell_named, raw.noted_base)
    told = _other_values(space, verdict, look) or _other_sums(raw, columns, look, verdict)
    if told:
        _refuse(
            f"{raw.name}: {raw.matrix} {told}; the results would mean nothing. Name the matrix of such values as the model was fitted to "
            "with ingest.matrix (--matrix)",
            "values",
            accepted,
        )
    else:
        _warn_of_doubt(raw, space, verdict)
    _compare_genes(raw, columns, names, look, accepted)


def compare_records(name: str, have: GeneSpace, fit: GeneSpace, accepted: Collection[str] = ()) -> None:
    """Compare a store with what a model was fitted to, by what both noted of their values; raises as `compare`."""
    ours, theirs = have.values, fit.values
    if ours is None or theirs is None or have.kind != "log":
        return
    told = _other_record(ours, theirs)
    if told:
        _refuse(f"{name} holds {told}; ingest the values that the model was fitted to", "values", accepted)


def _refuse(told: str, name: str, accepted: Collection[str]) -> None:
    if name not in accepted:
        raise InputError(f"{told}, or accept it with --accept {name}.")
    logger.warning("%s: accepted, as was asked for", told)


def _other_values(space: GeneSpace, verdict: Verdict, look: Look) -> str:
    """Say how the values are sure to differ from those of the fit; empty where they are not."""
    fit = space.values
    expected = space.kind if fit is None else fit.seen
    if look.evidence.largest == 0:
        return ""
    if verdict.conflict:
        return (
            ""
            if expected == "mixed" or _may_be_chance(space, verdict, look)
            else f"holds values of two kinds: {verdict.conflict}"
        )
    if expected == "mixed":
        return ""
    is_sure = verdict.is_sure and (verdict.kind != "counts" or look.evidence.n_counts > 0)
    is_sure = is_sure and not _may_be_chance(space, verdict, look)
    if (verdict.kind == "log") != (expected == "log"):
        fitted = named_values(expected, *((None, None) if fit is None else (fit.base, fit.total)))
        return (
            f"holds {verdict.named} values ({verdict.why}), and the model was fitted to {fitted} values"
            if is_sure
            else ""
        )
    if verdict.kind != "log" or fit is None:
        return ""
    other = _other_record(_record_of(verdict), fit) if is_sure else ""
    return f"holds {other}" if other else ""


def _may_be_chance(space: GeneSpace, verdict: Verdict, look: Look) -> bool:
    """Whether cells are too few to tell; not where values are too large for logarithms, or both are logarithms of one total."""
    found, fit = look.evidence, space.values
    if found.n_fraction + found.n_counts >= FEW_CELLS or found.largest > LOG_MAX_DETECTED:
        return False
    if verdict.kind == "counts":  # whole logarithms are of counts that were not scaled
        return fit is not None and fit.seen == "log" and fit.total is None
    is_total = (
        verdict.total is not None and fit is not None and fit.total is not None
    )  # else two cells may agree by chance
    return bool(verdict.conflict) or verdict.kind != "log" or not is_total


def _record_of(verdict: Verdict) -> ValueRecord:
    return ValueRecord(verdict.kind, verdict.base, verdict.total, verdict.is_sure)


def _other_record(have: ValueRecord, fit: ValueRecord) -> str:
    if have.base is not None and fit.base is not None and fit.is_sure and not math.isclose(have.base, fit.base):
        return f"logarithms in base {named_base(have.base)}, and the model was fitted to base {named_base(fit.base)}"
    if have.total is not None and fit.total is not None and abs(math.log(have.total / fit.total)) > MAX_APART:
        return f"logarithms of {named_total(have.total)} a cell, and the model was fitted to logarithms of {named_total(fit.total)}: values on another scale"
    return ""


def _other_sums(raw: RawMatrix, columns: GeneColumns, look: Look, verdict: Verdict) -> str:
    """Compare what cells of log values sum to over the genes of the fit, where no total tells; cells of one type may differ, too."""
    fit = columns.space.values
    if columns.space.kind != "log" or fit is None or not fit.means or (fit.total and verdict.total):
        return ""
    expected = float(np.array(fit.means)[_is_there(columns)].sum())
    sums = look.sums[look.sums > 0]
    fold = float(np.median(sums)) / expected if sums.size and expected > 0 else 1.0
    told = f"holds logarithms of {fold:.3g} times as much a cell as the model was fitted to, over the same genes"
    if max(fold, 1 / fold) > VERY_FAR:
        return told
    if max(fold, 1 / fold) > FAR:
        logger.warning(
            "%s: %s %s; if they were scaled to another total, the results mean nothing", raw.name, raw.matrix, told
        )
    return ""


def _is_there(columns: GeneColumns) -> NDArray[np.bool_]:
    """Mark the filtered genes that the input has."""
    missing = set(columns.missing_filtered)
    return np.array([name not in missing for name in columns.space.filtered], bool)


def _warn_of_doubt(raw: RawMatrix, space: GeneSpace, verdict: Verdict) -> None:
    expected = space.kind if space.values is None else space.values.seen
    if verdict.kind != expected and "log" in (verdict.kind, expected) and expected != "mixed" and not verdict.conflict:
        logger.warning(
            "%s: %s looks like %s values (%s), but the model was fitted to %s values; if so, the results mean nothing. Name the matrix "
            "of such values as the model was fitted to with ingest.matrix",
            raw.name,
            raw.matrix,
            verdict.named,
            verdict.why,
            expected,
        )


def _compare_genes(
    raw: RawMatrix, columns: GeneColumns, names: Sequence[str], look: Look, accepted: Collection[str]
) -> None:
    """Tell of genes of the fit that the input lacks, or that are zero in every cell."""
    space = columns.space
    for doubt in name_doubts(raw):
        logger.warning("%s: %s", raw.name, doubt)
    is_missing = ~_is_there(columns)
    is_zero = _zero_genes(columns, names, look) & ~is_missing
    share_zero = _lost(space, is_zero) - _unseen(space, look)
    if share_zero <= MAX_LOST:
        is_zero[:] = False  # cells of few types, or of few counts, lack some
    told = _counted(is_missing, is_zero)
    if not told:
        return
    is_lost = is_missing | is_zero
    chosen = set(space.chosen)
    n_left = len(chosen) - sum(name in chosen for name in columns.missing_filtered)
    if n_left * 2 < len(chosen):
        raise InputError(
            f"{raw.name}: {n_left} of the {len(chosen)} genes of the model are left: {told}; at least half are needed."
        )
    if space.kind == "log":
        if is_zero.any():  # of missing ones the source tells
            logger.warning(
                "%s: of the %d genes of the fit, %s; they held %.1f %% of all there. Where they were not measured, clusters can shift",
                raw.name,
                len(space.filtered),
                told,
                100 * _lost(space, is_lost),
            )
        return
    is_known = space.values is not None and bool(space.values.means)
    share = (
        f"they made up {_lost(space, is_lost):.1%} of a cell's total in the fit"
        if is_known
        else f"they are {_lost(space, is_lost):.1%} of these genes"
    )
    text = f"{raw.name}: of the {len(space.filtered)} genes that a cell's total is the sum of, {told}; {share}"
    if _lost(space, is_missing) > (MAX_LOST if is_known else MAX_LOST_GENES) or share_zero > PADDED:
        _refuse(
            f"{text}, so that all values would be larger than in the fit. Give the cells with all their genes",
            "totals",
            accepted,
        )
    else:
        logger.warning("%s; where such genes were not measured, all values are larger by as much", text)


def _unseen(space: GeneSpace, look: Look) -> float:
    """Share of a total in genes that so few molecules would not show by chance."""
    means = (
        np.array(space.values.means)
        if space.values is not None and space.values.means
        else np.ones(len(space.filtered))
    )
    shares = means / max(means.sum(), np.finfo(float).tiny)
    return float((shares * np.exp(-shares * look.n_expressing.sum())).sum())


def _zero_genes(columns: GeneColumns, names: Sequence[str], look: Look) -> NDArray[np.bool_]:
    """Mark the filtered genes that no cell which was looked at expresses."""
    silent = {names[int(place)] for place in np.flatnonzero(columns.is_filtered & (look.n_expressing == 0))}
    return np.array([name in silent for name in columns.space.filtered], bool)


def _lost(space: GeneSpace, is_lost: NDArray[np.bool_]) -> float:
    """Share of a cell's total that some genes had in the fit; of the number of genes where it is not known."""
    means = np.array(space.values.means) if space.values is not None and space.values.means else np.ones(len(is_lost))
    return float(means[is_lost].sum() / max(means.sum(), np.finfo(float).tiny))


def _counted(is_missing: NDArray[np.bool_], is_zero: NDArray[np.bool_]) -> str:
    parts = [(int(is_missing.sum()), "missing"), (int(is_zero.sum()), "zero in every cell that was looked at")]
    return " and ".join(f"{count} are {what}" for count, what in parts if count)
