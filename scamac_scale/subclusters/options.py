"""What may be asked of a refinement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scamac_scale.config import IngestConfig
from scamac_scale.errors import ConfigError

ALL = "all"
"""In place of names of clusters."""


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """What is asked for.

    Attributes
    ----------
    key
        Column of obs of the result with the clusters.
    clusters
        Their names; None takes all.
    min_cells
        Clusters, and parts of them, with fewer cells are left whole.
    n_genes
        Variable genes of each cluster.
    ingest
        How the input is read.
    accept
        In what the input may differ from the fit, as of `PredictOptions`.

    Raises
    ------
    ConfigError
        If a number cannot be used.
    """

    key: str = "scamac_cluster"
    clusters: tuple[str, ...] | None = None
    min_cells: int = 500
    n_genes: int = 500
    ingest: IngestConfig = field(default_factory=IngestConfig)
    accept: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.min_cells < 2:
            raise ConfigError(
                f"min_cells={self.min_cells}; a cluster of fewer than 2 cells has no parts, give 2 or more."
            )
        if not 10 <= self.n_genes <= 10_000:
            raise ConfigError(f"n_genes={self.n_genes}; expected 10 to 10,000.")
        if self.clusters is not None and not self.clusters:
            raise ConfigError("clusters names none; name some, with commas between them, or say all.")

    def to_plain(self) -> dict[str, Any]:
        """Give what tells one refinement from another."""
        clusters = ALL if self.clusters is None else sorted(self.clusters)
        return {"key": self.key, "clusters": clusters, "min_cells": self.min_cells, "n_genes": self.n_genes}
