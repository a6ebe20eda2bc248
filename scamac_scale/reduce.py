"""The only home of collectives: what ranks tell one another. With one rank nothing is sent.

Sums over cells are added in the order of the ranks by one fixed binary tree, on every rank, so that all ranks hold the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.world import World

Sum = TypeVar("Sum")


def gather(tensor: torch.Tensor, world: World) -> list[torch.Tensor]:
    """Collect one tensor of every rank.

    Parameters
    ----------
    tensor
        Of the same shape and type on all ranks.
    world
        This rank, and how many there are; more than one need torch's default process group.

    Returns
    -------
    list of Tensor
        In the order of the ranks, on the device of `tensor`.
    """
    if world.size == 1:
        return [tensor]
    from torch import distributed

    sent = tensor.to(_device()).contiguous()
    found = [torch.empty_like(sent) for _ in range(world.size)]
    distributed.all_gather(found, sent)
    return [part.to(tensor.device) for part in found]


def broadcast(tensor: torch.Tensor, owner: int, world: World) -> torch.Tensor:
    """Give the tensor of one rank to all; others pass one of the same shape and type."""
    if world.size == 1:
        return tensor
    from torch import distributed

    sent = tensor.to(_device()).contiguous()
    distributed.broadcast(sent, src=owner)
    return sent.to(tensor.device)


def sum_over_ranks(part: Sum, world: World) -> Sum:
    """Add what every rank has summed over its cells.

    Parameters
    ----------
    part
        A tensor, or a NamedTuple that knows how to add itself, of tensors, such tuples, or None on all ranks alike.
    world
        As of `gather`.

    Returns
    -------
    Sum
        The same on every rank.
    """
    return part if world.size == 1 else tree_sum(_of_ranks(part, world))


def _of_ranks(part: Any, world: World) -> list[Any]:  # Any: a tensor, None, or a NamedTuple of such
    """Collect what every rank holds, field by field."""
    if part is None:
        return [None] * world.size
    if isinstance(part, torch.Tensor):
        return list(gather(part, world))
    fields = [_of_ranks(field, world) for field in part]
    return [type(part)(*fields_of_rank) for fields_of_rank in zip(*fields, strict=True)]


def tree_sum(parts: Sequence[Sum]) -> Sum:
    """Add neighbours, then neighbouring sums, until one is left."""
    level: list[Any] = list(parts)
    while len(level) > 1:
        pairs = [level[at] + level[at + 1] for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]  # type: ignore[no-any-return]  # of the type that came


def _device() -> torch.device:
    from torch import distributed

    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )
