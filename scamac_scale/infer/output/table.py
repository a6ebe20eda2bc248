"""What a prediction consists of, and by which keys it is found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import check_output
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.cells.arrays import FloatArray, IntArray

LATENT_KEY = "X_scAMAC"
UNCORRECTED_KEY = "X_scAMAC_uncorrected"
MEMBERSHIP_KEY = "scamac_membership"
CLUSTER_KEY = "scamac_cluster"
UNSURE = 0.5
"""Membership below which the cluster of a cell is unsure."""
LABEL_KEY = "scamac_label"
LABEL_PROBABILITY_KEY = "scamac_label_probability"
DENOISED_KEY = "scamac_denoised"
UNKNOWN_LABEL = "unknown"
"""What a cell is called whose label is not sure enough; as a label of a reference it means none."""
UNS_KEY = "scamac"
DETAILS_KEY = "scamac_details"
"""Where uns holds what is for programs; `UNS_KEY` is short enough to print."""
GENE_SPACE = "gene_space"
"""Detail that says how values are normalised, and over which genes: `GeneSpace.to_dict`, as JSON."""
IDENTITY = "identity"
"""Detail that says what a prediction on disk belongs to: `journal.identity`, as JSON."""
DETAILS = ("config", "versions", "centers", "genes", GENE_SPACE, IDENTITY)
CHUNK_BYTES = 8 * 2**20
CHUNK_CELLS = 16 * 1024


def cluster_column(labels: IntArray, n_clusters: int) -> pd.Categorical[str]:
    """Labels as scanpy likes them: a categorical of the strings "0" to "K-1"."""
    import pandas as pd

    codes: Any = labels  # pandas-stubs knows fewer integer arrays than pandas
    return pd.Categorical.from_codes(codes, categories=pd.Index(map(str, range(n_clusters))))


@dataclass(frozen=True)
class Table:
    """What is predicted.

    Attributes
    ----------
    obs
        (N) rows of the input, carried over; on other ranks than the first only their number counts.
    genes
        (G) names of the genes of the model.
    widths
        Name of each block to its number of columns; layers and obsm alike.
    columns
        Name of each column of clusters to the (F,) cluster that each of the labels stands for which are written; empty where these are those of
        `CLUSTER_KEY`, and no others are wanted.
    uns
        What stands in uns beside `UNS_KEY`.
    labels
        The C labels that are carried over; empty where none are.
    """

    obs: pd.DataFrame
    genes: list[str]
    widths: dict[str, int]
    columns: dict[str, IntArray] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def cluster_names(self) -> list[str]:
        """Columns of clusters."""
        return list(self.columns) or [CLUSTER_KEY]

    def clusters(self, labels: IntArray, n_clusters: int) -> dict[str, pd.Categorical[str]]:
        """Columns of clusters from the (N,) labels that were written; `n_clusters` of them where there is one column.

        Raises
        ------
        ValueError
            If there are other labels.
        """
        n_labels = len(self.columns[CLUSTER_KEY]) if self.columns else n_clusters
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_labels:
            raise ValueError("there are labels of no cluster")
        if not self.columns:
            return {CLUSTER_KEY: cluster_column(labels, n_clusters)}
        return {name: cluster_column(of[labels], int(of.max()) + 1) for name, of in self.columns.items()}

    @property
    def row_widths(self) -> dict[str, int]:
        """Columns of what is written of a cell, with the number of its label and the probability of it."""
        return {**self.widths, LABEL_KEY: 2} if self.labels else self.widths

    def label_columns(self, found: FloatArray) -> dict[str, Any]:
        """Make columns of obs of the (N, 2) `LABEL_KEY` of all cells; none where there are no labels.

        Raises
        ------
        ValueError
            If a cell has the number of no label, or a probability that is none.
        """
        import pandas as pd

        if not self.labels:
            return {}
        codes: Any = found[:, 0].astype(np.int32)  # pandas-stubs knows fewer integer arrays than pandas
        is_sound = np.isfinite(found).all() and ((codes >= 0) & (codes <= len(self.labels))).all()
        if not is_sound or not ((found[:, 1] >= 0) & (found[:, 1] <= 1)).all():
            raise ValueError("cells have the number of no label")
        names = pd.Index([*self.labels, UNKNOWN_LABEL], dtype=object)
        return {LABEL_KEY: pd.Categorical.from_codes(codes, names), LABEL_PROBABILITY_KEY: found[:, 1].copy()}


def split_uns(told: dict[str, Any]) -> dict[str, Any]:
    """Part what is told of a result into what a person reads and what is for programs.

    Parameters
    ----------
    told
        All of it.

    Returns
    -------
    dict
        Both, by their keys in uns.
    """
    details = {name: value for name, value in told.items() if name in DETAILS}
    return {UNS_KEY: {name: value for name, value in told.items() if name not in DETAILS}, DETAILS_KEY: details}


def detail_in(uns: Any, name: str) -> Any:  # Any: a group of a file, or what AnnData has
    """Find a detail of a result; those of earlier versions have them in `UNS_KEY`.

    Raises
    ------
    LookupError
        If there is none, or whatever the library raises.
    """
    return uns[DETAILS_KEY][name] if DETAILS_KEY in uns else uns[UNS_KEY][name]


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work."""
    check_suffix(path)
    return check_output(path)


def check_suffix(path: str | Path) -> None:
    """Refuse a target of another kind."""
    if Path(path).suffix not in (".zarr", ".h5ad"):
        raise InputError(f"the output {path} must end in .zarr or .h5ad.")


def chunk_cells(width: int) -> int:
    """Cells in a chunk of at most `CHUNK_BYTES`: a power of two, so that the blocks of a sweep cut few chunks."""
    cells = max(1, min(CHUNK_CELLS, CHUNK_BYTES // (4 * width)))
    return 1 << (cells.bit_length() - 1)
