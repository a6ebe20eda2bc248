"""Whether several inputs hold values of one kind: each is asked alone, and those that differ are named."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from scamac_scale.errors import InputError
from scamac_scale.ingestion.kinds import Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.ingestion.evidence import Evidence
    from scamac_scale.ingestion.raw import Part, RawMatrix

logger = logging.getLogger(__name__)

MAX_APART = 0.1
"""Totals of logarithms that differ by more, as a share, are others."""
SURE_CELLS = 5
"""Cells of an input from which on its values are no chance."""
TOLD = 3
"""Inputs of each kind that are named, at most."""


def refuse_disagreement(raw: RawMatrix, found: Sequence[Evidence], asked: str) -> None:
    """Refuse inputs whose values are of different kinds, bases or totals.

    Parameters
    ----------
    raw
        All inputs.
    found
        Evidence of each, of all of its cells; may be empty.
    asked
        ``ingest.kind``; what differs is a warning where a kind was said.

    Raises
    ------
    InputError
        Says what each kind is, with names and numbers of inputs.
    """
    verdicts: list[tuple[Part, Verdict]] = []
    for part, evidence in zip(raw.parts, found, strict=False):
        if evidence.largest == 0:
            continue
        verdict = judge(evidence, raw.cell_named, part.noted_base)
        if verdict.conflict:
            _say(f"{part.name} holds values of two kinds: {verdict.conflict}", asked)
        elif _is_sure(verdict, evidence):
            verdicts.append((part, verdict))
    groups: list[tuple[Verdict, list[str]]] = []
    for part, verdict in verdicts:
        for other, names in groups:
            if not _differ(verdict, other):
                names.append(part.name)
                break
        else:
            groups.append((verdict, [part.name]))
    if len(groups) > 1:
        told = "; ".join(
            f"{_named(names)} {'hold' if len(names) > 1 else 'holds'} {verdict.named}" for verdict, names in groups
        )
        _say(f"the inputs hold values of different kinds: {told}", asked)


def _say(told: str, asked: str) -> None:
    if asked == "auto":
        raise InputError(
            f"{told}. Give values of one kind from all (ingest.matrix, or a column matrix in a manifest), or say with ingest.kind what all "
            "are taken for."
        )
    logger.warning("%s; all are taken as %s, as was said", told, asked)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def _is_sure(verdict: Verdict, evidence: Evidence) -> bool:
    if verdict.kind == "counts":
        return evidence.n_counts >= SURE_CELLS
    return verdict.is_sure and evidence.n_fraction >= SURE_CELLS


def _differ(one: Verdict, other: Verdict) -> bool:
    if one.kind != other.kind:
        return True
    if one.kind != "log":
        return False
    if one.base is not None and other.base is not None and not math.isclose(one.base, other.base):
        return True
    return one.total is not None and other.total is not None and abs(math.log(one.total / other.total)) > MAX_APART
