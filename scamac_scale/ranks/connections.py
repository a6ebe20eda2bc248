"""The connections between ranks: joining and leaving, how long they wait for one another, and who is to blame when one is lost.

Two groups of the same ranks differ in their patience: steps and sweeps keep all ranks in step and wait a minute for one another, the
rest (start, consensus, saving) keeps some waiting for long. A rank that fails says so; one that says nothing is named by the others.
What is sent is `collectives`'.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from scamac_scale.errors import LostRankError, ScamacError, StoppedError
from scamac_scale.ranks.signals import launcher_has_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.ranks.place import Place
    from scamac_scale.ranks.world import World

CONNECT_S = 2.0
"""Seconds of one try to connect to the rank, or the agent, that keeps the board."""
MEET_S = 0.02
"""Seconds between two looks at whether the others have come."""
T = TypeVar("T")

ASK_S = 7.0
"""Seconds in which the store has to answer all that is asked of it then."""
REPORT_S = 3.0
"""Seconds after the last sign of another rank in which those that are alive have to give theirs, once a collective has failed."""


class _Links:
    """The process groups of this process, once it has joined."""

    brisk: Any = None  # Any: torch's groups and stores are not typed; None is the default group
    store: Any = None
    met: Place | None = None
    board: Any = None  # what all ranks of that place read and write, until the process ends
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

    world = place.world
    setup, brisk = timedelta(seconds=setup_timeout_s), timedelta(seconds=timeout_s)
    if _LINKS.met != place:  # a rank that joins again must not find the store of rank 0 just before that closes
        _LINKS.met, _LINKS.board = place, _open_board(place, setup_timeout_s)
    store = PrefixStore(meet(_LINKS.board, world, setup_timeout_s), _LINKS.board)
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=setup)
    _LINKS.store = store
    _LINKS.brisk = distributed.new_group(timeout=brisk, backend=backend)


def _open_board(place: Place, timeout_s: float) -> Any:
    """Connect to the board: rank 0 keeps it, or the agent of torchrun.

    Whether somebody listens is found out here, for torch waits where no signal is heard, and writes stack traces. At first the name
    may not even be known.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not declared

    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = place.world.rank == 0 and not is_kept
    last_s = time.monotonic() + timeout_s
    while not keeps:
        try:
            socket.create_connection((place.address, place.port), CONNECT_S).close()
            break
        except OSError as error:
            if time.monotonic() > last_s:
                raise RuntimeError(f"nobody answered within {timeout_s:g} s ({error})") from error
            _check_launcher()
            time.sleep(10 * MEET_S)
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(place.address, place.port, is_master=keeps, timeout=timeout, wait_for_workers=False)


def _check_launcher() -> None:
    if launcher_has_ended():
        raise RuntimeError("the launcher that started this rank has ended")


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
        _check_launcher()
        time.sleep(MEET_S)
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
    for rank, word in left.items():
        ended = LostRankError(f"rank {world.rank} stops, since rank {rank} failed: {word['message']}")
        ended.exit_code = word["code"]
        return ended
    lost = [rank for rank in range(world.size) if rank not in (world.rank, *heard)]
    named = f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
    return LostRankError(
        f"rank {world.rank}: {named if lost else 'some rank'} of {world.size} {'do' if len(lost) > 1 else 'does'} not answer: killed, "
        f"hung, or cut off ({_first_line(error)}). Look at its end of the log, and run again with --resume."
    )


def _listen(store: Any, world: World, close: Callable[[], None]) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Say that this rank is alive; the last word of one that has failed, and who else is alive."""
    store.set_timeout(timedelta(seconds=REPORT_S))
    store.set(f"alive/{world.rank}", "")
    close()  # of connections: who waits for this rank is told
    heard: set[int] = set()
    last_s = time.monotonic()
    while len(heard) < world.size - 1 and time.monotonic() - last_s < REPORT_S:
        for rank in set(range(world.size)) - {world.rank}:
            if rank not in heard and store.check([f"left/{rank}"]):
                return {rank: json.loads(store.get(f"left/{rank}"))}, heard
            if rank not in heard and store.check([f"alive/{rank}"]):
                heard.add(rank)
                last_s = time.monotonic()
        time.sleep(0.05)
    return {}, heard
