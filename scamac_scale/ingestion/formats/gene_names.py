"""Names of genes from the column that is asked for, and which column has the names that are wanted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pandas as pd

from scamac_scale.errors import InputError
from scamac_scale.ingestion.formats.features import unique_names

if TYPE_CHECKING:
    from collections.abc import Collection

    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

MIN_SHARE = 0.5
"""Of the names that are wanted, that an input must have."""


def names_of(var: pd.DataFrame, column: str, name: str) -> tuple[str, ...]:
    """Take names of genes from a column.

    Parameters
    ----------
    var
        (G,) table of the genes; its index is taken where a gene has no text in the column.
    column
        Of texts or categories.
    name
        Of the input, for messages.

    Returns
    -------
    tuple of str
        (G,) unique.

    Raises
    ------
    InputError
        If there is no such column, or it holds no texts.
    """
    if not len(var):  # then nothing tells what the column holds; `RawMatrix` refuses it
        return ()
    if column not in var.columns:
        known = ", ".join(text_columns(var))
        told = f"columns of text are {known}" if known else "it has no column of text"
        raise InputError(f"{name} has no column {column!r} of genes (ingest.gene_column); {told}.")
    if not _is_text(var[column]):
        raise InputError(
            f"{name}: the column {column!r} of genes holds {var[column].dtype}, expected texts (ingest.gene_column)."
        )
    texts = var[column].astype(object)
    is_missing = (texts.isna() | (texts.astype(str).str.strip() == "")).to_numpy()
    if is_missing.any():
        logger.warning(
            "%s: %d genes have nothing in the column %r; they keep their names", name, int(is_missing.sum()), column
        )
    kept = zip(texts.tolist(), var.index.astype(str).tolist(), is_missing.tolist(), strict=True)
    return unique_names([own if lacks else str(text) for text, own, lacks in kept], name)


def text_columns(var: pd.DataFrame) -> list[str]:
    """Name the columns of texts, or of categories of texts, in their order; no column whose name repeats."""
    return [str(key) for key in var.columns if isinstance(values := var[key], pd.Series) and _is_text(values)]


def _is_text(values: pd.Series) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.categories.to_series()
    kind = pd.api.types.infer_dtype(values, skipna=True)
    return kind in ("string", "mixed", "empty") or pd.api.types.is_string_dtype(values.dtype)


def column_with(wanted: Collection[str], raw: RawMatrix) -> str | None:
    """Find a column of text that has the names that are wanted, where the names of an input are others.

    Parameters
    ----------
    wanted
        Names of genes.
    raw
        The input.

    Returns
    -------
    str or None
        The column with most of them, which the log names; None where the input has half of them anyway, or no column has.
    """
    names = set(wanted)
    if raw.read_vars is None or len(names & set(raw.gene_names)) >= MIN_SHARE * len(names):
        return None
    _, var = raw.read_vars()[0]
    shares = {str(key): len(names & set(var[key].dropna().astype(str))) for key in var.columns if _is_text(var[key])}
    best = max(shares, key=lambda key: shares[key], default=None)
    if best is None or shares[best] < MIN_SHARE * len(names):
        return None
    logger.warning(
        "%s: %d of %d genes are among its names, %d in the column %r of var; they are matched by that column (gene_column)",
        raw.name,
        len(names & set(raw.gene_names)),
        len(names),
        shares[best],
        best,
    )
    return best
