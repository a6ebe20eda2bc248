"""Output that is complete or absent.

Targets are checked before any work, folders are written beside their place, flushed and renamed into it, and errors of the
file system become an `OutputError` that says what to do.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

_ADVICE = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "your quota is used up; free some space or choose another disk",
    errno.EFBIG: "the file system or a limit allows no larger files; choose another disk",
    errno.EACCES: "you may not write there; choose another folder",
    errno.EPERM: "you may not write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENOENT: "the folder above it does not exist; make it first",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn an error of the file system into a message that says what to do.

    Parameters
    ----------
    path
        What was being written.
    error
        What the system said.

    Returns
    -------
    OutputError
        To be raised from `error`; its ``errno`` is kept.
    """
    reason = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "nothing was left behind; try again or choose another folder")
    found = OutputError(f"{path} cannot be written: {reason}; {advice}.")
    found.errno = error.errno
    return found


def check_output(out: str | Path, *, overwrite: bool = False, marker: str = "zarr.json") -> Path:
    """Check that a folder can be written, before any work.

    Parameters
    ----------
    out
        The folder to be written.
    overwrite
        Whether an existing folder of the same kind may be replaced.
    marker
        File by which that kind is known.

    Returns
    -------
    Path
        `out`, absolute.

    Raises
    ------
    OutputError
        If it is already there and may not be replaced, or if the folder above it is missing or not writable.
    """
    path = Path(os.path.abspath(Path(out).expanduser()))  # not resolved: a link is replaced, not what it leads to
    try:
        is_there = os.path.lexists(path)
        if is_there and not overwrite:
            raise OutputError(
                f"{path} is already there; remove it or choose another name; `ingest` and `simulate` can overwrite."
            )
        if is_there and not (path / marker).is_file():
            raise OutputError(f"{path} holds no {marker}, so it is not overwritten; remove it or choose another name.")
        if not path.parent.exists():
            raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; make it first.")
        if not path.parent.is_dir():
            raise OutputError(f"{path} cannot be written: {path.parent} is not a folder.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path} cannot be written: {path.parent} is not writable; choose another folder.")
        _probe(path)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    return path


def _probe(path: Path) -> None:
    """Make and remove a file beside the output: some folders take none, whatever their permissions say."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} cannot be written: {path.parent} takes no files ({reason}); choose another."
        ) from error


_REMOVE_TRIES = 40
_REMOVE_WAIT_S = 0.05
_ABSENT_LOOKS = 5


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every error of the file system inside into an `OutputError` about `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def atomic_folder(out: str | Path, *, overwrite: bool = False, marker: str = "zarr.json") -> Iterator[Path]:
    """Write a folder all or nothing.

    Parameters
    ----------
    out
        Where it shall lie.
    overwrite
        Whether an existing folder of the same kind is replaced; it stays until the new one is complete.
    marker
        File by which that kind is known.

    Yields
    ------
    Path
        An empty hidden folder beside `out`. When the block ends it is flushed to disk and renamed; when the block fails,
        for whatever reason, it is removed.

    Raises
    ------
    OutputError
        As `check_output`, and if flushing or renaming fails.
    """
    path = check_output(out, overwrite=overwrite, marker=marker)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        _log.warning("%s was left by a run that was killed, unless another one is writing there; remove it", stale)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with writing(path):
            partial.mkdir()
        yield partial
        with writing(path):
            flush_tree(partial)
            _move_into_place(partial, path, overwrite=overwrite)
            flush(path.parent)
    finally:  # also on KeyboardInterrupt
        _remove(partial)


def _move_into_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(path):
        partial.rename(path)
        return
    if not overwrite:
        raise OutputError(f"{path} has appeared in the meantime; remove it or choose another name.")
    old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    try:
        _remove(old)
    except BaseException:  # interrupted: try once more
        _remove(old)
        raise


def _remove(path: Path) -> None:
    """Remove a folder or a link; wait for threads that were interrupted in the middle of a write."""
    if path.is_symlink():
        path.unlink()
        return
    is_interrupted = sys.exc_info()[0] is not None
    n_absent = 0
    for _ in range(_REMOVE_TRIES):
        n_absent = 0 if path.exists() else n_absent + 1
        if n_absent == (_ABSENT_LOOKS if is_interrupted else 1):
            return
        shutil.rmtree(path, ignore_errors=True)
        if is_interrupted:
            time.sleep(_REMOVE_WAIT_S)  # a chunk under way makes its folder again


def flush_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent) / name)
        flush(Path(parent))


def flush(path: Path) -> None:
    """Force one file or folder to the disk; file systems that cannot do so for folders are let be."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
