"""The settings of one whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scamac_scale.config.choices import Count, check_names, require
from scamac_scale.config.correction import CorrectionConfig
from scamac_scale.config.data import InputConfig, LoaderConfig
from scamac_scale.config.model import LossConfig, ModelConfig
from scamac_scale.config.strict import MAX_WHOLE, from_plain
from scamac_scale.config.training import StartConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class ScamacConfig:
    """One whole run."""

    n_clusters: Count = "auto"
    """Number of clusters K, or auto (estimated)."""
    seed: int = 0
    """Every random choice derives from it."""
    batch_key: str | None = None
    """Columns of obs that tell which technical batch (donor, chip, technology) a cell is from, with commas between
    them; null takes those that the store was ingested with, none ignores them."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """How technical batches are made alike, where there are any."""
    input: InputConfig = field(default_factory=InputConfig)
    """What the network sees."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes and forms of the network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Terms of the objective and their weights."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights and centers at the beginning."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How cells come from disk."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Batches, rounds and devices."""

    def __post_init__(self) -> None:
        """Check the number of clusters and the seed."""
        check_names(self)
        require(
            self.n_clusters == "auto" or self.n_clusters >= 1,
            f"n_clusters={self.n_clusters}; it must be at least 1.",
        )
        require(
            self.batch_key is None or any(map(str.strip, self.batch_key.split(","))),
            f"batch_key={self.batch_key!r} names no column of obs; null takes those of the store, 'none' ignores them.",
        )
        require(type(self.seed) is int, f"seed={self.seed!r}; it must be a whole number.")
        require(self.seed >= 0, f"seed={self.seed}; it must not be negative.")
        require(self.seed < MAX_WHOLE, f"seed={self.seed}; it must be below 2**64.")


def config_from_dict(values: dict[str, Any], *, is_partial: bool = False) -> ScamacConfig:
    """Rebuild settings from plain data.

    Parameters
    ----------
    values
        As ``dataclasses.asdict`` gives them.
    is_partial
        Whether what is missing takes its default, as a setting does that the program which wrote them did not have.

    Returns
    -------
    ScamacConfig
        Checked anew.

    Raises
    ------
    ConfigError
        If a key is missing or unknown, or a value cannot be used.
    """
    return from_plain(ScamacConfig, values, is_partial=is_partial)
