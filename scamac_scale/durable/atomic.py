"""Output that is complete or absent.

Targets are checked before any work, folders are written beside their place by one writer at a time, flushed and renamed into
it, and errors of the file system become an `OutputError` that says what to do.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.durable.faults import reach
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.locks import lock, lock_file
from scamac_scale.errors import OutputError, output_error

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)


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
    path = absolute(out)
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
_NEW, _OLD = "new", "old"
"""In a partial folder: what is written, and for a moment what it replaces."""
_OF_FILES = (".h5ad", ".h5", ".loom", ".csv", ".parquet")
"""Names that a folder never has: who gives one expects a file."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fs.h


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every error of the file system inside into an `OutputError` about `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def absolute(out: str | Path) -> Path:
    """Make a path absolute, but do not resolve it: a link is replaced, not what it leads to."""
    return Path(os.path.abspath(at_home(out)))


def partial_folder(out: str | Path) -> Path:
    """Name the hidden folder beside an output in which it is made; after the end it is there only if the work can go on."""
    path = absolute(out)
    return path.with_name(f".{path.name}.partial")


@contextmanager
def scratch_folder(
    out: str | Path, *, resumes: bool = False, keeps_on: tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """Make a hidden folder beside an output, for one writer at a time.

    Parameters
    ----------
    out
        What is going to be written.
    resumes
        Whether what a writer that was stopped has left is taken over as it is; otherwise it is removed.
    keeps_on
        Exceptions that leave the folder, for a writer that resumes.

    Yields
    ------
    Path
        `partial_folder` of `out`. Removed at the end, however the block ends but for `keeps_on`.

    Raises
    ------
    OutputError
        If another job is writing `out`, or the folder cannot be made.
    """
    path = absolute(out)
    partial = partial_folder(path)
    with lock(lock_file(path), path):
        try:
            with writing(path):
                _restore(partial, path)
                _remove(_gone(partial))
                if os.path.lexists(partial) and (partial.is_symlink() or not resumes):
                    _log.info("%s: what a stopped run has left is removed, it is begun anew", path)
                    _remove(partial)
                partial.mkdir(exist_ok=True)
            yield partial
        except keeps_on:
            raise
        except BaseException:
            with suppress(OSError):
                _restore(partial, path)
            if os.path.lexists(path) or not os.path.lexists(partial / _OLD):  # else the next writer puts it back
                _remove(partial)
            raise
        with suppress(OSError):  # the output is in its place, whatever happens now
            partial.rename(_gone(partial))  # in one step: nobody takes half of it for work to go on with
        for rest in (_gone(partial), partial):
            _remove(rest)


def _gone(partial: Path) -> Path:
    return partial.with_suffix(".gone")


@contextmanager
def atomic_folder(
    out: str | Path,
    *,
    overwrite: bool = False,
    marker: str = "zarr.json",
    resumes: bool = False,
    keeps_on: tuple[type[BaseException], ...] = (),
    rename_point: str | None = None,
) -> Iterator[Path]:
    """Write a folder all or nothing, one writer at a time.

    Parameters
    ----------
    out
        Where it shall lie.
    overwrite
        Whether an existing folder of the same kind is replaced; it stays until the new one is complete.
    marker
        File by which that kind is known.
    resumes, keeps_on
        As of `scratch_folder`.
    rename_point
        Of `faults.POINTS`: passed before the folder gets its name.

    Yields
    ------
    Path
        A folder inside `partial_folder` of `out`, empty unless `resumes`; what lies beside it there goes at the end. When
        the block ends it is flushed to disk and renamed; when the block fails, for whatever reason, all is removed.

    Raises
    ------
    OutputError
        As `check_output` and `scratch_folder`; if the name is one of a file; and if flushing or renaming fails: never once it has its name.
    """
    path = check_output(out, overwrite=overwrite, marker=marker)
    if path.suffix.lower() in _OF_FILES:
        raise OutputError(
            f"{path} would be a folder with the name of a file; name it {path.with_suffix('.zarr').name}."
        )
    with scratch_folder(path, resumes=resumes, keeps_on=keeps_on) as partial:
        check_output(path, overwrite=overwrite, marker=marker)  # another job may have written it while we came here
        new = partial / _NEW
        with writing(path):
            new.mkdir(exist_ok=True)
        yield new
        with writing(path):
            flush_tree(new)
            flush(path.parent)  # whether the disk takes names at all is found out before there is one
            if rename_point is not None:
                reach(rename_point)
            _move_into_place(new, path, overwrite=overwrite)
            flush_name(path)


def _move_into_place(new: Path, path: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(path):
        new.rename(path)
        return
    if not overwrite:
        raise OutputError(f"{path} has appeared in the meantime; remove it or choose another name.")
    if _exchange(new, path):
        return
    old = new.with_name(_OLD)
    path.rename(old)  # a kill here leaves no output: the next writer puts it back
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    with suppress(OSError):  # it is replaced; the old one goes with the partial folder
        old.rename(new)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, where system and file system can, so that there is no moment without an output."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _restore(partial: Path, path: Path) -> None:
    """Put back an output whose writer was killed between its two renames."""
    if os.path.lexists(partial / _OLD) and not os.path.lexists(path):
        (partial / _OLD).rename(path)


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


def check_room(target: Path, n_bytes: int) -> None:
    """Refuse a target, or a folder, whose disk has less than `n_bytes` free."""
    free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    if free < n_bytes:
        advice = "write .zarr, or make room" if target.suffix == ".h5ad" else "make room, or choose another disk"
        raise OutputError(f"{target} needs up to {n_bytes:,} bytes, {free:,} are free; {advice}.")


def bytes_below(folder: Path) -> int:
    """Space that the files of a folder take; 0 where there is none."""
    n_blocks = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another job may be removing them
            n_blocks += path.lstat().st_blocks
    return 512 * n_blocks


@contextmanager
def atomic_file(
    path: Path, *, partial: Path | None = None, rename_point: str | None = None, is_result: bool = False
) -> Iterator[Path]:
    """Write a file that is complete or as it was, also when the machine stops.

    Parameters
    ----------
    path
        The file; one that is there is replaced.
    partial
        Where it is written, in the same folder; None has a name of its own for each file.
    rename_point
        Of `faults.POINTS`: passed when it is on the disk, before it gets its name.
    is_result
        Whether it says that all work is done: then no error follows once it has its name, as of `atomic_folder`.

    Yields
    ------
    Path
        `partial`; removed where the system lets it not be written.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    try:
        yield partial
        flush(partial)
        if is_result:
            flush(path.parent)
        if rename_point is not None:
            reach(rename_point)
        partial.replace(path)
        if is_result:
            flush_name(path)
        else:
            flush(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def flush_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent) / name)
        flush(Path(parent))


def flush_name(path: Path) -> None:
    """Force the name that an output has just got to the disk; where the disk refuses, only say so.

    The output is complete and in its place. An error now would tell of a failure that left a result.
    """
    try:
        flush(path.parent)
    except OSError as error:
        _log.warning(
            "%s is complete, but the disk does not confirm its name (%s); should the machine stop soon, see whether it is there",
            path,
            error.strerror or error,
        )


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
