"""The best genes of each cluster, from the table that ``markers`` writes into a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PER_GROUP = 20
"""Genes of each group that are kept."""


@dataclass(frozen=True, eq=False)
class Markers:
    """Best genes of groups of cells.

    Attributes
    ----------
    groups
        Their names.
    genes
        Of each group, best first.
    folds
        Of each group, gene to log2 fold change.
    shares
        Gene to the share of cells above zero in each group; empty where the table does not say.
    groupby
        Column of obs that the groups are of.
    """

    groups: list[str]
    genes: list[list[str]]
    folds: list[dict[str, float]]
    shares: dict[str, NDArray[np.float64]]
    groupby: str = ""

    def top(self, most: int) -> list[str]:
        """At most so many genes: the best of each group in turn, each gene once, in the order of the groups."""
        taken: list[set[str]] = [set() for _ in self.groups]
        seen: set[str] = set()
        for rank in range(PER_GROUP):
            for at, genes in enumerate(self.genes):
                if rank < len(genes) and genes[rank] not in seen and len(seen) < most and len(taken[at]) < 4:
                    taken[at].add(genes[rank])
                    seen.add(genes[rank])
        return [gene for at, genes in enumerate(self.genes) for gene in genes if gene in taken[at]]


def read_markers(element: Any, where: str) -> Markers:  # Any: an h5py or zarr group
    """Read the table of markers of a result.

    Parameters
    ----------
    element
        Group ``uns["rank_genes_groups"]``.
    where
        For messages.

    Raises
    ------
    InputError
        If it is not what scanpy or ``markers`` writes.
    """
    from anndata.io import read_elem

    try:
        table = np.asarray(read_elem(element["names"]))
        folds = np.asarray(read_elem(element["logfoldchanges"])) if "logfoldchanges" in element else None
        groups = list(table.dtype.names or ())
        genes = [[str(name) for name in table[group][:PER_GROUP].tolist()] for group in groups]
        values = [
            {} if folds is None else dict(zip(own, map(float, folds[group][:PER_GROUP].tolist()), strict=True))
            for group, own in zip(groups, genes, strict=True)
        ]
        shares: dict[str, NDArray[np.float64]] = {}
        if "pts" in element:
            kept = {name for own in genes for name in own}
            pts = read_elem(element["pts"])
            pts = pts.loc[[str(name) in kept for name in pts.index], groups]
            shares = {str(name): row.astype(np.float64) for name, row in zip(pts.index, pts.to_numpy(), strict=True)}
        params = element.get("params")
        groupby = "" if params is None or "groupby" not in params else str(read_elem(params["groupby"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{where} is no table of markers ({error}); write it again with scamac-scale markers."
        ) from error
    return Markers(groups, genes, values, shares, groupby)
