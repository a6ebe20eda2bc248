"""Ranks that would do different work are refused before any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.durable.differences import differences
from scamac_scale.errors import ConfigError
from scamac_scale.ranks.collectives import gather_objects

if TYPE_CHECKING:
    from scamac_scale.ranks.world import World


def check_alike(facts: dict[str, Any], world: World) -> None:
    """Refuse ranks that would do different work, and wait for one another in vain or give what no single one would.

    Parameters
    ----------
    facts
        Name to what must be the same everywhere; plain data.
    world
        This rank, and how many there are.

    Raises
    ------
    ConfigError
        On all ranks, naming one that differs from rank 0, and in what.
    """
    of_ranks = gather_objects(facts, world)
    for rank, other in enumerate(of_ranks):
        found = next(differences(of_ranks[0], other), None)
        if found is not None:
            name, _, key = found.key.partition(".")
            which = f" ({key}={found.after!r}, there {found.before!r})" if key else ""
            raise ConfigError(
                f"rank {rank} has another {name} than rank 0{which}; start all ranks with the same command."
            )
