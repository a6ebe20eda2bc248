"""Which process of how many: plain data, handed in, never detected deep inside."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scamac_scale.errors import ConfigError

MAX_BLOCKS = 8
"""Parts into which cells are cut whatever the number of processes, so that sums over them have the same bits on 1, 2, 4 or 8."""


@dataclass(frozen=True)
class World:
    """Rank of this process, the number of processes, and how long they wait for one another.

    Attributes
    ----------
    rank, size
        Which one of how many.
    is_brisk
        Whether a collective waits no longer than in a step or a sweep (``train.timeout_s``), which keep all ranks in step; otherwise as
        long as at the start, and while one of them finds the clusters or saves (``train.setup_timeout_s``).
    """

    rank: int = 0
    size: int = 1
    is_brisk: bool = False

    def __post_init__(self) -> None:
        """Check that the rank lies in the world."""
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} does not exist in a world of {self.size} processes.")

    def brisk(self) -> World:
        """Give the same ranks, which wait for one another no longer than in a step."""
        return replace(self, is_brisk=True)

    def patient(self) -> World:
        """Give the same ranks, which wait for one another as long as at the start."""
        return replace(self, is_brisk=False)

    def n_blocks(self, most: int = MAX_BLOCKS) -> int:
        """Blocks into which cells are cut: `most` where the ranks divide it, else one for each rank."""
        return most if most % self.size == 0 else self.size

    def own(self, n_blocks: int) -> range:
        """Blocks of this rank, of `n_blocks` that are dealt out in order."""
        return range(self.rank * n_blocks // self.size, (self.rank + 1) * n_blocks // self.size)


ALONE = World()
"""One process and no others."""
