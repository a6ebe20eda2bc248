"""Genes that are named, in place of a choice: by a text file, or by a boolean column of the table of genes (var)."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.genes import duplicates, locate_genes
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError
from scamac_scale.ingestion.flavors.seurat import dispersion_table
from scamac_scale.ingestion.flavors.sums import Choice
from scamac_scale.ingestion.lists import read_text, unquoted
from scamac_scale.ingestion.names import described, without_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.flavors.sums import Candidates
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

VAR = "var:"
"""Begins what names a column."""
MAX_BYTES = 2**26
"""Of a list of genes: a thousand times as long as a genome's."""
ADVICE = "give a text file with one name on each line, or var:COLUMN for a boolean column of var"
SHOWN = 5
_COMMENT = re.compile(r"(^|\s)#.*$")
_TRUE, _FALSE = {"true", "t", "yes", "1", "1.0"}, {"false", "f", "no", "0", "0.0"}


def given_genes(raw: RawMatrix, genes: str) -> NDArray[np.bool_]:
    """Find the genes that are named.

    Parameters
    ----------
    raw
        (N, G) values.
    genes
        ``ingest.genes``: path of a text file, or ``var:COLUMN``.

    Returns
    -------
    ndarray
        (G,) marks.

    Raises
    ------
    InputError
        If the file cannot be read or names no gene, more than half of its names are unknown, there is no such column, it holds
        something else than true and false, or marks no gene.
    """
    return _marked(raw, genes[len(VAR) :].strip()) if genes.startswith(VAR) else _listed(raw, genes)


def note_of_genes(genes: str | None) -> dict[str, str]:
    """Describe a list of genes so that a changed one can be told; nothing of a column, which is a part of the input."""
    if genes is None or genes.startswith(VAR):
        return {}
    return {"given_genes_sha256": sha256_of("\n".join(read_list(genes)))}


def read_list(path: str) -> list[str]:
    """Read a list of genes.

    Parameters
    ----------
    path
        UTF-8 text: a name on each line; blank lines, what follows ``#`` at the start of a word, and quotation marks around a name are
        left out.

    Returns
    -------
    list of str
        Each name once, in the order of the file; the log says how many were there more than once.

    Raises
    ------
    InputError
        If there is no such file, it is no text, or names no gene.
    """
    text = read_text(at_home(path), "ingest.genes", MAX_BYTES, ADVICE)
    lines = [_COMMENT.sub("", line).strip() for line in text.splitlines()]
    names = [unquoted(line) for line in lines if line]
    if not names:
        raise InputError(f"ingest.genes={path} names no gene; give one name on each line.")
    unique = list(dict.fromkeys(names))
    if len(unique) < len(names):
        logger.warning(
            "%s: %d of %d names are there more than once (%s); each counts once",
            path,
            len(names) - len(unique),
            len(names),
            duplicates(names)[0],
        )
    return unique


def _listed(raw: RawMatrix, path: str) -> NDArray[np.bool_]:
    names = read_list(path)
    places = locate_genes(names, raw.gene_names)
    unknown = [name for name, place in zip(names, places, strict=True) if place < 0]
    if len(unknown) * 2 > len(names):
        raise InputError(
            f"{raw.name}: {len(unknown)} of the {len(names)} genes of {path} (ingest.genes) are not among its {raw.n_genes}, such as "
            f"{_some(unknown)}. {_hint(unknown, raw)}"
        )
    if unknown:
        logger.warning(
            "%s: %d of the %d genes of %s are not there and are left out: %s",
            raw.name,
            len(unknown),
            len(names),
            path,
            _some(unknown),
        )
    return _marks(raw, places[places >= 0])


def _marks(raw: RawMatrix, places: Any) -> NDArray[np.bool_]:  # Any: whatever indexes an array
    marks = np.zeros(raw.n_genes, dtype=bool)
    marks[places] = True
    return marks


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _hint(unknown: Sequence[str], raw: RawMatrix) -> str:
    """Say how the names of a list and of an input differ, and what to do."""
    if sum(bool(re.search(r"[\t,;]", name)) for name in unknown) * 2 > len(unknown):
        return "Its lines hold several columns: give the names alone, one on each line."
    stems, upper = {without_version(name) for name in raw.gene_names}, {name.upper() for name in raw.gene_names}
    if sum(without_version(name) in stems for name in unknown) * 2 >= len(unknown):
        return "They are the same but for the versions of Ensembl identifiers: write the names as the input has them."
    if sum(name.upper() in upper for name in unknown) * 2 >= len(unknown):
        return (
            "They are the same but for capital letters: another species? If not, write the names as the input has them."
        )
    for _, var in raw.read_vars():
        for column in var.columns:
            if var[column].astype(str).isin(unknown).sum() * 2 >= len(unknown):
                return f"They stand in the column {str(column)!r} of its var: write the names that its genes go by ({raw.gene_names[0]!r}, ...)."
    return f"The list names {described(unknown)}, the input {described(raw.gene_names)}; name genes alike, and check the species."


def _marked(raw: RawMatrix, column: str) -> NDArray[np.bool_]:
    """Find the genes that a column of var marks: of several files, in any of them."""
    tables = raw.read_vars()
    without = [name for name, var in tables if column not in var]
    if not tables or without:
        known = ", ".join(map(str, tables[0][1].columns)) if len(tables) == 1 else ""
        raise InputError(
            f"{without[0] if without else raw.name} has no column {column!r} in var (ingest.genes={VAR}{column}); it has {known or 'others'}."
            if tables
            else f"{raw.name} has no table of genes with columns (ingest.genes={VAR}{column}); give the genes as a text file."
        )
    marked = [
        {gene for gene, mark in zip(var.index, _bools(var[column], name), strict=True) if mark} for name, var in tables
    ]
    union = set().union(*marked)
    if not union:
        raise InputError(f"{raw.name}: the column {column!r} of var (ingest.genes) marks no gene.")
    if any(marks != union for marks in marked):
        logger.warning(
            "%s: the column %r marks other genes in some of the %d files: %d in all of them, %d in any, which are taken",
            raw.name,
            column,
            len(tables),
            len(set.intersection(*marked)),
            len(union),
        )
    return np.array([gene in union for gene in raw.gene_names], dtype=bool)


def _bools(values: pd.Series, where: str) -> NDArray[np.bool_]:
    """Read true and false, however they were written; what is missing is false, and said."""
    column, missing = str(values.name), values.isna().to_numpy()
    texts = np.array([str(value).strip().lower() for value in values], dtype=object)
    odd = [text for text in texts[~missing] if text not in _TRUE and text not in _FALSE]
    if odd:
        raise InputError(
            f"{where}: the column {column!r} of var (ingest.genes) holds {odd[0]!r}; expected true and false, as highly_variable does."
        )
    if missing.any():
        logger.warning(
            "%s: the column %r of var has no value for %d genes, which are not taken", where, column, missing.sum()
        )
    return np.array([text in _TRUE for text in texts], dtype=bool) & ~missing


def take_given(candidates: Candidates, marks: NDArray[np.bool_]) -> Choice:
    """Take the genes that are named, with the statistics of the default flavor over all cells, which need no pass of their own.

    Parameters
    ----------
    candidates
        The genes that count for a cell's total, named ones among them.
    marks
        (G,) of the named ones.

    Raises
    ------
    InputError
        If no cell expresses any of them.
    """
    of_all, factor = sum(candidates.moments[1:], candidates.moments[0]), candidates.target_sum
    is_taken = marks[candidates.is_filtered]
    n_silent = int(marks.sum() - is_taken.sum())
    if not is_taken.any():
        raise InputError(
            f"{candidates.raw.name}: no cell expresses any of the {marks.sum()} genes that ingest.genes names."
        )
    if n_silent:
        logger.warning(
            "%s: no cell expresses %d of the genes that are named; they are left out", candidates.raw.name, n_silent
        )
    logger.info("%s: %d genes taken as they are named", candidates.raw.name, is_taken.sum())
    return Choice(dispersion_table(of_all if factor is None else of_all.scaled(factor)), is_taken)
