"""The only home of collectives: what ranks tell one another. With one rank nothing is sent.

Sums over cells are added by one fixed binary tree, on every rank, so that all ranks hold the same bits. Two groups of the same ranks
differ in their patience: steps and sweeps keep all ranks in step and wait a minute for one another, the rest (start, consensus,
saving) keeps some waiting for long. A rank that fails says so; one that says nothing is named by the others.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scamac_scale.errors import LostRankError, ScamacError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scamac_scale.ranks import Place
    from scamac_scale.world import World

Sum = TypeVar("Sum")
Result = TypeVar("Result")

REPORT_S = 3.0
"""Seconds after the last sign of another rank in which those that are alive have to give theirs, once a collective has failed."""


class _Links:
    """The process groups of this process, once it has joined."""

    brisk: Any = None  # Any: torch's groups and stores are not typed; None is the default group
    store: Any = None
    is_brisk = False
    met: Place | None = None
    board: Any = None  # what all ranks of that place read and write, until the process ends
    n_joined = 0
    seconds = 0.0


_LINKS = _Links()


@contextmanager
def joined(place: Place, *, is_cuda: bool, timeout_s: float, setup_timeout_s: float) -> Iterator[World]:
    """Join the other ranks; a context that leaves them at its end, and tells them why where it ends with an error.

    Parameters
    ----------
    place
        From `ranks.find_place`.
    is_cuda
        Whether tensors on a GPU are sent (by NCCL), too; others go by gloo.
    timeout_s
        How long ranks wait for one another in steps and sweeps.
    setup_timeout_s
        And elsewhere.

    Yields
    ------
    World
        This rank, and how many there are.

    Raises
    ------
    LostRankError
        If the others do not come.
    """
    world = place.world
    if world.size == 1:
        yield world
        return
    from torch import distributed

    try:
        _join(place, is_cuda, timeout_s, setup_timeout_s)
    except (RuntimeError, ValueError) as error:
        raise LostRankError(
            f"rank {world.rank} of {world.size} cannot join the others at {place.address}:{place.port}: {_first_line(error)}; see "
            "whether all were started, and whether that address can be reached."
        ) from error
    try:
        yield world
    except BaseException as error:
        _say_goodbye(error, world)
        raise
    finally:
        _LINKS.brisk = _LINKS.store = None
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _join(place: Place, is_cuda: bool, timeout_s: float, setup_timeout_s: float) -> None:
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    world = place.world
    address = f"tcp://{place.address}:{place.port}"
    setup, brisk = timedelta(seconds=setup_timeout_s), timedelta(seconds=timeout_s)
    from_environment = distributed.is_torchelastic_launched()  # its agent keeps the store
    method = "env://" if from_environment else address
    if _LINKS.met != place:  # a rank that joins again must not find the store of rank 0 just before that closes
        _LINKS.met, _LINKS.board = place, next(rendezvous(method, world.rank, world.size, timeout=setup))[0]
    _LINKS.n_joined += 1
    store = PrefixStore(
        f"scamac_scale/{_LINKS.n_joined}", _LINKS.board
    )  # below an earlier number stands what ranks said then
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=setup)
    _LINKS.store = store
    _LINKS.brisk = distributed.new_group(timeout=brisk, backend=backend)


@contextmanager
def brisk() -> Iterator[None]:
    """Let ranks wait for one another no longer than in a step, in all collectives inside."""
    before, _LINKS.is_brisk = _LINKS.is_brisk, True
    try:
        yield
    finally:
        _LINKS.is_brisk = before


@contextmanager
def patient() -> Iterator[None]:
    """Let ranks wait for one another as long as at the start, in all collectives inside."""
    before, _LINKS.is_brisk = _LINKS.is_brisk, False
    try:
        yield
    finally:
        _LINKS.is_brisk = before


def _group() -> Any:
    return _LINKS.brisk if _LINKS.is_brisk else None


@contextmanager
def _talking(world: World) -> Iterator[None]:
    """Time a collective, and turn what it raises into an error that says which rank is to blame."""
    start_s = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        raise _blame(error, world) from error
    finally:
        _LINKS.seconds += time.perf_counter() - start_s


def waited_s() -> float:
    """Seconds that this process has spent in collectives so far: sending, and waiting for other ranks."""
    return _LINKS.seconds


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _say_goodbye(error: BaseException, world: World) -> None:
    """Leave a word for the others before the connections close."""
    if _LINKS.store is None or isinstance(error, LostRankError):
        return
    code = error.exit_code if isinstance(error, ScamacError) else 1
    word = {"code": code, "message": _first_line(error), "kind": type(error).__name__}
    try:
        _LINKS.store.set(f"left/{world.rank}", json.dumps(word))
    except RuntimeError:
        return  # the store went with rank 0


def _blame(error: RuntimeError, world: World) -> LostRankError:
    """Find out which ranks gave up, and which ones say nothing."""
    from torch import distributed

    others = [rank for rank in range(world.size) if rank != world.rank]
    heard: dict[int, str] = {}
    try:
        store = _LINKS.store
        assert store is not None
        store.set_timeout(timedelta(seconds=REPORT_S))
        store.set(f"alive/{world.rank}", "")
        distributed.destroy_process_group()  # closes connections: who waits for this rank is told
        last_s = time.monotonic()
        while len(heard) < len(others) and time.monotonic() - last_s < REPORT_S:
            for rank in others:
                if rank not in heard and store.check([f"left/{rank}"]):
                    word = json.loads(store.get(f"left/{rank}"))
                    found = LostRankError(f"rank {world.rank} stops, since rank {rank} failed: {word['message']}")
                    found.exit_code = word["code"]
                    return found
                if rank not in heard and store.check([f"alive/{rank}"]):
                    heard[rank], last_s = "alive", time.monotonic()
            time.sleep(0.05)
    except (RuntimeError, AssertionError):
        if _LINKS.store is not None:
            return LostRankError(
                f"rank {world.rank}: rank 0, or the launcher that keeps the addresses, does not answer ({_first_line(error)}); "
                "look at its end of the log, and run again with --resume."
            )
    lost = [rank for rank in others if rank not in heard]
    named = f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
    return LostRankError(
        f"rank {world.rank}: {named if lost else 'some rank'} of {world.size} {'do' if len(lost) > 1 else 'does'} not answer: killed, "
        f"hung, or cut off ({_first_line(error)}). Look at its end of the log, and run again with --resume."
    )


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
    with _talking(world):
        distributed.all_gather(found, sent, group=_group())
    return found


def broadcast(tensor: Tensor, owner: int, world: World) -> Tensor:
    """Give the tensor of one rank to all; others pass one of the same shape and type."""
    if world.size == 1:
        return tensor
    from torch import distributed

    sent = tensor.contiguous()
    with _talking(world):
        distributed.broadcast(sent, src=owner, group=_group())
    return sent


def gather_objects(value: Result, world: World) -> list[Result]:
    """Collect a plain value of every rank, in the order of the ranks; they trust one another: it is pickled."""
    if world.size == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * world.size
    with _talking(world):
        distributed.all_gather_object(found, value, group=_group())
    return found


def from_first(make: Callable[[], Result], world: World) -> Result:
    """Let rank 0 make something while the others wait, and give it to all; an error there is raised everywhere.

    Parameters
    ----------
    make
        Called on rank 0 only; what it returns can be pickled.
    world
        As of `gather`.

    Returns
    -------
    Result
        The same on every rank.
    """
    if world.size == 1:
        return make()
    from torch import distributed

    sent: list[Any] = [None, None]
    if world.rank == 0:
        try:
            sent[0] = make()
        except ScamacError as error:
            sent[1] = error
    with patient(), _talking(world):
        distributed.broadcast_object_list(sent, src=0, group=_group())
    if sent[1] is not None:
        raise sent[1]
    result: Result = sent[0]
    return result


def agree(flags: Sequence[int], world: World) -> list[int]:
    """Give every rank the largest of what the ranks say, number by number."""
    if world.size == 1:
        return list(flags)
    from torch import distributed

    said = torch.tensor(flags, dtype=torch.int64)
    with _talking(world):
        distributed.all_reduce(said, op=distributed.ReduceOp.MAX, group=_group())
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
    """Collect what every rank holds, field by field."""
    if part is None:
        return [None] * world.size
    if isinstance(part, Tensor):
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
