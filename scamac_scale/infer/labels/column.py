"""Which label each cell of a reference has, and which cells are held out together when probabilities are calibrated."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scamac_scale.cells.tech_batches import find_tech_batches, split_key
from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError
from scamac_scale.infer.output.table import UNKNOWN_LABEL
from scamac_scale.randomness import numpy_generator

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.infer.labels.options import LabelOptions

logger = logging.getLogger(__name__)

NONE = -1
"""Code of a cell without a label."""
MISSING_TEXTS = frozenset({"", "nan", "na", "n/a", "<na>", "#n/a", "none", "null", "nat"})
"""What a missing value becomes where a column is turned into text; in any case of letters, blanks around it aside."""
FOLDS = 5
"""Parts into which the cells of a reference are cut, at most; each is held out once."""
FEW_CELLS = 10
"""A label with fewer cells gets a warning: what is said of its probability rests on next to nothing."""
LEAST_JUDGED = 0.5
"""Cells are held out by columns only where at least this share of them has a label that other parts have, too."""
SHOWN = 10
"""Names in a message."""


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """Labels of the N cells of a reference.

    Attributes
    ----------
    name
        Of the column.
    names
        The C labels, sorted.
    codes
        (N,) label of each cell; `NONE` where it has none.
    folds
        (N,) part that a cell is held out with, from 0 on.
    held_out
        Columns by which cells are held out; empty where they are held out at random.
    """

    name: str
    names: tuple[str, ...]
    codes: IntArray
    folds: IntArray
    held_out: tuple[str, ...]

    @property
    def n_missing(self) -> int:
        """Cells without a label."""
        return int((self.codes == NONE).sum())

    @property
    def n_folds(self) -> int:
        """Parts."""
        return int(self.folds.max()) + 1

    def judged(self) -> float:
        """Share of the labelled cells whose label occurs in another part, too."""
        has_label = self.codes != NONE
        table = np.zeros((self.n_folds, len(self.names)), dtype=np.int64)
        np.add.at(table, (self.folds[has_label], self.codes[has_label]), 1)
        return float(table[:, (table > 0).sum(axis=0) > 1].sum() / table.sum())

    def digest(self) -> str:
        """SHA-256 of all of it."""
        return sha256_of([self.name, self.names, self.held_out], self.codes, self.folds)


def read_labels(obs: pd.DataFrame, options: LabelOptions, known: tuple[str, ...], seed: int, where: str) -> LabelColumn:
    """Read the labels of a reference.

    Parameters
    ----------
    obs
        N rows.
    options
        Name the column, labels that mean none, and the columns by which cells are held out.
    known
        Columns with the technical batches of the fit: where `obs` has all of them, and no others are named, cells are held out by these.
    seed
        Of the parts, where cells are held out at random.
    where
        What has the columns, for messages.

    Returns
    -------
    LabelColumn
        With two labels or more.

    Raises
    ------
    InputError
        If a column is missing, has a value for every cell or one only, holds measurements, or a label that is to mean none is no cell's.
    """
    column = options.label
    names, codes = _labels_of(obs, column, options.unlabelled, where)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    if len(names) < 2:
        raise InputError(
            f"{where}: the label column {column!r} has {len(names)} label{'' if len(names) == 1 else 's'}"
            f"{f' ({names[0]!r})' if names else ''}; at least two are needed to tell cells apart."
        )
    if counts.max() == 1:
        raise InputError(
            f"{where}: every cell has a value of its own in the label column {column!r} ({names[0]!r}, {names[1]!r}, ...); "
            "name a column such as the cell type, which many cells share."
        )
    _tell(names, codes, counts, column, where)
    held_out = split_key(options.held_out) or (known if all(name in obs for name in known) else ())
    by_chance = LabelColumn(column, names, codes, _random_folds(codes, seed), ())
    return _by_levels(by_chance, obs, held_out, where) if held_out else by_chance


def _labels_of(
    obs: pd.DataFrame, column: str, unlabelled: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], IntArray]:
    """Labels that cells have, sorted, and the (N,) codes of the cells."""
    n_columns = list(obs.columns).count(column)
    if n_columns != 1:
        raise InputError(
            f"{where} has {n_columns or 'no'} column{'s' if n_columns else ''} {column!r} (label); it has "
            f"{', '.join(map(str, obs.columns)) or 'none'}."
        )
    places, values = pd.factorize(obs[column])  # missing values have place -1
    kept = pd.Series(values.categories[values.codes] if isinstance(values, pd.CategoricalIndex) else values)
    if pd.api.types.is_float_dtype(kept.dtype):
        numbers = kept.to_numpy(dtype=np.float64)
        is_whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)
        if not is_whole.all():
            raise InputError(
                f"{where}: the label column {column!r} holds measurements ({numbers[~is_whole][0]:g}, ...); a label is a name or a whole "
                "number."
            )
        kept = pd.Series(numbers.astype(np.int64))
    texts = [text.strip() for text in kept.astype(str)]
    absent = [name for name in unlabelled if name not in texts]
    if absent:
        raise InputError(
            f"{where}: no cell has the label {absent[0]!r} in {column!r} (unlabelled); labels are {', '.join(sorted(set(texts)))[:500]}."
        )
    none = {*unlabelled, *(text for text in texts if text.casefold() == UNKNOWN_LABEL)}
    names = tuple(sorted({text for text in texts if text not in none and text.casefold() not in MISSING_TEXTS}))
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([*(code_of.get(text, NONE) for text in texts), NONE], dtype=np.int64)
    return names, codes[places]


def _tell(names: tuple[str, ...], codes: IntArray, counts: IntArray, column: str, where: str) -> None:
    n_missing = int((codes == NONE).sum())
    if n_missing:
        logger.warning(
            "%s: %s of %s cells have no label in %r; they are left out of the reference",
            where,
            f"{n_missing:,}",
            f"{len(codes):,}",
            column,
        )
    few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < FEW_CELLS]
    if few:
        logger.warning(
            "%s: labels of %r with fewer than %d cells: %s; probabilities of these rest on next to nothing",
            where,
            column,
            FEW_CELLS,
            ", ".join(few[:SHOWN]) + (", ..." if len(few) > SHOWN else ""),
        )


def _by_levels(column: LabelColumn, obs: pd.DataFrame, held_out: tuple[str, ...], where: str) -> LabelColumn:
    """Deal whole levels out among parts of about the same number of labelled cells; the column as it is where that says too little."""
    is_labelled = column.codes != NONE
    joint = np.full(len(obs), 0, dtype=np.int64)
    joint[is_labelled] = find_tech_batches(obs[is_labelled], held_out, where=where).joint()
    counts = np.bincount(joint[is_labelled])
    load = np.zeros(min(FOLDS, len(counts)), dtype=np.int64)
    fold_of = np.empty(len(counts), dtype=np.int64)
    for level in np.argsort(-counts, kind="stable"):
        fold_of[level] = load.argmin()
        load[fold_of[level]] += counts[level]
    found = replace(column, folds=fold_of[joint], held_out=held_out)
    if found.judged() < LEAST_JUDGED:
        logger.warning(
            "%s: only %.0f %% of the labelled cells have a label that occurs with another value in %s; cells are held out by chance instead",
            where,
            100 * found.judged(),
            ", ".join(held_out),
        )
        return column
    return found


def _random_folds(codes: IntArray, seed: int) -> IntArray:
    """Deal the cells of each label out among the parts."""
    folds = np.zeros(len(codes), dtype=np.int64)
    rng = numpy_generator(seed, "label folds")
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    folds[order] = np.arange(len(codes)) % FOLDS
    return folds
