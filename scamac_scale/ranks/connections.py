"""The connections between ranks: joining and leaving, how long they wait for one another, and who is to blame when one is lost.

Two groups of the same ranks differ in their patience: steps and sweeps keep all ranks in step and wait a minute for one another, the
rest (start, consensus, saving) keeps some waiting for long. A rank that fails says so; one that says nothing is named by the others.
What is sent is `collectives`'.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from scamac_scale.errors import LostRankError, ScamacError, StoppedError
from scamac_scale.ranks import pairs
from scamac_scale.ranks.rendezvous import MEET_S, Board, open_board, use_loopback
from scamac_scale.ranks.secret import remove_note
from scamac_scale.ranks.signals import check_launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.ranks.place import Place
    from scamac_scale.ranks.world import World

T = TypeVar("T")

JOIN_TRIES = 3
"""How often ranks connect to one another, before they give up: a stranger may have been faster somewhere."""
VERIFY = timedelta(seconds=15)
"""In which each rank must have shown the others who it is, once all are connected; then all connect anew."""
ASK_S = 7.0
"""Seconds in which the store has to answer all that is asked of it then."""
REPORT_S = 3.0
"""Seconds after the last sign of another rank in which those that are alive have to give theirs, once a collective has failed."""


class _Links:
    """The process groups of this process, once it has joined."""

    brisk: Any = None  # Any: torch's groups and stores are not typed; None is the default group
    store: Any = None
    met: Place | None = None
    board: Board | None = None  # what all ranks of that place read and write, until the process ends
    seconds = 0.0


_LINKS = _Links()


@contextmanager
def joined(place: Place, *, is_cuda: bool, timeout_s: float, setup_timeout_s: float) -> Iterator[World]:
    """Join the other ranks; a context that leaves them at its end, and tells them why where it ends with an error.

    Parameters
    ----------
    place
        From `place.find_place`.
    is_cuda
        Whether tensors on a GPU are sent (by NCCL), too; others go by gloo.
    timeout_s
        How long ranks wait for one another in steps and sweeps.
    setup_timeout_s
        How long they wait at the start, and while one of them finds the clusters or saves.

    Yields
    ------
    World
        This rank, and how many there are.

    Raises
    ------
    LostRankError
        If the others do not come, or strangers come in their place.
    ConfigError
        If ranks of several machines have no secret, or one that cannot be used.
    """
    world = place.world
    if world.size == 1:
        yield world
        return
    try:
        _join(place, is_cuda, timeout_s, setup_timeout_s)
    except ScamacError:
        raise
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
        _leave()


def _join(place: Place, is_cuda: bool, timeout_s: float, setup_timeout_s: float) -> None:
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    world = place.world
    setup, brisk = timedelta(seconds=setup_timeout_s), timedelta(seconds=timeout_s)
    if _LINKS.met != place:  # a rank that joins again must not find the store of rank 0 just before that closes
        _LINKS.met, _LINKS.board = place, open_board(place, setup_timeout_s)
    board = _LINKS.board
    assert board is not None
    if place.is_one_machine:
        use_loopback()
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    failure: Exception | None = None
    for _ in range(JOIN_TRIES):
        name = meet(board.store, world, setup_timeout_s)
        if world.rank == 0 and board.has_note:
            remove_note(place.port)
        store, failure = PrefixStore(name, board.store), None
        try:
            distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=setup)
            _LINKS.store, _LINKS.brisk = store, distributed.new_group(timeout=brisk, backend=backend)
            pairs.verify(
                {"patient": None, "brisk": _LINKS.brisk}, world, board.secret + name.encode(), min(brisk, VERIFY)
            )
        except (RuntimeError, LostRankError) as error:
            failure = error
            _leave()
        if _all_have_joined(store, world, failure is None, timeout_s):
            return
        _leave()
    raise failure or RuntimeError("other ranks could not connect to one another")


def _leave() -> None:
    """Close all connections but that to the board."""
    from torch import distributed

    _LINKS.brisk = _LINKS.store = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _all_have_joined(store: Any, world: World, has_joined: bool, timeout_s: float) -> bool:
    """Tell the other ranks whether this one has joined, and hear whether they have."""
    store.set(f"joined/{world.rank}", "yes" if has_joined else "no")
    store.set_timeout(
        timedelta(seconds=2 * timeout_s)
    )  # a rank that waits in vain for an answer is one that tells late
    return all(word == b"yes" for word in store.multi_get([f"joined/{rank}" for rank in range(world.size)]))


def meet(board: Any, world: World, timeout_s: float) -> str:
    """Agree with the ranks that live on a name below which they meet.

    On the board stands what ranks wrote which have gone: torchrun keeps it over restarts, and a process may join a second time. So
    every rank says hello under a name that nobody had before, rank 0 answers each such name with its own, and all have met when
    each rank has repeated that one: only one that lives can.

    Parameters
    ----------
    board
        Store of keys that all ranks read and write (`torch.distributed.Store`).
    world
        This rank, and how many there are.
    timeout_s
        How long to wait for the others.

    Returns
    -------
    str
        The same on all ranks, and never given before.

    Raises
    ------
    RuntimeError
        If ranks do not come; names them.
    """
    own, last_s = f"scamac_scale/{uuid4().hex}", time.monotonic() + timeout_s
    board.set(f"hello/{world.rank}", own)
    missing = set(range(1, world.size)) if world.rank == 0 else {0}
    answered: dict[int, str] = {}
    while missing:
        if world.rank == 0:
            missing -= {rank for rank in missing if _has_come(board, rank, own, answered)}
        elif name := _look_up(board, f"{own}/answer"):
            board.set(
                f"{name}/here/{world.rank}", ""
            )  # again with every look: a rank 0 that has gone may have answered first
            if _look_up(board, f"{name}/all"):
                return name
        if time.monotonic() > last_s:
            named = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"rank{'s' if len(missing) > 1 else ''} {named} did not come within {timeout_s:g} s")
        check_launcher()
        time.sleep(MEET_S * max(1.0, world.size / 16))  # rank 0 answers all that ask
    board.set(f"{own}/all", "all")
    return own


def _has_come(board: Any, rank: int, own: str, answered: dict[int, str]) -> bool:
    """Answer a rank as rank 0; whether it has understood."""
    hello = _look_up(board, f"hello/{rank}")
    if hello and answered.get(rank) != hello:
        board.set(f"{hello}/answer", own)
        answered[rank] = hello
    return bool(board.check([f"{own}/here/{rank}"]))


def _look_up(board: Any, key: str) -> str:
    """Read a key; empty where nobody has written it."""
    return board.get(key).decode() if board.check([key]) else ""


def group(world: World) -> Any:
    """Group of the patience of a world; None is the default one."""
    return _LINKS.brisk if world.is_brisk else None


@contextmanager
def talking(world: World) -> Iterator[None]:
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
    code, message = error.exit_code if isinstance(error, ScamacError) else 1, _first_line(error)
    if isinstance(error, KeyboardInterrupt):
        code, message = StoppedError.exit_code, "it was stopped by a signal"
    word = json.dumps({"code": code, "message": message})
    _ask(lambda store: store.set(f"left/{world.rank}", word))


def _ask(work: Callable[[Any], T]) -> T | None:
    """Do something with the store; None where that does not answer.

    In a thread of its own: if the process that keeps the store hangs, so does whoever talks to it, whatever the timeout.
    """
    store, found = _LINKS.store, []

    def ask() -> None:
        with suppress(RuntimeError):  # it went with rank 0
            found.append(work(store))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ASK_S)
    return found[0] if found else None


def _blame(error: RuntimeError, world: World) -> LostRankError:
    """Find out which ranks gave up, and which ones say nothing."""
    from torch import distributed

    if _LINKS.store is None:  # connections that `joined` has not made
        return LostRankError(f"rank {world.rank}: another rank does not answer ({_first_line(error)}).")
    found = _ask(lambda store: _listen(store, world, distributed.destroy_process_group))
    if found is None:
        return LostRankError(
            f"rank {world.rank}: rank 0, or the launcher that keeps the addresses, does not answer ({_first_line(error)}); "
            "look at its end of the log, and run again with --resume."
        )
    left, heard = found
    for rank, (code, message) in left.items():
        ended = LostRankError(f"rank {world.rank} stops, since rank {rank} failed: {message}")
        ended.exit_code = code
        return ended
    lost = [rank for rank in range(world.size) if rank not in (world.rank, *heard)]
    named = f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
    return LostRankError(
        f"rank {world.rank}: {named if lost else 'some rank'} of {world.size} {'do' if len(lost) > 1 else 'does'} not answer: killed, "
        f"hung, or cut off ({_first_line(error)}). Look at its end of the log, and run again with --resume."
    )


def _last_word(content: bytes) -> tuple[int, str]:
    """Exit code and message of a rank that has failed; those of a lost one where that cannot be read."""
    try:
        word = json.loads(content)
        code, message = int(word["code"]), str(word["message"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return LostRankError.exit_code, "it did not say why"
    return code if 0 < code < 256 else LostRankError.exit_code, message[:200]


def _listen(store: Any, world: World, close: Callable[[], None]) -> tuple[dict[int, tuple[int, str]], set[int]]:
    """Say that this rank is alive; the last word of one that has failed, and who else is alive."""
    store.set_timeout(timedelta(seconds=REPORT_S))
    store.set(f"alive/{world.rank}", "")
    close()  # of connections: who waits for this rank is told
    heard: set[int] = set()
    last_s = time.monotonic()
    while len(heard) < world.size - 1 and time.monotonic() - last_s < REPORT_S:
        for rank in set(range(world.size)) - {world.rank}:
            if rank not in heard and store.check([f"left/{rank}"]):
                return {rank: _last_word(store.get(f"left/{rank}"))}, heard
            if rank not in heard and store.check([f"alive/{rank}"]):
                heard.add(rank)
                last_s = time.monotonic()
        time.sleep(0.05)
    return {}, heard
