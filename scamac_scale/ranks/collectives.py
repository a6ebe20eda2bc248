"""The only home of collectives: what ranks tell one another. With one rank nothing is sent.

Sums over cells are added by one fixed binary tree, on every rank, so that all ranks hold the same bits. How ranks come together,
how long they wait, and what happens when one is lost is `connections`'. What is no tensor is sent as `plain` data: nothing that comes
from another rank is unpickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scamac_scale.errors import LostRankError, ScamacError, error_from_plain, error_to_plain
from scamac_scale.ranks.connections import group, talking
from scamac_scale.ranks.plain import MAX_BYTES, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scamac_scale.ranks.world import World

Sum = TypeVar("Sum")
Result = TypeVar("Result")


def gather(tensor: Tensor, world: World) -> list[Tensor]:
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

    Raises
    ------
    LostRankError
        If a rank does not answer, here and in all that follows.
    """
    if world.size == 1:
        return [tensor]
    from torch import distributed

    sent = tensor.contiguous()
    found = [torch.empty_like(sent) for _ in range(world.size)]
    with talking(world):
        distributed.all_gather(found, sent, group=group(world))
    return found


def broadcast(tensor: Tensor, owner: int, world: World) -> Tensor:
    """Give the tensor of one rank to all; others pass one of the same shape and type."""
    if world.size == 1:
        return tensor
    from torch import distributed

    sent = tensor.contiguous()
    with talking(world):
        distributed.broadcast(sent, src=owner, group=group(world))
    return sent


def gather_objects(value: Result, world: World) -> list[Result]:
    """Collect a value of every rank, in the order of the ranks.

    Parameters
    ----------
    value
        As of `plain.pack`: numbers, text, tensors, arrays, and what nests them.
    world
        As of `gather`.

    Returns
    -------
    list
        Of all ranks; tensors on the CPU. With one rank, `value` itself.
    """
    if world.size == 1:
        return [value]
    sent = pack(value)
    sizes = [_checked(int(size)) for size in gather(torch.tensor([len(sent)]), world)]
    found = gather(F.pad(sent, (0, max(sizes) - len(sent))), world)
    return [_read(packed[:size], rank) for rank, (packed, size) in enumerate(zip(found, sizes, strict=True))]


def _checked(n_bytes: int) -> int:
    if not 0 <= n_bytes <= MAX_BYTES:
        raise LostRankError(
            f"another rank announces {n_bytes} bytes, at most {MAX_BYTES} are taken; run again with --resume."
        )
    return n_bytes


def _read(packed: Tensor, rank: int) -> Any:
    try:
        return unpack(packed)
    except ValueError as error:
        raise LostRankError(f"rank {rank}: {error}; run again with --resume.") from error


def barrier(world: World) -> None:
    """Wait until all ranks have come here."""
    agree([0], world)


def from_first(make: Callable[[], Result], world: World) -> Result:
    """Let rank 0 make something while the others wait, patiently, and give it to all; an error there is raised everywhere.

    Parameters
    ----------
    make
        Called on rank 0 only; what it returns is as of `plain.pack`.
    world
        As of `gather`.

    Returns
    -------
    Result
        The same on every rank; tensors on the CPU of others.
    """
    if world.size == 1:
        return make()
    patient = world.patient()
    if world.rank != 0:
        packed = torch.empty(_checked(int(broadcast(torch.tensor([0]), 0, patient))), dtype=torch.uint8)
        is_made, content = _read(broadcast(packed, 0, patient), 0)
        if not is_made:
            raise error_from_plain(content)
        return content  # type: ignore[no-any-return]  # of the type that rank 0 made
    made: Any = None
    failure: ScamacError | None = None
    try:
        made = make()
    except ScamacError as error:
        failure = error
    sent = pack((True, made) if failure is None else (False, error_to_plain(failure)))
    broadcast(torch.tensor([len(sent)]), 0, patient)
    broadcast(sent, 0, patient)
    if failure is not None:
        raise failure
    return made  # type: ignore[no-any-return]  # of the type that was made


def agree(flags: Sequence[int], world: World) -> list[int]:
    """Give every rank the largest of what the ranks say, number by number."""
    if world.size == 1:
        return list(flags)
    from torch import distributed

    said = torch.tensor(flags, dtype=torch.int64)
    with talking(world):
        distributed.all_reduce(said, op=distributed.ReduceOp.MAX, group=group(world))
    found: list[int] = said.tolist()
    return found


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
    """Collect what every rank holds; tensors of one type travel together."""
    tensors = tensors_of(part)
    found = [list(tensors) for _ in range(world.size)]
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [at for at, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[at].flatten() for at in places])
        for rank, held in enumerate(gather(flat, world)):
            pieces = torch.split(held, [tensors[at].numel() for at in places])
            for at, piece in zip(places, pieces, strict=True):
                found[rank][at] = piece.view(tensors[at].shape)
    return [shaped_like(part, iter(held)) for held in found]


def tensors_of(part: Any) -> list[Tensor]:
    """Tensors of a nested NamedTuple, in their order."""
    if part is None:
        return []
    return [part] if isinstance(part, Tensor) else [tensor for field in part for tensor in tensors_of(field)]


def shaped_like(like: Any, tensors: Iterator[Tensor]) -> Any:
    """Put tensors into a tuple of the form of another one."""
    if like is None:
        return None
    return (
        next(tensors).to(like.device)
        if isinstance(like, Tensor)
        else type(like)(*(shaped_like(field, tensors) for field in like))
    )


def tree_sum(parts: Sequence[Sum]) -> Sum:
    """Add neighbours, then neighbouring sums, until one is left."""
    level: list[Any] = list(parts)
    while len(level) > 1:
        pairs = [level[at] + level[at + 1] for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]  # type: ignore[no-any-return]  # of the type that came


class TreeSum:
    """`tree_sum` of parts that come one after the other: holds no more than the logarithm of their number.

    Attributes
    ----------
    sums
        (level, sum) of what was added so far; a sum of level l is of 2^l parts. May be read and set, to go on elsewhere.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[int, Any]] = []  # Any: whatever is summed

    def add(self, part: Any) -> None:
        """Take the next part."""
        level = 0
        while self.sums and self.sums[-1][0] == level:
            part = self.sums.pop()[1] + part
            level += 1
        self.sums.append((level, part))

    def total(self) -> Any:
        """Sum of all parts: that of `tree_sum` where their number is a power of two."""
        return tree_sum([part for _, part in self.sums])


class _BlockSum(torch.autograd.Function):
    """Sum over the blocks of all ranks, handed to each block; the gradients of all these copies add up the same way."""

    @staticmethod
    def forward(ctx: Any, world: World, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.world = world
        total = sum_over_ranks(tree_sum(parts), world)
        return tuple(total.clone() for _ in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = sum_over_ranks(tree_sum(gradients), ctx.world)
        return (None, *(total for _ in gradients))


def block_sum(parts: Sequence[Tensor], world: World) -> list[Tensor]:
    """Sum over the blocks of all ranks, with gradient.

    Parameters
    ----------
    parts
        One tensor for each block of this rank, of the same shape on all ranks.
    world
        As of `gather`.

    Returns
    -------
    list of Tensor
        The total, once for each block of this rank. Whatever a block makes of its copy, its gradient reaches all blocks of all ranks:
        all ranks must call backward.
    """
    return list(_BlockSum.apply(world, *parts))  # type: ignore[no-untyped-call]


def block_gather(parts: Sequence[Tensor], sizes: Sequence[int], world: World, dim: int = 0) -> list[Tensor]:
    """Put the rows of the blocks of all ranks together, with gradient.

    Parameters
    ----------
    parts
        One tensor for each block of this rank.
    sizes
        Rows of all blocks of all ranks, in their order.
    world
        As of `gather`.
    dim
        Where the rows are.

    Returns
    -------
    list of Tensor
        All rows, once for each block of this rank; gradients as of `block_sum`.

    Notes
    -----
    A sum with zeros: it sends a number of the whole batch for every rank, which only small matrices may.
    """
    padded = []
    for block, part in zip(world.own(len(sizes)), parts, strict=True):
        edges = sum(sizes[:block]), sum(sizes[block + 1 :])
        padded.append(F.pad(part, (0, 0) * (part.ndim - 1 - dim) + edges))
    return block_sum(padded, world)
