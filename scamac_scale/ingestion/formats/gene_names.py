"""Names of genes from the column that is asked for, and which column has the names that are wanted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pandas as pd

from scamac_scale.errors import InputError
from scamac_scale.ingestion.formats.features import unique_names

if TYPE_CHECKING:
    from collections.abc import Collection

logger = logging.getLogger(__name__)


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
    if column not in var.columns:
        known = ", ".join(str(key) for key in var.columns if _is_text(var[key]))
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


def _is_text(values: pd.Series) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.categories.to_series()
    kind = pd.api.types.infer_dtype(values, skipna=True)
    return kind in ("string", "mixed", "empty") or pd.api.types.is_string_dtype(values.dtype)


def column_with(wanted: Collection[str], var: pd.DataFrame, least: float) -> str | None:
    """Find the column of text that has most of the names that are wanted.

    Parameters
    ----------
    wanted
        Names of genes.
    var
        Table of the genes of an input.
    least
        Share of the names that it must have.

    Returns
    -------
    str or None
        None where no column has so many.
    """
    shares = {
        str(key): len(set(wanted) & set(var[key].dropna().astype(str))) / max(1, len(wanted))
        for key in var.columns
        if _is_text(var[key])
    }
    best = max(shares, key=lambda key: shares[key], default=None)
    return best if best is not None and shares[best] >= least else None
