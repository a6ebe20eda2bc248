"""Makes the nth call to the system that writes fail: n = 1, 2, 3, ... until a run passes clean.

Counted are opening for writing, making folders, writing, shortening, flushing and renaming, of Python's own file objects too
(each time they hand bytes to the system, which may be when they are closed), as far as they concern one folder and what lies
below it. Nothing of the program is replaced, only what Python gives to the system. Compiled code that writes by itself (HDF5) is
not seen.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import itertools
import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path; empty for folders."""
    return {
        path.relative_to(folder).as_posix(): "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


@dataclass
class Failing:
    """What is to fail, and what has.

    Attributes
    ----------
    folder
        Calls that concern it, or what lies below it, are counted.
    nth
        The call that fails, from 1.
    number
        Its error.
    is_lasting
        Whether every call after it fails, too, as on a disk that stays full.
    failed
        What failed: call and path.
    n_calls
        Counted so far.
    """

    folder: Path
    nth: int
    number: int
    is_lasting: bool = False
    failed: list[str] = field(default_factory=list)
    n_calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def concerns(self, path: Any) -> bool:  # Any: whatever names a file, also an open one
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        text = os.path.abspath(os.fsdecode(path))
        return text == str(self.folder) or text.startswith(f"{self.folder}/")

    def count(self, call: str, *paths: Any) -> None:
        if not any(self.concerns(path) for path in paths):
            return
        with self._lock:
            self.n_calls += 1
            is_hit = self.n_calls == self.nth or (self.is_lasting and self.n_calls > self.nth)
            if is_hit:
                self.failed.append(f"{call} {paths[-1]}")
        if is_hit:
            raise OSError(self.number, os.strerror(self.number), str(paths[0]))


@contextmanager
def failing(folder: Path, nth: int, number: int, *, is_lasting: bool = False) -> Iterator[Failing]:
    """Make one call fail while the block runs; see `Failing`."""
    state = Failing(Path(os.path.abspath(folder)), nth, number, is_lasting)
    true_open, true_os_open = io.open, os.open

    class Raw(io.FileIO):
        def write(self, content: Any) -> Any:
            state.count("write", self.name)
            return super().write(content)

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        is_ours = not isinstance(file, int) and set(mode) & set("wax+") and state.concerns(file)
        if not is_ours or "opener" in options:
            return true_open(file, mode, buffering, *args, **options)
        state.count("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

    def open_descriptor(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & WRITES and options.get("dir_fd") is None:
            state.count("open", path)
        return true_os_open(path, flags, *args, **options)

    def counted(name: str, n_paths: int) -> Callable[..., Any]:
        true_call = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            state.count(name, *args[:n_paths])
            return true_call(*args, **options)

        return call

    calls = {"mkdir": 1, "write": 1, "pwrite": 1, "truncate": 1, "ftruncate": 1, "fsync": 1}
    calls |= {"rename": 2, "replace": 2, "link": 2}
    with ExitStack() as stack:
        for name, n_paths in calls.items():
            stack.enter_context(mock.patch.object(os, name, counted(name, n_paths)))
        stack.enter_context(mock.patch.object(os, "open", open_descriptor))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", open_file))
        # or NumPy would write past the file object
        numpy_files = sys.modules.get("numpy.lib._format_impl", np.lib.format)
        stack.enter_context(mock.patch.object(numpy_files, "isfileobj", return_value=False))
        yield state


def failures(
    run: Callable[[], object], folder: Path, number: int, *, step: int = 1, is_lasting: bool = False
) -> Iterator[tuple[Failing, BaseException | None]]:
    """Run again and again, each time with a later call failing, until a run passes clean.

    Parameters
    ----------
    run
        Starts from the same state each time; what it needs for that is the caller's business between two results.
    folder
        As of `Failing`; nothing outside is touched.
    number
        The error.
    step
        Calls between two that fail: 1 tries them all.
    is_lasting
        As of `Failing`.

    Yields
    ------
    state : Failing
        What failed.
    error : BaseException or None
        What `run` raised; None where it got over the failure. The clean run is not handed out, but must not raise.
    """
    for nth in itertools.count(1, step):
        error: BaseException | None = None
        with failing(folder, nth, number, is_lasting=is_lasting) as state:
            try:
                run()
            except Exception as raised:  # noqa: BLE001 - whatever it is, the caller judges it
                error = raised
        if not state.failed:
            if error is not None:
                raise AssertionError(f"a run without a failure, of {state.n_calls} calls, failed") from error
            return
        yield state, error
