"""One writer for each output: a lock that its owner's death opens, without any clock.

The kernel holds it (`flock`), so it ends with the process whatever ends that: a killed job's lock is free at once, on a network
file system as soon as its server has given the dead machine up. What stands in the file is for messages only. Where a file
system knows no `flock`, the recorded owner is looked up instead: host, boot, pid and the start of the process. The owner of
another machine cannot be looked up, and counts as alive there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import LockedError, OutputError, output_error

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL})
"""What file systems say that know no `flock`."""
_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
_MAX_BYTES = 4096
_COMMAND_LETTERS = 400

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
            path.unlink()
        if handle is not None:
            os.close(
                handle
            )  # last: whoever got hold of the removed file meanwhile sees that it is not the one in place


def _acquire(path: Path, what: str | Path) -> int | None:
    """Lock the file that lies at `path`; give it, open, or None where the file itself is the lock."""
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
            _take_over(path, what)
            return None


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


def _take_over(path: Path, what: str | Path) -> None:
    """Make the file name this process, unless the one that it names is alive: for file systems without `flock`."""
    own = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    dead = own.with_name(f"{own.name}.dead")
    handle = os.open(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        _write(handle)
        while not _try_to_take_over(path, own, dead, what):
            pass
    finally:
        os.close(handle)
        own.unlink()


def _try_to_take_over(path: Path, own: Path, dead: Path, what: str | Path) -> bool:
    """Put `own` in the place of a dead owner's file; False where somebody else has changed it meanwhile."""
    found = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        owner = _read(found)
        if owner and _is_alive(owner):
            raise _refusal(what, owner)
        os.rename(path, dead)  # of several who try, one gets it
        if not os.path.samestat(os.fstat(found), os.stat(dead)):  # somebody was faster: this is the new owner's
            os.rename(dead, path)
            return False
        os.unlink(dead)
        os.link(own, path)
    except (FileNotFoundError, FileExistsError):
        return False
    finally:
        os.close(found)
    return True


def _write(handle: int) -> None:
    text = json.dumps(_this_process()).encode()[:_MAX_BYTES]
    if os.pwrite(handle, text, 0) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(handle, len(text))


def _read(handle: int) -> Owner:
    """Who stands in the file; nothing where it is being written or damaged."""
    try:
        found = json.loads(os.pread(handle, _MAX_BYTES, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(what: str | Path, owner: Owner) -> LockedError:
    if not owner:
        return LockedError(f"{what} is being written by another job; wait for it, or stop it.")
    return LockedError(
        f"{what} is being written by another job: host {owner.get('host')}, pid {owner.get('pid')}, since "
        f"{owner.get('since')} ({owner.get('command')}); wait for it, or stop it."
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
