"""The genes of several inputs: which ones are taken, in which order, and what keeps others from meeting."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.genes import locate_genes
from scamac_scale.errors import InputError
from scamac_scale.ingestion.names import described, without_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig

logger = logging.getLogger(__name__)

Names = tuple[str, ...]

TOLD = 10
"""Inputs that are named in a message, at most."""
FEW_SHARED = 0.5
"""Share of the genes of an input below which it is warned of that few are shared."""
MANY_MORE = 0.01
"""Share of the genes of an input that would meet if they were named otherwise, from which on it is pointed out."""


def _inner(first: pd.Index[str], second: pd.Index[str]) -> pd.Index[str]:
    return first.intersection(second)


def _outer(first: pd.Index[str], second: pd.Index[str]) -> pd.Index[str]:
    return first.union(second)


JOINS: dict[str, Callable[[pd.Index[str], pd.Index[str]], pd.Index[str]]] = {"inner": _inner, "outer": _outer}
"""How genes of two inputs become those of both, in the order of ``anndata.concat(join=...)``."""


@dataclass(frozen=True, eq=False)
class JointGenes:
    """The genes that several inputs become.

    Attributes
    ----------
    names
        (G,) of all together.
    targets
        Of each input (its genes,) column among `names`, -1 where a gene is left out; None where they are `names` as they are.
    """

    names: Names
    targets: tuple[NDArray[np.int64] | None, ...]


def join_genes(of_inputs: Sequence[tuple[str, Names]], config: IngestConfig) -> JointGenes:
    """Join the genes of several inputs.

    Parameters
    ----------
    of_inputs
        Name and genes of each input.
    config
        With its ``join``.

    Raises
    ------
    InputError
        If an input has no gene in common with those before it; the message counts the genes of each.

    Notes
    -----
    What inputs lack or lose is told to the log, with numbers. Inputs with equal genes are looked at once.
    """
    import pandas as pd

    distinct = list(dict.fromkeys(genes for _, genes in of_inputs))
    indexes = [pd.Index(genes, dtype=object) for genes in distinct]
    _refuse_disjoint(of_inputs, distinct)
    names: Names = tuple(reduce(JOINS[config.join], indexes).tolist())
    if not names:
        raise InputError(f"no gene is in all inputs: {_counted(of_inputs)}. {_advice(distinct)}")
    found = onto(names, distinct)
    if len(distinct) > 1:
        _tell(of_inputs, names, config.join)
        _point_out(of_inputs, distinct, names)
    return JointGenes(names, tuple(found[genes] for _, genes in of_inputs))


def onto(names: Names, lists: Sequence[Names]) -> dict[Names, NDArray[np.int64] | None]:
    """Find the column among `names` of each gene of some lists; -1 where it has none, None where a list is `names` itself."""
    return {genes: None if genes == names else locate_genes(genes, names) for genes in lists}


def _refuse_disjoint(of_inputs: Sequence[tuple[str, Names]], distinct: list[Names]) -> None:
    """Refuse an input whose genes are all unknown to those before it, also where all genes are taken."""
    seen = set(distinct[0])
    for genes in distinct[1:]:
        if seen.isdisjoint(genes):
            name = next(name for name, own in of_inputs if own == genes)
            raise InputError(
                f"{name} shares no gene with the inputs before it: {_counted(of_inputs)}. {_advice([distinct[0], genes])}"
            )
        seen.update(genes)


def _counted(of_inputs: Sequence[tuple[str, Names]]) -> str:
    told = [f"{name} has {len(genes):,} genes ({described(genes)})" for name, genes in of_inputs[:TOLD]]
    more = len(of_inputs) - len(told)
    return ", ".join(told) + (f", and {more} more" if more else "")


def _advice(lists: list[Names]) -> str:
    """Say by what names would meet that do not."""
    first = set(lists[0])
    for genes in lists[1:]:
        for told, change in _CHANGES:
            changed = set(map(change, first))
            if sum(change(gene) in changed for gene in genes) * 2 >= min(len(genes), len(first)):
                return f"They are the same but for {told}; name them alike in var."
    return "Name genes alike in the var of all (symbols or identifiers), and check the species."


_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("the versions of Ensembl identifiers", without_version),
    ("capital and small letters", str.upper),
)


def _tell(of_inputs: Sequence[tuple[str, Names]], names: Names, join: str) -> None:
    """Tell how many genes inputs lack, or lose."""
    joint = set(names)
    told: list[str] = []
    n_told, n_any = 0, len({gene for genes in {own for _, own in of_inputs} for gene in genes})
    counts: dict[Names, int] = {}
    for name, genes in of_inputs:
        if genes not in counts:
            shared = sum(gene in joint for gene in genes)
            counts[genes] = len(names) - shared if join == "outer" else len(genes) - shared
            if join == "inner" and shared < FEW_SHARED * len(genes):
                logger.warning(
                    "%s: only %d of its %d genes are in all inputs; ingest.join=outer takes those of any",
                    name,
                    shared,
                    len(genes),
                )
        if counts[genes]:
            n_told += 1
            told += [f"{name}: {counts[genes]:,}"] if len(told) < TOLD else []
    if not n_told:
        logger.info("%d inputs have the same genes in other orders; those of the first are taken", len(of_inputs))
        return
    listed = ", ".join(told) + (f", and {n_told - len(told)} more inputs" if n_told > len(told) else "")
    if join == "outer":
        logger.warning(
            "%d genes are in any of %d inputs; lacking, and read as zeros, are in %s", n_any, len(of_inputs), listed
        )
    else:
        logger.warning(
            "%d of %d genes are in all of %d inputs and are taken; left out are of %s",
            len(names),
            n_any,
            len(of_inputs),
            listed,
        )


def _point_out(of_inputs: Sequence[tuple[str, Names]], distinct: list[Names], names: Names) -> None:
    """Warn where genes of inputs would meet if their names were written alike."""
    everyone = set.intersection(*map(set, distinct))
    for told, change in _CHANGES:
        alike = set.intersection(*({change(gene) for gene in genes} for genes in distinct))
        n_more = len(alike) - len({change(gene) for gene in everyone})
        if n_more > max(1, MANY_MORE * min(map(len, distinct))):
            example = _example(distinct, everyone, change)
            logger.warning(
                "%d more genes would be in all inputs but for %s%s: name them alike in var", n_more, told, example
            )
    kinds = Counter(described(genes).partition(" (")[0].split(",")[0] for genes in distinct)
    if len(kinds) > 1 and len(everyone) < FEW_SHARED * min(map(len, distinct)):
        logger.warning("genes are named in different ways: %s", _counted(of_inputs))


def _example(distinct: list[Names], everyone: set[str], change: Callable[[str], str]) -> str:
    """Two names of one gene, in brackets."""
    first = {change(gene): gene for gene in distinct[0] if gene not in everyone}
    for genes in distinct[1:]:
        for gene in genes:
            if gene not in everyone and first.get(change(gene), gene) != gene:
                return f" ({first[change(gene)]} and {gene})"
    return ""


def matched(names: Names, of_input: Sequence[str]) -> NDArray[np.int64]:
    """(genes of an input,) column among `names` of each; -1 where it has none."""
    return np.asarray(locate_genes(of_input, names))
