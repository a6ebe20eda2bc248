"""One writer for each output: a lock that its owner's death opens, without any clock.

The kernel holds it (`flock`), so it ends with the process whatever ends that: a killed job's lock is free at once, on a network
file system as soon as its server has given the dead machine up. What stands in the file is for messages only. Where a file
system knows no `flock`, the recorded owner is looked up instead: host, boot, pid and the start of the process. The owner of
another machine cannot be looked up, and counts as alive there, until somebody who knows better removes the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.plain import parse_json
from scamac_scale.errors import LockedError, OutputError, output_error

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL})
"""What file systems say that know no `flock`."""
_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
_MAX_BYTES = 4096
_COMMAND_LETTERS = 400
GUARD = "taking"
"""Ends the name of the file that is held while a dead owner's is replaced."""

Owner = dict[str, Any]
"""host, boot, pid, ticks (start of the process since the boot), since (for people), command."""


def lock_file(out: str | Path) -> Path:
    """Name the file beside an output that is locked while it is written."""
    path = Path(out)
    return path.with_name(f".{path.name}.lock")


@contextmanager
def lock(file: str | Path, what: str | Path) -> Iterator[None]:
    """Be the only one who writes something.

    Parameters
    ----------
    file
        What is locked: `lock_file` of an output, or a file of that kind inside a folder. Made here, and removed at the end.
    what
        What is written, for the message.

    Raises
    ------
    LockedError
        If another job holds it, which is named with host, pid and start.
    OutputError
        If the file cannot be made.

    Notes
    -----
    Holds in one process, too: a second lock of the same file is refused there. A process that was forked off keeps it, one
    that was started anew does not.
    """
    path = Path(file)
    try:
        handle = _acquire(path, what)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the next one takes over a file that could not be removed
            if _is_in_place(handle, path):  # not removed by hand, and another's now
                path.unlink()
        os.close(handle)  # last: whoever got hold of the removed file meanwhile sees that it is not the one in place


def _acquire(path: Path, what: str | Path) -> int:
    """Lock the file that lies at `path`; give it, open."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            is_locked = _flock(handle, what)
            if is_locked and _is_in_place(handle, path):
                try:
                    _write(handle)
                except BaseException:  # no room for a few bytes, or a signal
                    path.unlink()
                    raise
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not is_locked:
            return _take_over(path, what)


def _flock(handle: int, what: str | Path) -> bool:
    """Lock an open file; False where the file system has no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise _refusal(what, _read(handle)) from error
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is_in_place(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has its name, and not one that its last owner has just removed."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _take_over(path: Path, what: str | Path) -> int:
    """Make the file name this process, unless the one that it names is alive: for file systems without `flock`."""
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    handle = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _write(handle)
            _claim(path, own, what)
        finally:
            own.unlink()
    except BaseException:
        if _is_in_place(handle, path):
            path.unlink()
        os.close(handle)
        raise
    return handle


def _claim(path: Path, own: Path, what: str | Path) -> None:
    """Give `path` the content of `own`, where there is none, or one of a dead owner.

    Notes
    -----
    A file appears by `link`, whole, and only where there is none. One of a dead owner is replaced, in one step, with its guard, by
    whoever has claimed that, and by nobody else; so it is still the one that was read. A guard is claimed in the same way: that of
    somebody who died over it is replaced by whoever has claimed the guard's guard.
    """
    guard = path.with_name(f"{path.name}.{GUARD}")
    while not _link(own, path):
        if (owner := _owner(path)) is None:
            continue  # it has just been released
        if _is_alive(owner):
            raise _refusal(what, owner, path)
        _claim(guard, own, what)
        try:
            owner = _owner(path)
            if owner is not None and not _is_alive(owner):  # or somebody was faster
                guard.replace(path)  # it is `own`, too
                return
        except BaseException:
            guard.unlink(missing_ok=True)
            raise
        guard.unlink()


def _link(own: Path, path: Path) -> bool:
    """Give a file a second name; False where that is taken."""
    try:
        os.link(own, path)
    except FileExistsError:
        with suppress(FileNotFoundError):
            return os.path.samestat(own.lstat(), path.lstat())  # NFS repeats a call whose answer was lost
        return False
    return True


def _owner(path: Path) -> Owner | None:
    """Who stands in the file of that name; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _read(handle)
    finally:
        os.close(handle)


def _write(handle: int) -> None:
    text = json.dumps(_this_process()).encode()[:_MAX_BYTES]
    if os.pwrite(handle, text, 0) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(handle, len(text))


def _read(handle: int) -> Owner:
    """Who stands in the file; nothing where it is being written or damaged."""
    try:
        return parse_json(os.pread(handle, _MAX_BYTES, 0))
    except ValueError:
        return {}


def _refusal(what: str | Path, owner: Owner, file: Path | None = None) -> LockedError:
    """Make the error; `file` is the one that keeps a job out whether it is locked or not."""
    named = f": host {owner.get('host')}, pid {owner.get('pid')}, since {owner.get('since')} ({owner.get('command')})"
    rest = "" if file is None else f" If that job is surely gone, remove {file}, which its end did not remove."
    return LockedError(
        f"{what} is being written by another job{named if owner else ''}; wait for it, or stop it.{rest}"
    )


def _this_process() -> Owner:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "ticks": _ticks(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(sys.orig_argv)[:_COMMAND_LETTERS],
    }


def _is_alive(owner: Owner) -> bool:
    """Whether a recorded owner still runs; one of another machine counts as alive, for nobody can tell from here."""
    if not owner:
        return False  # owners' files appear whole: nobody has this one, or it is damaged
    if owner.get("host") != socket.gethostname():
        return True
    pid = owner.get("pid")
    return owner.get("boot") == _boot() and isinstance(pid, int) and owner.get("ticks") == _ticks(pid) is not None


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _ticks(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if there is none. A zombie has ended."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
        return None if fields[0] in "ZX" else int(fields[19])
    return None
