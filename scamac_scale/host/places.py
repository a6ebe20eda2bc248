"""A folder for compiled code that nobody else can write: such files are pickles, and who writes them runs code here."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "scamac-scale"
SHIPPED = "SCAMAC_KERNELS_DIR"
"""Names a folder of compiled code that an image brings; read, never written."""
REMEDY = "set NUMBA_CACHE_DIR to a folder that you can write and others cannot"

logger = logging.getLogger(__name__)


@functools.cache
def code_folder() -> Path | None:
    """Find where compiled code is kept, once for a process.

    Returns
    -------
    Path or None
        A folder of this user that is closed to others (0700), below folders that nobody but this user and root can change: in
        ``NUMBA_CACHE_DIR``, else ``XDG_CACHE_HOME``, ``~/.cache``, or the folder for temporary files. None where there is none; this is
        logged.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    for base in _bases():
        found = private_folder(base)
        if found is not None:
            with suppress(OSError):
                return _version_folder(found)
        if named and base == _absolute(named):
            logger.warning(
                "NUMBA_CACHE_DIR=%s is not used for compiled code: it cannot be written, or others can write there; name a folder of your own",
                named,
            )
    logger.info("there is no place to keep compiled code, so that each start takes some seconds more; %s", REMEDY)
    return None


def _bases() -> Iterator[Path]:
    """Folders that may hold ours, by preference."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        path = os.environ.get(name)
        if path and (name == "NUMBA_CACHE_DIR" or os.path.isabs(path)):
            yield _absolute(path)
    with suppress(RuntimeError, OSError):  # a user without a home
        home = Path.home()
        if home.is_absolute() and home.is_dir():
            yield home / ".cache"
    for path in dict.fromkeys((os.environ.get("TMPDIR"), "/tmp", "/var/tmp")):
        if path and os.path.isdir(path):
            yield _absolute(path)


def _absolute(path: str) -> Path:
    with suppress(RuntimeError):  # no home
        return Path(path).expanduser().absolute()
    return Path(path).absolute()


def private_folder(base: Path) -> Path | None:
    """Make, or find, a folder of this user in another one.

    Parameters
    ----------
    base
        Made, closed to others, where it is missing.

    Returns
    -------
    Path or None
        Its real path, without links; None where it cannot be made or written, or is not safe from others.
    """
    user = os.geteuid()
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        real = Path(os.path.realpath(base, strict=True))
        name = f"{NAME}-{user}"
        folder = real if real.name == name else real / name
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not _is_own(folder, user) or not all(_is_kept_by_owner(above, user) for above in folder.parents):
            return None
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except (OSError, ValueError):  # ValueError: a null byte in a name
        return None
    return folder


def _is_own(folder: Path, user: int) -> bool:
    """Whether it is a real folder of this user, in which nobody else can have written."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022


def _is_kept_by_owner(folder: Path, user: int) -> bool:
    """Whether nobody but root and this user can put another folder in the place of one in it."""
    found = folder.lstat()
    # whoever owns "/" can do all of it; in a container without root that is not user 0
    is_trusted = found.st_uid in (0, user, Path("/").stat().st_uid)
    return is_trusted and (not found.st_mode & 0o022 or bool(found.st_mode & stat.S_ISVTX))


def _version_folder(folder: Path) -> Path:
    """One for each version of `cells`: numba sees that a kernel's own file has changed, but not those of the kernels that it calls."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "cells").glob("*.py")):
        digest.update(path.read_bytes())
    found = folder / digest.hexdigest()[:16]
    if os.environ.get(SHIPPED) and not found.exists():
        _take_shipped(found)
    found.mkdir(exist_ok=True, mode=0o700)
    return found


def _take_shipped(found: Path) -> None:
    """Begin with the compiled code that an image brings: a copy, for numba keeps nothing in a folder that it cannot write.

    Nothing is taken where others can have written it; then it is compiled as elsewhere.
    """
    user = os.geteuid()
    with suppress(OSError):  # not there, no room, or another process was first
        shipped = Path(os.path.realpath(Path(os.environ[SHIPPED], found.name), strict=True))
        if not all(_is_kept_by_owner(above, user) for above in shipped.parents):
            return
        if not all(_is_shipped_safely(path, user) for path in (shipped, *shipped.rglob("*"))):
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=found.parent) as folder:
            shutil.copytree(shipped, Path(folder, found.name)).rename(found)


def _is_shipped_safely(path: Path, user: int) -> bool:
    """Whether it is a folder or a file that none but root and this user can have written."""
    mode = path.lstat().st_mode
    return (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and not mode & 0o022 and _is_kept_by_owner(path, user)
