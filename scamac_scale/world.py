"""Which process of how many: plain data, handed in, never detected deep inside."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        """Check that the rank lies in the world."""
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} does not exist in a world of {self.size} processes.")
