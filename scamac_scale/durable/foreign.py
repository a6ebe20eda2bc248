"""What a path or a folder of a stranger may be: plain files and folders, nothing that waits for ever or leads elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What is no file and no folder; opening one may wait for ever."""


def at_home(path: str | os.PathLike[str]) -> Path:
    """Take ``~`` as the home of the user, as a shell does.

    Parameters
    ----------
    path
        As it was given.

    Returns
    -------
    Path
        The same where it has no ``~`` in front, or nobody knows that home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home, or no such user: then there is nothing at that path, and this is what is said
        return Path(path)


def odd_kind(path: Path) -> str | None:
    """Name what a path is if it is there, and neither a file nor a folder; it is not opened.

    Parameters
    ----------
    path
        Links are followed.

    Returns
    -------
    str or None
        Such as ``a named pipe (FIFO)``.
    """
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):
        return None


def foreign_entry(folder: Path) -> tuple[str, str] | None:
    """Look for what a folder of data must not hold, without opening a file.

    Parameters
    ----------
    folder
        May itself be a link.

    Returns
    -------
    tuple of str, or None
        Path below the folder of the first such entry, and what it is: a link that leads out or to nothing, a pipe, a socket, a device.

    Raises
    ------
    OSError
        If a folder cannot be listed.

    Notes
    -----
    One ``scandir`` of each folder and no look at plain files: some 0.2 s for 100,000 entries. A link to a place inside is sound;
    what it leads to is looked at where it lies. Hard links cannot be told from files.
    """
    root = os.path.realpath(folder)
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if why := _strays(entry.path, root):
                        return os.path.relpath(entry.path, root), why
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    mode = entry.stat(follow_symlinks=False).st_mode
                    return os.path.relpath(entry.path, root), KINDS.get(stat.S_IFMT(mode), "no plain file")
    return None


def _strays(link: str, root: str) -> str | None:
    try:
        target = os.path.realpath(link, strict=True)
    except OSError:  # nothing there, or a circle
        return "a link that leads to nothing"
    if target.startswith(root + os.sep):
        return None
    return "a link that leads out of the folder"
