"""What a result tells: its cells, the groups that they are in, and how their values are normalised."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.errors import InputError, StoreError
from scamac_scale.infer.output.table import GENE_SPACE, detail_in
from scamac_scale.marker_genes.options import REST

if TYPE_CHECKING:
    import os

    import pandas as pd

    from scamac_scale.cells.arrays import IntArray

logger = logging.getLogger(__name__)

MOST_GROUPS = 5_000
"""Of a column; more are names of cells, or measurements."""
MIN_CELLS = 2
"""Of a group: a variance needs so many."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of cells.

    Attributes
    ----------
    column
        Of obs.
    names
        (K,) of the groups.
    codes
        (N,) group of each cell, 0 to K - 1; K for those of none.
    reference
        Group that others are compared with; None is the rest.
    left_out
        Groups that have too few cells.
    """

    column: str
    names: list[str]
    codes: IntArray
    reference: int | None
    left_out: list[str]


def find_groups(obs: pd.DataFrame, column: str, reference: str, where: str) -> Groups:
    """Read the groups of a column.

    Parameters
    ----------
    obs
        N rows.
    column
        Its values are the groups: text, whole numbers, or categories, in whose order they come. Cells without a value are of no
        group, and in the rest of all.
    reference
        Name of a group, or ``rest``.
    where
        For messages.

    Raises
    ------
    InputError
        If there is no such column or reference, its values are measurements, or fewer than two groups (or one and a rest) are left.

    Notes
    -----
    Groups of fewer than two cells have no variance: they are left out, and said; their cells are in the rest of others.
    """
    import pandas as pd

    if column not in obs:
        known = ", ".join(map(str, obs.columns)) or "none"
        raise InputError(f"{where} has no column {column!r} (groupby); it has {known}.")
    values = obs[column]
    if not isinstance(values.dtype, pd.CategoricalDtype):
        if values.dtype.kind in "fc":
            raise InputError(f"{where}: the column {column!r} holds measurements; name one of groups (groupby).")
        values = values.astype("category")
    names = [str(name) for name in values.cat.categories]
    codes = values.cat.codes.to_numpy().astype(np.int64)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    if len(names) > MOST_GROUPS:
        raise InputError(
            f"{where}: the column {column!r} has {len(names):,} values; at most {MOST_GROUPS:,} groups can be compared."
        )
    if "" in names:
        raise InputError(
            f"{where}: the column {column!r} has a value without a letter; name that group, or leave its cells without a value."
        )
    if len(set(names)) < len(names):
        raise InputError(f"{where}: two values of the column {column!r} are written alike; rename one.")
    if reference != REST and reference not in names:
        raise InputError(
            f"{where}: {reference!r} (reference) is no value of {column!r}; known are rest, {', '.join(names[:50])}."
        )
    is_kept = counts >= MIN_CELLS
    left_out = [name for name, kept in zip(names, is_kept, strict=True) if not kept]
    if reference in left_out and reference != REST:
        raise InputError(f"{where}: the reference {reference!r} has fewer than {MIN_CELLS} cells; name another.")
    kept = [name for name, is_one in zip(names, is_kept, strict=True) if is_one]
    number = np.append(np.where(is_kept, np.cumsum(is_kept) - 1, len(kept)), len(kept))
    found = number[codes]  # a cell of none has -1, the last
    if not kept or len(obs) - counts[is_kept].max() < MIN_CELLS:
        raise InputError(
            f"{where}: the column {column!r} has {len(kept)} groups of at least {MIN_CELLS} cells, and no rest to compare with; at "
            "least two groups are needed."
        )
    small = [f"{name} ({counts[at]} cells)" for at, name in enumerate(names) if not is_kept[at]]
    if small:
        more = f" and {len(small) - 10} more" if len(small) > 10 else ""
        logger.warning(
            "%s: groups of fewer than %d cells have no variance and are left out: %s%s",
            where,
            MIN_CELLS,
            ", ".join(small[:10]),
            more,
        )
    return Groups(column, kept, found, None if reference == REST else kept.index(reference), left_out)


def gene_space_of(uns: Any, where: str) -> GeneSpace | None:  # Any: a group of a file, or what AnnData has
    """Read how values were normalised; None where a result of an earlier version does not tell."""
    try:
        text = detail_in(uns, GENE_SPACE)
        text = text[()] if hasattr(text, "shape") else text
        text = text.decode() if isinstance(text, bytes) else str(text)
    except (LookupError, TypeError, AttributeError):
        return None
    try:
        return GeneSpace.from_dict(json.loads(text))
    except (ValueError, StoreError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {GENE_SPACE!r} of uns is damaged; predict again, or name the run.") from error


def gene_space_of_run(run: str | os.PathLike[str], told: Any, where: str) -> GeneSpace:  # Any: as of `gene_space_of`
    """Read how values were normalised from the model of a run.

    Raises
    ------
    InputError
        If it is no run, or its model has other genes than the result.
    """
    from scamac_scale.fitted import load_model
    from scamac_scale.remote.names import below

    space = load_model(below(str(run), "model")).genes
    try:
        genes = [
            gene.decode() if isinstance(gene, bytes) else str(gene) for gene in np.asarray(detail_in(told, "genes")[()])
        ]
    except (LookupError, TypeError, AttributeError):
        return space
    if tuple(genes) != space.chosen:
        raise InputError(
            f"{where} is not a result of {run}: its model has other genes; name the run that predicted it."
        )
    return space


def check_cells(ours: pd.Index[str], theirs: pd.Index[str], where: str, name: str) -> None:
    """Refuse an input whose cells are not those of the result, in their order.

    Parameters
    ----------
    ours, theirs
        Names of the cells of the result, and of the input.
    where, name
        The two, for messages.

    Raises
    ------
    InputError
        Naming how many there are, or the first that differs.
    """
    advice = f"give what was predicted, in the same order and with the same choice of cells ({name} is read)"
    if len(ours) != len(theirs):
        raise InputError(f"{where} has {len(ours):,} cells, and the input {len(theirs):,}; {advice}.")
    one, other = np.asarray(ours, dtype=object), np.asarray(theirs, dtype=object)
    differs = np.flatnonzero(one != other)
    if differs.size:
        at = int(differs[0])
        what = (
            "are the same in another order"
            if set(one) == set(other)
            else f"are others ({differs.size:,} of {len(one):,})"
        )
        raise InputError(
            f"the cells of {where} and of the input {what}: number {at} (from 0) is {str(one[at])!r} there, and {str(other[at])!r} here; {advice}."
        )
