"""Which process of how many: plain data, handed in, never detected deep inside."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.errors import ConfigError

MAX_BLOCKS = 8
"""Parts into which cells are cut whatever the number of processes, so that sums over them have the same bits on 1, 2, 4 or 8."""


@dataclass(frozen=True)
class World:
    """Rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        """Check that the rank lies in the world."""
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} does not exist in a world of {self.size} processes.")

    def n_blocks(self, most: int = MAX_BLOCKS) -> int:
        """Blocks into which cells are cut: `most` where the ranks divide it, else one for each rank."""
        return most if most % self.size == 0 else self.size

    def own(self, n_blocks: int) -> range:
        """Blocks of this rank, of `n_blocks` that are dealt out in order."""
        return range(self.rank * n_blocks // self.size, (self.rank + 1) * n_blocks // self.size)


ALONE = World()
"""One process and no others."""
