"""Labels that are none: missing values, what they become as text, and names that say so."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

MISSING_TEXTS = frozenset({"", "nan", "na", "n/a", "<na>", "#n/a", "none", "null", "nat"})
"""What a missing value becomes where a column is turned into text; in any case of letters, blanks around it aside."""
NO_LABELS = frozenset(
    {
        *(
            "unknown",
            "unassigned",
            "unlabelled",
            "unlabeled",
            "undefined",
            "unclassified",
            "unannotated",
            "undetermined",
        ),
        *("unresolved", "unspecified", "uncertain", "ambiguous", "not available", "not applicable", "not assigned"),
        *("missing", "n.a.", "-", "--", "?", "low quality", "lowquality", "debris", "multiplet", "multiplets"),
        *("filtered", "excluded"),
    }
)
"""Labels that may say that a cell has none, or is no cell: named in a warning, left out only where the user says so."""
NO_LABEL_STARTS = ("unknown ", "unassigned ", "doublet")


def is_missing_text(text: str) -> bool:
    """Tell whether a text stands for a missing value."""
    return text.strip().casefold() in MISSING_TEXTS


def is_labelled(labels: ArrayLike) -> NDArray[np.bool_]:
    """Tell which cells have a label.

    Parameters
    ----------
    labels
        (N,), any values; NaN, None, blank strings and texts of `MISSING_TEXTS` are no labels.

    Returns
    -------
    numpy.ndarray
        (N,) bool.
    """
    import pandas as pd

    values = np.asarray(labels, dtype=object)
    has_no_text = np.array([isinstance(value, str) and is_missing_text(value) for value in values], dtype=bool)
    has_label: NDArray[np.bool_] = ~(np.asarray(pd.isna(values), dtype=bool) | has_no_text)
    return has_label


def without_labels(
    labels: NDArray[Any], column: str, unlabelled: Sequence[str]
) -> tuple[NDArray[Any], list[str]]:  # Any: labels may be text, numbers or missing
    """Take labels away that are none.

    Parameters
    ----------
    labels
        (N,) objects.
    column
        What they are called, for messages.
    unlabelled
        Labels that mean none.

    Returns
    -------
    labels : ndarray
        (N,) with None in place of those of `unlabelled`.
    warnings : list of str
        What the user should know: texts of missing values, and labels that read like none.

    Raises
    ------
    InputError
        If no cell has a label that is to mean none.
    """
    texts = np.array(["" if _is_missing(value) else str(value).strip() for value in labels], dtype=object).astype(str)
    names, counts = np.unique(texts, return_counts=True)
    number = dict(zip(names.tolist(), counts.tolist(), strict=True))
    wanted = [name.strip() for name in unlabelled]
    absent = [name for name in wanted if name not in number]
    if absent:
        known = ", ".join(name for name in number if name)[:500]
        raise InputError(f"no cell has the label {absent[0]!r} in {column!r} (unlabelled); labels are {known}.")
    warnings = [
        f"{n:,} cells have the text {name!r} in {column!r}; they count as unlabelled."
        for name, n in number.items()
        if name and is_missing_text(name) and name not in wanted
    ]
    warnings += [
        f"{n:,} cells have the label {name!r} in {column!r}, which is scored as a type; if it means none, leave them out: "
        f"--unlabelled {shlex.quote(name)} (in Python unlabelled={name!r})."
        for name, n in number.items()
        if name not in wanted and _reads_like_none(name)
    ]
    kept = labels.copy()
    kept[np.isin(texts, wanted)] = None
    return kept, warnings


def _is_missing(value: Any) -> bool:  # Any: a label
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def _reads_like_none(name: str) -> bool:
    text = name.casefold().replace("_", " ").strip()
    return text in NO_LABELS or text.startswith(NO_LABEL_STARTS)
