"""What the values of a matrix are, decided from what its cells tell: counts, linear values, or logarithms of them.

Cells are asked one by one, for a matrix may be joined from two. In the order of weight: sums that agree between cells (of the values:
proportions, CPM, TPM; of what they are the logarithm of: log-normalised); multiples of a smallest value, as scaled counts are; values near
whole numbers, or of few denominators. Where nothing of this holds, how far sums spread is left: weak, and said to be.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.agreement import APART, MIN_CELLS, Mode, agreeing_sums, is_sound, is_tight
from scamac_scale.ingestion.evidence import (
    BASES,
    CELL,
    FORMS,
    LARGEST,
    LOG_MAX,
    N_NEAR,
    N_NEARS,
    N_PARTS,
    N_SMALL,
    N_SQUARES,
    N_STEPS,
    N_VALUES,
    N_WHOLE,
    SUMS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scamac_scale.ingestion.evidence import Evidence
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

LOG_MAX_DETECTED = 25.0
"""Fractions above this are no logarithms: e**25 is more than any cell holds."""
SURE_STEPS = 3
"""Different multiples of the smallest value of a cell that are no chance, and whole numbers that its values are near to."""
MIN_SHARE = 0.005
"""Cells of another kind that are no chance: such a share of all, and `MIN_CELLS`."""
CHANCE = 0.05
"""Share of the cells that may seem to be of a kind, where most tell nothing."""
TINY = 0.1
"""Largest value up to which it makes no difference whether values are logarithms."""
OTHER_TOTAL = 1.3
"""How many fold totals of cells differ that were scaled to two of them; less may be genes that were left out, or noise."""


@dataclass(frozen=True)
class Verdict:
    """What values are taken for, and why.

    Attributes
    ----------
    kind
        Counts, linear or log.
    base
        Of the logarithm; None where it is not known, or there is none.
    total
        That all cells sum to, before the logarithm if there is one; None where they do not agree.
    why
        What was seen, in words.
    is_sure
        Whether there is evidence for it.
    conflict
        Cells of two kinds, in words; empty if there are none.
    remarks
        What else is to be said, one sentence each.
    seen
        Kind that the evidence tells, where another one was said; ``mixed`` for cells of two kinds.
    """

    kind: str
    base: float | None = None
    total: float | None = None
    why: str = ""
    is_sure: bool = True
    conflict: str = ""
    remarks: tuple[str, ...] = ()
    seen: str = ""

    @property
    def named(self) -> str:
        """The kind in words, with base and total."""
        return named_values(self.kind, self.base, self.total)


def named_values(kind: str, base: float | None, total: float | None) -> str:
    """Say a kind of values in words, with the base of the logarithm and the total of a cell where they are known."""
    parts = [] if kind != "log" or base is None else [f"base {named_base(base)}"]
    parts += [] if total is None else [f"{named_total(total)} a cell"]
    return kind + (f" ({', '.join(parts)})" if parts else "")


def named_total(total: float) -> str:
    """Write a total of a cell."""
    return f"{total:,.0f}" if total >= 1000 else f"{total:.4g}"


def named_base(base: float) -> str:
    """Write the base of a logarithm."""
    return "e" if math.isclose(base, math.e) else f"{base:g}"


def judge(found: Evidence, name_of: Callable[[int], str], noted_base: float | None = None) -> Verdict:
    """Decide what values are.

    Parameters
    ----------
    found
        Of all cells, or of some.
    name_of
        Names a cell by its number.
    noted_base
        Base of the logarithm that the input notes in ``uns["log1p"]``; None if it notes none.

    Returns
    -------
    Verdict
        With the base that is seen; the noted one where none can be.
    """
    if not found.n_fraction:
        what = "all are whole" if found.largest > 1 else "all are 0 or 1"
        return Verdict("counts", why=what)
    sample = found.sample
    labels = _labels(sample)
    modes = [mode for mode in agreeing_sums(sample) if is_sound(mode, labels, sample)]
    for mode in modes:
        labels[mode.cells] = mode.form
    conflict = _conflict(found, labels, modes, name_of)
    verdict = (
        _of_modes(modes)
        or _of_labels(labels, is_large=sample[:, LARGEST].max() > LOG_MAX_DETECTED)
        or _of_values(found)
        or _of_spread(found)
    )
    if not conflict and verdict.kind == "log" and found.n_counts >= MIN_CELLS and found.largest > LOG_MAX_DETECTED:
        conflict = (
            f"{found.n_counts:,} cells such as {name_of(found.count_cell)} hold whole counts, and {found.n_fraction:,} such as "
            f"{name_of(int(sample[0, CELL]))} fractions of at most {sample[:, LARGEST].max():g}, like logarithms"
        )
    conflict = conflict or _beside_counts(found, modes, name_of)
    base, remarks = _base(verdict, noted_base)
    sums = sample.sum(axis=0)
    if verdict.kind == "linear" and sums[N_SQUARES] >= 0.95 * sums[N_VALUES] and sums[N_NEAR] < 0.9 * sums[N_VALUES]:
        remarks += ("the squares of the values are whole: are they square roots of counts? Give the counts.",)
    if not conflict and found.n_fraction * 100 <= found.n_whole and found.n_counts and verdict.kind != "log":
        remarks += (
            f"{found.n_fraction} of {found.n_cells} cells hold fractions, such as cell {name_of(int(sample[0, CELL]))}, and all others "
            "whole numbers: are they damaged?",
        )
    largest = f"the largest is {found.largest:g}"
    return Verdict(
        verdict.kind,
        base,
        verdict.total,
        f"{verdict.why}; {largest}",
        verdict.is_sure,
        conflict,
        verdict.remarks + remarks,
    )


def _labels(sample: NDArray[np.float64]) -> NDArray[np.int64]:
    """(m,) form of the values of each cell that is sure by itself; -1 of the others."""
    has_steps = sample[:, N_STEPS : N_STEPS + FORMS] >= SURE_STEPS
    is_one = has_steps.sum(axis=1) == 1
    labels = np.where(is_one, has_steps.argmax(axis=1), -1)
    n_values = sample[:, N_VALUES]
    is_log_whole = (
        sample[:, N_WHOLE + 1 : N_WHOLE + FORMS] >= 0.99 * np.maximum(sample[:, N_SMALL + 1 : N_SMALL + FORMS], 1)
    ).any(axis=1)
    is_near = (sample[:, N_NEARS] >= SURE_STEPS) & (sample[:, N_NEAR] >= 0.6 * n_values) & (n_values >= 8)
    is_near &= (sample[:, N_NEAR] == n_values) | ~is_log_whole
    labels[(labels < 0) & is_near] = 0
    labels[sample[:, LARGEST] > LOG_MAX_DETECTED] = 0
    n_labelled = np.bincount(labels[labels >= 0], minlength=FORMS)
    if n_labelled.sum() * 2 < len(labels):  # of many cells that tell nothing, a few seem to by chance
        labels[np.isin(labels, np.flatnonzero(n_labelled < CHANCE * len(labels)))] = -1
    return labels


def _conflict(found: Evidence, labels: NDArray[np.int64], modes: list[Mode], name_of: Callable[[int], str]) -> str:
    """Say which cells are of two kinds, if any are."""
    share = found.n_fraction / len(labels)  # cells that one of the sample stands for
    groups = [
        (form, mode_total, cells)
        for form in range(FORMS)
        for mode_total, cells in _groups(form, labels, modes)
        if len(cells) >= max(MIN_CELLS, MIN_SHARE * len(labels))
    ]
    is_log = any(form > 0 for form, _, _ in groups)
    told = [
        f"{_about(len(cells) * share, share)} cells such as {name_of(int(found.sample[cells[0], CELL]))} hold {_form_named(form, total)}"
        for form, total, cells in groups
    ]
    if found.n_counts >= max(
        MIN_CELLS, MIN_SHARE * found.n_cells
    ):  # logarithms of counts in base 2 may be whole in some cells
        told.insert(0, f"{found.n_counts:,} cells such as {name_of(found.count_cell)} hold whole counts")
    return "; ".join(told[:4]) if is_log and len(told) > 1 else ""


def _beside_counts(found: Evidence, modes: list[Mode], name_of: Callable[[int], str]) -> str:
    """Say whether counts stand beside cells whose values were all scaled to one total: then the median total is one of neither."""
    mode = max(modes, key=lambda mode: len(mode.cells), default=None)
    if mode is None or mode.form or not is_tight(mode, found.sample):
        return ""
    n_apart = int((np.abs(found.count_totals - mode.total) > APART * mode.total).sum())
    if n_apart < max(MIN_CELLS, MIN_SHARE * found.n_cells):
        return ""
    example = name_of(int(found.sample[mode.cells[0], CELL]))
    return (
        f"{found.n_counts:,} cells such as {name_of(found.count_cell)} hold whole counts; others such as {example} "
        f"{_form_named(0, mode.total)}"
    )


def _groups(form: int, labels: NDArray[np.int64], modes: list[Mode]) -> list[tuple[float | None, NDArray[np.int64]]]:
    """Cells of a form, by the total that they agree on; those that agree on none count only where there is no total."""
    own = [mode for mode in modes if mode.form == form]
    if form == 0 or not own:
        return [(own[0].total if own else None, np.flatnonzero(labels == form))]
    most = max(own, key=lambda mode: len(mode.cells))
    return [
        (mode.total, mode.cells)
        for mode in own
        if mode is most or abs(math.log(mode.total / most.total)) > math.log(OTHER_TOTAL)
    ]


def _about(n_cells: float, share: float) -> str:
    return f"{n_cells:,.0f}" if share == 1 else f"about {n_cells:,.0f}"


def _form_named(form: int, total: float | None) -> str:
    of = "" if total is None else f" of {named_total(total)} a cell"
    return f"linear values{of}" if form == 0 else f"logarithms{of} in base {named_base(BASES[form - 1])}"


def _verdict(form: int, why: str, total: float | None = None) -> Verdict:
    return Verdict("log", BASES[form - 1], total, why) if form else Verdict("linear", None, total, why)


def _of_modes(modes: list[Mode]) -> Verdict | None:
    if not modes:
        return None
    mode = max(modes, key=lambda mode: len(mode.cells))
    what = "cells sum to" if mode.form == 0 else f"{_power(mode.form)} of cells sums to"
    others = [other for other in modes if other.form == mode.form and other is not mode]
    several = f" (and others to {', '.join(f'{named_total(other.total)}' for other in others[:3])})" if others else ""
    return _verdict(mode.form, f"{what} {named_total(mode.total)}{several}", mode.total)


def _power(form: int) -> str:
    return "exp(x) - 1" if form == 1 else f"{BASES[form - 1]:g}**x - 1"


def _of_labels(labels: NDArray[np.int64], *, is_large: bool) -> Verdict | None:
    counts = np.bincount(labels[labels >= 0], minlength=FORMS)
    form = int(counts.argmax())
    if counts[form] < max(MIN_CELLS, 0.05 * len(labels)):
        return None
    if form == 0 and is_large:
        return Verdict("linear", why="there are fractions, and values too large for logarithms")
    what = "values" if form == 0 else _power(form)
    return _verdict(form, f"{what} of a cell are multiples of its smallest, or whole up to rounding")


def _of_values(found: Evidence) -> Verdict | None:
    """Look at the values of all cells of the sample together, for each may have a few."""
    sums = found.sample.sum(axis=0)
    n_values = max(sums[N_VALUES], 1)
    whole, small = sums[N_WHOLE : N_WHOLE + FORMS], np.maximum(sums[N_SMALL : N_SMALL + FORMS], 1)
    if sums[N_NEAR] >= 0.95 * n_values:
        return Verdict("linear", why="values are whole up to rounding")
    if found.sample[:, LARGEST].max() > LOG_MAX_DETECTED:
        return Verdict("linear", why="there are fractions")
    for form in range(1, FORMS):
        if sums[N_VALUES] >= 10 and small[form] >= 0.5 * n_values and whole[form] >= 0.99 * small[form]:
            return _verdict(form, f"{_power(form)} is whole")
    if sums[N_NEAR] >= 0.25 * n_values or sums[N_PARTS] >= 0.9 * n_values:
        return Verdict("linear", why="values are whole, or of few denominators")
    if (
        found.n_whole > found.n_fraction
        and found.n_counts
        and (found.largest <= LOG_MAX_DETECTED or found.n_fraction < MIN_CELLS)
    ):
        return Verdict("linear", why="most cells hold whole counts")
    return None


def _of_spread(found: Evidence) -> Verdict:
    """Tell logarithms by the sums of what they are the logarithm of: these are within some factor, others are not.

    Of values up to `TINY`, logarithms are nearly what they are the logarithm of: these are taken as proportions.
    """
    linear, logs = (_spread(found.sample[:, SUMS + form]) for form in (0, 1))
    why = f"sums of cells spread {linear:.3g} fold, of exp(x) - 1 {logs:.3g} fold"
    is_log = found.sample[:, LARGEST].max() > TINY and logs < 100 and math.log(logs) < 3 * math.log(linear) + 0.7
    return Verdict("log" if is_log else "linear", why=why, is_sure=False)


def _spread(sums: NDArray[np.float64]) -> float:
    known = sums[sums > 0]
    if not len(known) or not np.isfinite(known).all():
        return math.inf
    low, high = np.quantile(known, [0.05, 0.95])
    return float(high / low)


def _base(verdict: Verdict, noted: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Choose the base of a logarithm: as seen, else as noted."""
    if verdict.kind != "log" or noted is None:
        return verdict.base, ()
    if verdict.base is None or math.isclose(noted, verdict.base):
        return noted, ()
    note = f'uns["log1p"] notes base {named_base(noted)}, but the values are logarithms in base {named_base(verdict.base)}, which is taken.'
    return verdict.base, (note,)


def settle(raw: RawMatrix, asked: str, found: Evidence) -> Verdict:
    """Decide what values are, or take what was said, and tell the log.

    Parameters
    ----------
    raw
        Where they lie, for messages.
    asked
        ``ingest.kind``.
    found
        Of all cells.

    Raises
    ------
    InputError
        If cells are of two kinds and no kind was asked for.
    """
    verdict = judge(found, raw.cell_named, raw.noted_base)
    for remark in verdict.remarks:
        logger.warning("%s: %s: %s", raw.name, raw.matrix, remark)
    if asked == "auto":
        if verdict.conflict:
            raise InputError(
                f"{raw.name}: {raw.matrix} holds values of two kinds: {verdict.conflict}. Give a matrix of one kind (ingest.matrix), or "
                "say with ingest.kind what all are taken for."
            )
        _tell(raw, verdict)
        return verdict
    seen = f"cells of two kinds: {verdict.conflict}" if verdict.conflict else f"{verdict.named} ({verdict.why})"
    if verdict.conflict or (verdict.is_sure and "log" in {asked, verdict.kind} and asked != verdict.kind):
        logger.warning("%s: %s is taken as %s as was said, but looks like %s", raw.name, raw.matrix, asked, seen)
    is_same = "log" not in {asked, verdict.kind} or asked == verdict.kind
    base = (verdict.base if is_same else raw.noted_base) if asked == "log" else None
    told = "mixed" if verdict.conflict else verdict.kind
    return Verdict(asked, base, verdict.total if is_same else None, seen, verdict.is_sure, seen=told)


def _tell(raw: RawMatrix, verdict: Verdict) -> None:
    if verdict.is_sure:
        logger.info("%s: values taken as %s (%s)", raw.name, verdict.named, verdict.why)
        return
    logger.warning(
        "%s: values taken as %s, but the evidence is weak (%s); if that is wrong, say ingest.kind (--ingest.kind): counts, linear or log",
        raw.name,
        verdict.named,
        verdict.why,
    )


def largest_log(base: float | None) -> float:
    """Largest value that may be a logarithm in a base; e where it is not known."""
    return LOG_MAX / math.log(base or math.e)
