"""Out of memory, threads or open files, told with the peak, the limit and what to lower."""

from __future__ import annotations

import errno
import functools
import os
import resource
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from scamac_scale.errors import LostRankError, MemoryLimitError, NumericalError, ScamacError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TO_LOWER = {
    "demo": "leave out --cells",
    "cluster": "lower ingest.block_cells, or use ingest, train and predict one by one: each says what to lower",
    "simulate": "lower --genes or --types",
    "ingest": "lower ingest.block_cells or ingest.shuffle_bytes, or ingest.n_genes where the cells are of many genes",
    "train": "set loader.cache=none where the cells are kept in memory, or lower loader.window_bytes, loader.ahead, loader.threads, "
    "train.batch_cells or the number of processes on this machine (--devices)",
    "predict": "leave out --denoised, lower the number of processes on this machine (--devices), or ingest raw input into a store first",
    "evaluate": "leave out --batch-key or --label, one at a time",
    "markers": "name a column of fewer groups with --groupby, or lower --n-genes or ingest.block_cells",
    "refine": "name fewer clusters with --clusters, or lower --n-genes",
    "report": "lower --max-cells, or leave out --label or --batch-key",
    "annotate": "the reference needs room for its labels x genes and genes x genes in float64; give fewer labels, or fewer --workers",
    "inspect": "leave out --verify",
}
"""What each command can do with less memory by."""

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MEMORY_WORDS = (
    "allocate memory",  # torch: "can't allocate memory", the system: "Cannot allocate memory"
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "unable to allocate",  # NumPy, HDF5, numba
    "memory allocation failed",
    "memory allocation of",
    "failed to allocate",
    "failed to map segment",  # a library that is loaded
    "cannot map",
    "alloc_failed",  # CUDA's libraries
)
_THREAD_WORDS = ("can't start new thread", "thread creation failed")
_AGAIN_WORDS = "resource temporarily unavailable"
"""Said of threads and processes, and of files that another process has locked."""
_NOTHING_SAID = ("without exception set", "without setting an exception")
"""Python's words for compiled code that failed and did not say why: under a limit of address space, memory that it was not given."""
_WORDED = (RuntimeError, OSError, ImportError, SystemError)
"""What other packages raise when memory ends, where they have no class for it."""
_RESERVE: list[bytearray] = []
"""Memory to tell of its end with."""
_RESERVE_BYTES = 2**23
_PASS = (MemoryLimitError, LostRankError, NumericalError, StoppedError)


def hold_reserve() -> None:
    """Set some memory aside, which `shortage` gives back: telling needs some."""
    if not _RESERVE:
        _RESERVE.append(bytearray(_RESERVE_BYTES))


def shortage(error: BaseException) -> MemoryLimitError | None:
    """Tell whether an error is one of too little memory, too few threads or too few open files.

    Parameters
    ----------
    error
        Any; what it was raised from counts too.

    Returns
    -------
    MemoryLimitError or None
        What ran out, without advice; None where nothing did, or it has been said.
    """
    _RESERVE.clear()
    found: BaseException | None = error
    seen: set[int] = set()
    is_told = False
    while found is not None and id(found) not in seen:
        if isinstance(found, _PASS):
            return None
        is_told = is_told or isinstance(found, ScamacError)
        if kind := _kind(found, is_told=is_told):
            return MemoryLimitError(kind)
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


def _kind(error: BaseException, *, is_told: bool) -> str:
    """Say what ran out, in the first words of a message; empty where nothing did.

    "Try again" that is told already, by an error of ours, is no lack of threads: a lock that another process holds has the same number.
    """
    number = error.errno if isinstance(error, OSError) else None
    words = str(error).lower() if isinstance(error, _WORDED) and not isinstance(error, ScamacError) else ""
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return f"out of memory on the GPU{_gpu_numbers()}"
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or any(part in words for part in _MEMORY_WORDS)
        or (isinstance(error, SystemError) and _is_limited() and any(part in words for part in _NOTHING_SAID))
    ):
        return f"out of memory: {peak_memory_bytes():,} bytes at the peak of this process, {memory_limit_bytes():,} allowed"
    if number in (errno.EMFILE, errno.ENFILE) or "too many open files" in words:
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"too many open files: {most} are allowed; raise the limit (ulimit -n 4096)"
    is_again = not is_told and (number == errno.EAGAIN or _AGAIN_WORDS in words)
    if is_again or any(part in words for part in _THREAD_WORDS):
        return (
            f"out of memory or of processes: no further thread can be started, with {memory_limit_bytes():,} bytes allowed; raise the limit "
            "of processes (ulimit -u)"
        )
    return ""


def _is_limited() -> bool:
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _gpu_numbers() -> str:
    try:
        cuda = sys.modules["torch"].cuda
        free, total = cuda.mem_get_info()
        return f": {cuda.max_memory_allocated():,} bytes at the peak, {total:,} in all, {free:,} free"
    except (KeyError, AttributeError, RuntimeError, AssertionError):  # no GPU after all
        return ""


def clear_frames(error: BaseException) -> None:
    """Drop what the functions that an error has left hold: it filled the memory, and telling needs some."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        traceback.clear_frames(found.__traceback__)
        seen.add(id(found))
        found = found.__cause__ or found.__context__


@contextmanager
def memory_explained(command: str, gpu: str = "") -> Iterator[None]:
    """Turn every way of running out of memory inside into one error that says what to lower.

    Parameters
    ----------
    command
        A key of `TO_LOWER`.
    gpu
        What to lower where the memory is that of a GPU; empty takes what `TO_LOWER` says.

    Raises
    ------
    MemoryLimitError
        In place of the errors of torch, NumPy, numba, HDF5, Python and the system. A process that the system kills for its memory cannot
        say anything.
    """
    try:
        yield
    except Exception as error:
        found = shortage(error)
        if found is None:
            raise
        clear_frames(error)
        raise advised(found, command, gpu) from error


def advised(found: MemoryLimitError, command: str, gpu: str = "") -> MemoryLimitError:
    """Add to what ran out what a command can be run with less by."""
    advice = gpu if gpu and "on the GPU" in str(found) else TO_LOWER.get(command, "")
    joint = ", or " if "raise the limit" in str(found) else "; "
    made = MemoryLimitError(
        f"{found}{joint}{advice}, or allow it more memory." if advice else f"{found}; allow it more memory."
    )
    made.found, made.command = str(found), command
    return made


def readvised(error: MemoryLimitError, command: str) -> MemoryLimitError:
    """Give the advice for the command that somebody has typed, which may run out of memory in a part that is another command, too."""
    if error.found and error.command != command and command in TO_LOWER:
        return advised(MemoryLimitError(error.found), command)
    return error


def explained(command: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Wrap a function in `memory_explained`."""

    def wrap(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            with memory_explained(command):
                return function(*args, **options)

        return run

    return wrap


def memory_limit_bytes() -> int:
    """Bytes that this process may use: of the machine, its container, or its own limit, whichever is least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_FILES):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError, MemoryError):  # no such file, or "max"
            continue
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    return min(limits)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
