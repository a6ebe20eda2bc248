"""Technical batches: which donor, chip or technology each cell comes from, by one or several columns of obs.

A column is a covariate, each of its values a level. Not to be mixed up with a batch, the cells of one gradient step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.cells.arrays import IntArray

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
    found = [_text_of(obs, column, where) for column in columns]
    if names is None:
        names = tuple(tuple(sorted(set(text.tolist()))) for text in found)
        for column, levels in zip(columns, names, strict=True):
            if len(levels) == len(obs) > 1:
                raise InputError(
                    f"{where}: every cell has a value of its own in the batch column {column!r} ({levels[0]!r}, {levels[1]!r}, ...); "
                    "name a column such as the donor, which many cells share."
                )
    codes = np.empty((len(obs), len(columns)), dtype=np.int32)
    for index, (text, levels) in enumerate(zip(found, names, strict=True)):
        place = {name: code for code, name in enumerate(levels)}
        values, inverse = np.unique(text, return_inverse=True)
        codes[:, index] = np.array([place.get(value, UNKNOWN) for value in values], dtype=np.int32)[inverse]
    return TechBatches(columns, names, codes)


def _text_of(obs: pd.DataFrame, column: str, where: str) -> Any:  # Any: an array of strings
    """(N,) levels of a column, as text."""
    import pandas as pd

    if column not in obs:
        raise InputError(
            f"{where} has no column {column!r} (batch key); it has {', '.join(map(str, obs.columns)) or 'none'}."
        )
    values = obs[column]
    n_missing = int(values.isna().sum())
    if n_missing:
        row = int(np.flatnonzero(values.isna().to_numpy())[0])
        raise InputError(
            f"{where}: {n_missing:,} of {len(obs):,} cells have no value in the batch column {column!r}, the first is "
            f"{str(obs.index[row])!r} (number {row}); fill them (a level of their own will do), or leave these cells out."
        )
    kept = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else values
    if pd.api.types.is_float_dtype(kept.dtype):
        numbers = values.to_numpy(dtype=np.float64)
        if not np.all(numbers == np.floor(numbers)):
            raise InputError(
                f"{where}: the batch column {column!r} holds measurements ({numbers[numbers != np.floor(numbers)][0]:g}, ...); "
                "a batch is a whole number or a name."
            )
        return numbers.astype(np.int64).astype(str)
    return values.astype(str).to_numpy(dtype=str)
