"""Tasks of one job on a cluster: a bounded number in flight, results in order, lost ones redone, failures in a sentence.

What is sent is pickled here and not by dask, which looks for tasks of its own inside tuples. A worker opens what the tasks read
once, keeps it, and closes it at the end of the job.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import uuid
import warnings
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from scamac_scale import __version__
from scamac_scale.durable.faults import reach
from scamac_scale.errors import ClusterError, LostRankError, ScamacError, error_from_plain, error_to_plain
from scamac_scale.workers.connect import Client, check_version, scheduler_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

LOST_S = 60.0
"""How long a cluster without any worker, or without a scheduler, is waited for."""
LOOK_S = 2.0
"""Seconds between two looks at the cluster while a result is waited for."""
AHEAD = 2
"""Tasks in flight for each thread of the workers."""
MOST_OPEN = 4
"""Things that a worker keeps open: those of clients that were killed are never closed by them."""
_MORE_MEMORY = "give workers more (dask worker --memory-limit), or take smaller blocks (ingest.block_cells)"


class Closable(Protocol):
    """What a worker opens for the tasks of a job."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True)
class Opening:
    """What the tasks of a job read; opened once by each worker.

    Attributes
    ----------
    open
        ``open(*args)``: of a module.
    args
        Can be pickled.
    token
        Tells it from others.
    """

    open: Callable[..., Closable]
    args: tuple[Any, ...] = ()  # Any: plain data
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Work:
    """One pass of a job.

    Attributes
    ----------
    opening
        What it reads.
    function
        ``function(opened, common, task) -> result``: of a module, and pure; all can be pickled.
    common
        The same for all tasks; sent to each worker once.
    told
        Names a task in a message.
    """

    opening: Opening
    function: Callable[[Any, Any, Any], Any]
    common: Any
    told: Callable[[Any], str]


@dataclass(frozen=True)
class _Failed:
    """An error of this package, on its way back."""

    plain: dict[str, Any]


# ------------------------------------------------------------------ on the worker

_OPEN: dict[str, Closable] = {}
_LOCK = threading.Lock()


def _opened(opening: Opening) -> Closable:
    with _LOCK:
        if opening.token not in _OPEN:
            while len(_OPEN) >= MOST_OPEN:
                _OPEN.pop(next(iter(_OPEN)))  # not closed: another job may be at it; its files close with the last user
            try:
                _OPEN[opening.token] = opening.open(*opening.args)
            except ScamacError as error:
                raise ClusterError(f"worker {_own_address()} cannot open what it is to read: {error}") from error
        return _OPEN[opening.token]


def close_opened(token: str) -> None:
    """Close what a job opened in this process."""
    with _LOCK:
        found = _OPEN.pop(token, None)
    if found is not None:
        found.close()


def _own_address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


def _run(version: str, head: bytes, common: bytes, task: bytes) -> Any:  # Any: what the function gives
    """Do one task on a worker."""
    try:
        check_version(version, f"the client of worker {_own_address()}")
        opening, function = pickle.loads(head)
        result = function(_opened(opening), pickle.loads(common), pickle.loads(task))
    except ScamacError as error:
        return _Failed(error_to_plain(error))
    except OSError as error:  # a TimeoutError, too, which the client could not tell from no answer
        why = f"{type(error).__name__}: {error.strerror or error}"
        return _Failed(error_to_plain(ClusterError(f"worker {_own_address()} could not do its part ({why}).")))
    except MemoryError:  # of the worker, not of the client that would tell it
        return _Failed(error_to_plain(ClusterError(f"worker {_own_address()} has too little memory; {_MORE_MEMORY}.")))
    reach("cluster.task")
    return result


def _held(common: bytes) -> bytes:
    """Keep what all tasks need where dask makes it again if it is lost."""
    return common


# ------------------------------------------------------------------ on the client


def in_order(client: Client, work: Work, tasks: Iterable[Any]) -> Generator[Any, None, None]:
    """Do tasks on the workers, and give their results in order.

    Parameters
    ----------
    client
        From `connected`.
    work
        What is done.
    tasks
        Each can be pickled.

    Yields
    ------
    Any
        What the function gave.

    Raises
    ------
    ScamacError
        That of a task, when it is its turn.
    ClusterError
        If a worker cannot open what it is to read, or a task ends one worker after the other.
    LostRankError
        If there is no scheduler, or no worker, for `LOST_S` seconds.

    Notes
    -----
    `AHEAD` tasks for each thread are in flight, of which this process holds one result. Tasks of a worker that is lost are done again
    by others.
    """
    head = pickle.dumps((work.opening, work.function))
    common = pickle.dumps(work.common, protocol=pickle.HIGHEST_PROTOCOL)
    held = _submit(client, _held, common)
    _spread(client, work, held)
    waiting: deque[tuple[Any, Any]] = deque()
    try:
        for task in tasks:
            waiting.append((task, _submit(client, _run, __version__, head, held, pickle.dumps(task))))
            if len(waiting) > AHEAD * max(1, _count_threads(client)):
                yield _result(client, work, *waiting.popleft())
        while waiting:
            yield _result(client, work, *waiting.popleft())
    finally:
        for _, future in waiting:
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                future.cancel()


@contextlib.contextmanager
def opened_by_workers(client: Client, opening: Opening) -> Iterator[Opening]:
    """Lend what workers open, and have them close it at the end."""
    try:
        yield opening
    finally:
        if client.status == "running":
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                client.run(close_opened, opening.token, on_error="ignore")


def _submit(client: Client, function: Callable[..., Any], *arguments: Any) -> Any:  # Any: a Future
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of large arguments: they are sent once
        return client.submit(function, *arguments, key=f"scamac-{uuid.uuid4().hex}", pure=False)


def _spread(client: Client, work: Work, held: Any) -> None:  # Any: a Future
    """Copy what all tasks need to all workers: dask runs tasks where that lies."""
    _result(client, replace(work, told=lambda _: "what is sent to all workers"), None, held)
    with contextlib.suppress(OSError, RuntimeError, TimeoutError, KeyError):  # a worker that goes meanwhile
        client.replicate([held])


def _count_threads(client: Client) -> int:
    """Threads of the workers that take tasks: not of those that dask has paused, as it does where they are short of memory."""
    workers = dict(client.scheduler_info(-1)["workers"]).values()
    return sum(info["nthreads"] for info in workers if info["status"] != "paused")


def _result(client: Client, work: Work, task: Any, future: Any) -> Any:  # Any: a task, a Future, its result
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    since_s = time.monotonic()
    while True:
        try:
            found = future.result(timeout=LOOK_S)
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} workers ended, one after the other, while they had {work.told(task)} and perhaps its neighbours (the "
                f"last was {error.last_worker.address}): they may have too little memory; {_MORE_MEMORY}."
            ) from error
        except TimeoutError:
            if future.status == "error":  # of the task itself
                raise
            if _is_alive(client):
                since_s = time.monotonic()
            if time.monotonic() - since_s > LOST_S:
                raise LostRankError(
                    f"the dask scheduler {scheduler_of(client)} has had no worker for {LOST_S:.0f} s{_paused(client)}; start some, and run again with --resume."
                ) from None
        except (CancelledError, OSError) as error:
            if future.status == "error":  # of the task itself
                raise
            raise LostRankError(
                f"the dask scheduler {scheduler_of(client)} does not answer any more ({type(error).__name__}); run again with --resume."
            ) from error
        else:
            if isinstance(found, _Failed):
                raise error_from_plain(found.plain)
            return found


def _paused(client: Client) -> str:
    """Say how many workers there are that take nothing."""
    workers = dict(client.scheduler_info(-1)["workers"]).values() if client.status == "running" else ()
    n_paused = sum(info["status"] == "paused" for info in workers)
    return f" ({n_paused} are paused, short of memory: {_MORE_MEMORY})" if n_paused else ""


def _is_alive(client: Client) -> bool:
    """Whether there is a scheduler with workers that take tasks."""
    return client.status == "running" and _count_threads(client) > 0


def unpickled(sent: bytes) -> Any:  # Any: whatever was pickled
    """Take what the client has pickled, which may run anything here anyway: see docs/dask.md."""
    return pickle.loads(sent)
