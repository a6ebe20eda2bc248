"""Local folders in which what lies in a bucket is worked on: those of this user, closed to others, the same for all ranks of a machine."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.errors import OutputError
from scamac_scale.host.places import private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.remote.place import BucketPlace

VARIABLE = "SCAMAC_WORK_DIR"


@contextmanager
def working_in(folder: str | None) -> Iterator[None]:
    """Have work on objects be done in a folder, while the block runs; None changes nothing."""
    before = os.environ.get(VARIABLE)
    if folder:
        os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        if folder:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def work_base() -> Path:
    """Find the folder below which all work on objects is done: in ``SCAMAC_WORK_DIR``, else in that of temporary files.

    Raises
    ------
    OutputError
        If it cannot be made or written, or others can write there.
    """
    named = os.environ.get(VARIABLE)
    base = Path(named).absolute() if named else Path(tempfile.gettempdir())
    # whoever names a folder knows who can write there: those of a container are often open to all
    found = private_folder(base) or (_own_folder(base) if named else None)
    if found is None:
        raise OutputError(
            f"{base} cannot hold the local copy of what lies in a bucket: it cannot be written, or others can put something in the place of ours; "
            f"set {VARIABLE} to a folder that you can write and others cannot."
        )
    return found


def _own_folder(base: Path) -> Path | None:
    """Make, or find, a folder of this user in one that others may write, too."""
    folder = base / f"scamac-scale-{os.geteuid()}"
    try:
        base.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        about = folder.lstat()
        is_own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
        return folder if is_own and os.access(folder, os.W_OK | os.X_OK) else None
    except OSError:
        return None


def work_folder(place: BucketPlace, kind: str, *, is_made: bool = True) -> Path:
    """Name the folder for one place in a bucket.

    Parameters
    ----------
    place
        In the bucket.
    kind
        Of the work, such as ``runs``.
    is_made
        Whether it is made where it is not there: not by those who only look.

    Returns
    -------
    Path
        The same in every process of this user on this machine.

    Raises
    ------
    OutputError
        As `work_base`.
    """
    folder = work_base() / kind / f"{place.name[:60]}-{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"
    if not is_made:
        return folder
    try:
        with suppress(FileExistsError):
            folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; set {VARIABLE} to another folder.") from error
    return folder
