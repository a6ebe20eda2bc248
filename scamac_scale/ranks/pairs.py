"""Whether the other end of each connection of gloo is the rank that it should be.

gloo listens on ports of its own, and takes whoever comes with a small number for the rank that is expected. So each pair of ranks
says over its own connection, before anything else, what only that rank of this job can say; a stranger who was faster is found out
before he is sent or believed anything.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.errors import LostRankError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from scamac_scale.ranks.world import World


def verify(groups: Mapping[str, Any], world: World, secret: bytes, timeout: timedelta) -> None:
    """See whether all connections of this rank lead to ranks of this job.

    Parameters
    ----------
    groups
        Name to process group of all ranks.
    world
        This rank, and how many there are.
    secret
        That only these ranks know, of this time that they have met.
    timeout
        How long to wait for each.

    Raises
    ------
    LostRankError
        If somebody else answers.
    RuntimeError
        If nobody does.
    """
    from torch import distributed

    others = [rank for rank in range(world.size) if rank != world.rank]
    for name, group in groups.items():
        said = [_word(secret, name, world.rank, rank) for rank in others]
        heard = [torch.zeros(32, dtype=torch.uint8) for _ in others]
        works = [distributed.isend(word, rank, group=group) for word, rank in zip(said, others, strict=True)]
        works += [distributed.irecv(word, rank, group=group) for word, rank in zip(heard, others, strict=True)]
        for work in works:
            assert work is not None  # only where this rank is in no group
            work.wait(timeout)
        for word, rank in zip(heard, others, strict=True):
            if not torch.equal(word, _word(secret, name, rank, world.rank)):
                raise LostRankError(
                    f"rank {world.rank}: somebody else has connected in the place of rank {rank}; nothing was sent to it. See who "
                    "reaches the ports of this machine, and run again with --resume."
                )


def _word(secret: bytes, name: str, sender: int, receiver: int) -> torch.Tensor:
    """Make what one rank says to another over the connection of a group."""
    text = f"{name} {sender} {receiver}".encode()
    return torch.frombuffer(bytearray(hmac.digest(secret, text, "sha256")), dtype=torch.uint8)
