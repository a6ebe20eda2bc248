"""Under a limit of address space (``ulimit -v``): a process that watches the one that works.

Where memory ends, libraries of C and C++ abort, or end the process, or leave threads behind that its end waits for: then nothing in it can
say why. Without such a limit there is no second process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
ABORTS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGFPE)
END_S = 10.0
"""Seconds in which a process that has said its exit code must end."""
LOOK_S = 1.0
"""Seconds between two looks whether this process is still wanted."""
_BLAS_BYTES = 2**26
_BLAS_SIDE = 300
"""Of a matrix that is worth several threads."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def hold_blas_buffers() -> None:
    """Let the libraries of linear algebra take their buffers now.

    OpenBLAS takes some 32 MB for a thread at its first call, and where it gets none it tries for ever; NumPy and SciPy have one each.

    Raises
    ------
    MemoryError
        If there is no room for them.
    """
    import numpy as np
    from scipy import linalg

    square = np.eye(_BLAS_SIDE) + 1.0
    for work in (np.linalg.eigh, linalg.eigh):
        try:
            mmap.mmap(-1, _BLAS_BYTES * (os.cpu_count() or 1)).close()
        except OSError as error:
            raise MemoryError from error
        work(square)


class Ended(NamedTuple):
    """How the watched process has ended.

    Attributes
    ----------
    code
        What it said its exit code is; None where it ended without a word.
    how
        In words: by which signal, or with which code.
    """

    code: int | None
    how: str


class Worker:
    """The watched process, seen from inside."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, code: int) -> None:
        """Say the exit code before the end, which may hang; after an error there is nothing to wait for, and this is the end."""
        with suppress(OSError):
            os.write(self._pipe, bytes([code & 255]))
        if code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def watch(has_lost_parent: Callable[[], bool]) -> Worker | Ended | None:
    """Go on in a process of its own, where address space is limited.

    Parameters
    ----------
    has_lost_parent
        Whether what started this process has ended, and this should end too; asked once a second.

    Returns
    -------
    Worker, Ended or None
        In the new process, what it tells its exit code to; in this one, when the other has ended, how; None where nothing is limited, or
        this process has threads already, and does the work itself.
    """
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if all(limit == resource.RLIM_INFINITY for limit in limits) or threading.active_count() > 1:
        return None
    parent = os.getpid()
    try:
        read, write = os.pipe()
        process = os.fork()
    except OSError:  # not even that: it is tried here, and says so
        return None
    if process:
        os.close(write)
        return _wait(process, read, has_lost_parent)
    os.close(read)
    os.setsid()  # Ctrl-C on the terminal reaches it once, from the parent
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    return Worker(write)


def _wait(process: int, pipe: int, has_lost_parent: Callable[[], bool]) -> Ended:
    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, forward) for number in FORWARDED} if is_main else {}
    try:
        while not select.select([pipe], [], [], LOOK_S)[0]:
            if has_lost_parent():
                forward(signal.SIGTERM, None)
        said = os.read(pipe, 1)  # what it says, or nothing where it has ended
        status = _end(process) if said else os.waitpid(process, 0)[1]
    finally:
        os.close(pipe)
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    if said:
        return Ended(said[0], "")
    if code < 0 and -code not in ABORTS:
        _end_by(-code)
    return Ended(None, f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}")


def _end(process: int) -> int:
    """Wait for the end of a process that has nothing more to do; kill it where threads keep it."""
    last_s = time.monotonic() + END_S
    while time.monotonic() < last_s:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        select.select([], [], [], 0.02)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def _end_by(number: int) -> NoReturn:
    """End as the other process has: killed."""
    sys.stdout.flush()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
