"""Settings of the correction of technical batches."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.config.choices import Corrected, check_names, require


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """How technical batches are made alike: Harmony 2, by sums over all cells."""

    acts_on: Corrected = "input"
    """What is corrected before the fit: input (its principal components, so that network, clusters and latent see
    corrected cells) or none."""
    components: int = 50
    """Number of principal components in which the input is corrected."""
    clusters: int | None = None
    """Number of soft clusters; null takes a thirtieth of the cells, at least 2 and at most 100."""
    sigma: float = 0.1
    """Width of the soft clusters, in units of squared distance between unit vectors."""
    theta: float = 2.0
    """How strongly clusters of one batch are avoided; 0 does not mind them."""
    alpha: float = 0.2
    """Ridge of the correction, as a share of the cells expected of a batch in a cluster."""
    rounds: int = 10
    """Largest number of corrections, each followed by new clusters."""
    passes: int = 4
    """Passes over all cells that find the clusters of a round."""
    tolerance: float = 1e-3
    """Fall of the objective, as a share of it; once two rounds fall by less, no further correction is made."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "correction.")
        for name in ("components", "rounds", "passes"):
            require(getattr(self, name) >= 1, f"correction.{name}={getattr(self, name)}; it must be at least 1.")
        require(
            self.clusters is None or self.clusters >= 2,
            f"correction.clusters={self.clusters}; it must be at least 2, or null for a number that fits the cells.",
        )
        for name in ("sigma", "alpha"):
            require(getattr(self, name) > 0, f"correction.{name}={getattr(self, name)}; it must be positive.")
        for name in ("theta", "tolerance"):
            require(getattr(self, name) >= 0, f"correction.{name}={getattr(self, name)}; it must not be negative.")
