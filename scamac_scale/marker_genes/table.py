"""The table as scanpy has it in ``uns["rank_genes_groups"]``, and as CSV."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from scamac_scale.marker_genes.ranking import Ranked

COLUMNS = (
    "group",
    "names",
    "scores",
    "logfoldchanges",
    "pvals",
    "pvals_adj",
    "pct_nz_group",
    "pct_nz_reference",
    "auc",
)
"""Of the CSV; all but the last are called as in ``scanpy.get.rank_genes_groups_df``."""
DTYPES = {"scores": np.float32, "logfoldchanges": np.float32, "pvals": np.float64, "pvals_adj": np.float64}
"""Types of the columns of numbers, as scanpy has them."""


@dataclass(frozen=True, eq=False)
class GroupTable:
    """The best genes of one group.

    Attributes
    ----------
    name
        Of the group.
    genes
        (R,) their numbers, best first.
    columns
        (R,) of each name in `DTYPES`.
    share, share_rest
        (G,) of cells above zero, of all genes.
    """

    name: str
    genes: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    share: NDArray[np.float64]
    share_rest: NDArray[np.float64]


def group_table(ranked: Ranked, name: str, genes: NDArray[np.int64]) -> GroupTable:
    """Keep some genes of a group."""
    columns = {column: getattr(ranked, column)[genes].astype(dtype) for column, dtype in DTYPES.items()}
    return GroupTable(name, genes, columns, ranked.share, ranked.share_rest)


@dataclass(frozen=True, eq=False)
class MarkerTable:
    """The best genes of all groups.

    Attributes
    ----------
    gene_names
        (G,) of the input.
    groups
        Those that were tested, in order.
    auc
        Of each group (A,) of its first genes.
    params
        What was asked for, and what came of it; plain values.
    n_sampled
        (K,) cells of each group in the sample that AUC is of.
    is_rest
        Whether each group was compared with all other cells.
    """

    gene_names: NDArray[np.object_]
    groups: Sequence[GroupTable]
    auc: Sequence[NDArray[np.float64]]
    params: dict[str, Any]
    n_sampled: NDArray[np.int64]
    is_rest: bool

    def elements(self) -> Iterable[tuple[str, Any]]:
        """Give what ``uns["rank_genes_groups"]`` has, one part at a time.

        Yields
        ------
        tuple of str, Any
            Name, and value: ``params``; ``names``, ``scores``, ``logfoldchanges``, ``pvals``, ``pvals_adj``, record arrays (R,) with a field
            for each group; ``auc`` alike, NaN beyond the genes that it was asked of; ``pts`` and, against the rest, ``pts_rest``,
            tables (G, K).
        """
        import pandas as pd

        yield "params", self.params
        yield "names", self._records("O", [self.gene_names[group.genes] for group in self.groups])
        for column, dtype in DTYPES.items():
            yield column, self._records(dtype, [group.columns[column] for group in self.groups])
        yield "auc", self._records(np.float32, [self.full_auc(at) for at in range(len(self.groups))])
        index = pd.Index(self.gene_names, dtype=object)
        yield "pts", pd.DataFrame({group.name: group.share for group in self.groups}, index=index)
        if self.is_rest:
            yield "pts_rest", pd.DataFrame({group.name: group.share_rest for group in self.groups}, index=index)

    def full_auc(self, at: int) -> NDArray[np.float32]:
        """(R,) of a group, NaN where it is not known."""
        found = np.full(len(self.groups[at].genes), np.nan, np.float32)
        found[: len(self.auc[at])] = self.auc[at][: len(found)]
        return found

    def _records(self, dtype: Any, columns: list[NDArray[Any]]) -> Any:  # Any: a record array
        found = np.empty(len(columns[0]), dtype=[(group.name, dtype) for group in self.groups])
        for group, column in zip(self.groups, columns, strict=True):
            found[group.name] = column
        return found.view(np.recarray)

    def write_csv(self, file: TextIO) -> None:
        """Write all rows, group after group; floats to nine digits, nothing where an AUC is not known."""
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for at, group in enumerate(self.groups):
            auc = self.full_auc(at)
            lists = [group.columns[name].tolist() for name in DTYPES]
            shares = (group.share[group.genes].tolist(), group.share_rest[group.genes].tolist(), auc.tolist())
            for name, *numbers in zip(self.gene_names[group.genes].tolist(), *lists, *shares, strict=True):
                rows.writerow([group.name, name, *("" if number != number else f"{number:.9g}" for number in numbers)])
