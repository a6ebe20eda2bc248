"""Technical batches: which donor, chip or technology each cell comes from, by one or several columns of obs.

A column is a covariate, each of its values a level. Not to be mixed up with a batch, the cells of one gradient step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.genes import duplicates
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.cells.arrays import IntArray

MOST_JOINT = 5_000
"""Combinations of levels that are counted by themselves, in a table of these by clusters: several columns may have one for nearly every cell."""
UNKNOWN = -1
"""Code of a level that is not among the names."""


@dataclass(frozen=True, eq=False)
class TechBatches:
    """Where each cell comes from.

    Attributes
    ----------
    columns
        Of obs; C covariates.
    names
        The levels of each, L of all covariates together.
    codes
        (N, C) int32, the level of each cell in each covariate, numbered within it; `UNKNOWN` where it is not among the names.
    new
        (N,) int32, number of the technical batch of a cell that has an unknown level, and `UNKNOWN` of all other cells; None where no
        cell has one.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    codes: IntArray
    new: IntArray | None = None

    @cached_property
    def levels(self) -> IntArray:
        """(N, C) int32 levels, numbered through over the covariates; those of new technical batches follow."""
        found: IntArray = self.codes + np.cumsum([0, *self.counts[:-1]], dtype=np.int32)
        if self.new is not None:
            found = np.where(self.new[:, None] == UNKNOWN, found, self.new[:, None] + np.int32(sum(self.counts)))
        return found

    @property
    def counts(self) -> tuple[int, ...]:
        """Levels of each covariate."""
        return tuple(map(len, self.names))

    def joint(self) -> IntArray:
        """(N,) codes of the combinations of levels that occur, numbered by their order; for what knows one covariate only."""
        if len(self.columns) == 1:
            return self.codes[:, 0]
        found: IntArray = np.unique(self.codes, axis=0, return_inverse=True)[1].astype(np.int32).reshape(-1)
        return found


@dataclass(frozen=True, eq=False)
class JointBatches:
    """The combinations of levels that have the most cells.

    Attributes
    ----------
    names
        Of each, in the order of their codes.
    codes
        (N,) of each cell; -1 where its combination is not kept.
    n_more
        Combinations that are not kept.
    """

    names: list[str]
    codes: IntArray
    n_more: int


def largest_joint(found: TechBatches, most: int = MOST_JOINT) -> JointBatches:
    """Cross the columns, and keep the `most` combinations with the most cells."""
    codes = found.joint().astype(np.int64)
    first, counts = np.unique(codes, return_index=True, return_counts=True)[1:]
    n_more = max(len(first) - most, 0)
    if n_more:
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        number = np.full(len(first), -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        codes, first = number[codes], first[kept]
    names = [", ".join(found.names[at][code] for at, code in enumerate(found.codes[row])) for row in first]
    return JointBatches(names, codes, n_more)


class WithTechBatches:
    """What a source knows of the technical batches of its cells, once it has been told.

    Attributes
    ----------
    tech_batches
        Of its N cells, in its order; None where nobody asked.
    """

    tech_batches: TechBatches | None = None

    @property
    def levels(self) -> IntArray | None:
        """(N, C) levels of the cells, numbered through; None where `tech_batches` is."""
        return None if self.tech_batches is None else self.tech_batches.levels


def split_key(key: str | None) -> tuple[str, ...]:
    """Read the columns of ``--batch-key``: names with commas between them; none of None and of the empty name."""
    return tuple(part.strip() for part in (key or "").split(",") if part.strip())


def find_tech_batches(
    obs: pd.DataFrame, columns: tuple[str, ...], names: tuple[tuple[str, ...], ...] | None = None, *, where: str = "obs"
) -> TechBatches:
    """Read where each cell comes from.

    Parameters
    ----------
    obs
        N rows.
    columns
        Of `obs`; whole numbers, strings, categories or booleans.
    names
        The levels that are known; None takes all that occur, in the order of their names.
    where
        What has the columns, for messages.

    Returns
    -------
    TechBatches
        A level that no cell has is none.

    Raises
    ------
    InputError
        If a column is missing, lacks values, holds measurements, or has a level for every cell.
    """
    repeated = duplicates(columns)
    if repeated:
        raise InputError(f"the batch key names {', '.join(repeated)} more than once; name each column once.")
    found = [_levels_of(obs, column, where) for column in columns]
    if names is None:
        names = tuple(tuple(sorted(set(levels))) for levels, _ in found)
        for column, sorted_levels in zip(columns, names, strict=True):
            if len(sorted_levels) == len(obs) > 1:
                raise InputError(
                    f"{where}: every cell has a value of its own in the batch column {column!r} ({sorted_levels[0]!r}, "
                    f"{sorted_levels[1]!r}, ...); name a column such as the donor, which many cells share."
                )
    codes = np.empty((len(obs), len(columns)), dtype=np.int32)
    for index, ((levels, places), known) in enumerate(zip(found, names, strict=True)):
        code_of = {name: code for code, name in enumerate(known)}
        codes[:, index] = np.array([code_of.get(level, UNKNOWN) for level in levels], dtype=np.int32)[places]
    return TechBatches(columns, names, codes)


def as_categories(obs: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Turn columns into categories, which take a small code a cell and have the same levels by `find_tech_batches`.

    Parameters
    ----------
    obs
        N rows.
    columns
        That `find_tech_batches` has read; categories of text or numbers stay as they are, with their order.
    """
    import pandas as pd

    changed = {}
    for column in columns:
        values = obs[column]
        held = values.cat.categories.dtype if isinstance(values.dtype, pd.CategoricalDtype) else values.dtype
        is_plain = isinstance(held, np.dtype) and held.kind in "biuf"
        if isinstance(values.dtype, pd.CategoricalDtype) and (is_plain or held.kind == "O"):
            continue
        if is_plain:
            changed[column] = pd.Categorical(values)
        else:  # dates and objects, whose text a table does not always keep
            found = find_tech_batches(obs, (column,))
            changed[column] = pd.Categorical.from_codes(found.codes[:, 0], pd.Index(found.names[0], dtype=object))
    return obs.assign(**changed)


def _levels_of(obs: pd.DataFrame, column: str, where: str) -> tuple[list[str], IntArray]:
    """Levels of a column that cells have, as text, in no order and perhaps repeated; (N,) which of them each cell has."""
    import pandas as pd

    n_columns = list(obs.columns).count(column)
    if n_columns != 1:
        raise InputError(
            f"{where} has {n_columns or 'no'} column{'s' if n_columns else ''} {column!r} (batch key); it has "
            f"{', '.join(map(str, obs.columns)) or 'none'}."
        )
    values = obs[column]
    is_missing = values.isna().to_numpy()
    if is_missing.any():
        row = int(is_missing.argmax())
        raise InputError(
            f"{where}: {int(is_missing.sum()):,} of {len(obs):,} cells have no value in the batch column {column!r}, the first is "
            f"{str(obs.index[row])!r} (number {row}); fill them (a level of their own will do), or leave these cells out."
        )
    places, found = pd.factorize(values)
    kept = pd.Series(found.categories[found.codes] if isinstance(found, pd.CategoricalIndex) else found)
    if pd.api.types.is_float_dtype(kept.dtype):
        numbers = kept.to_numpy(dtype=np.float64)
        is_whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        if not is_whole.all():
            raise InputError(
                f"{where}: the batch column {column!r} holds measurements ({numbers[~is_whole][0]:g}, ...); "
                "a batch is a whole number or a name."
            )
        kept = pd.Series(numbers.astype(np.int64))
    return kept.astype(str).tolist(), places
