"""Local copies of small folders of a bucket, kept by their etags: what was fetched once is not fetched again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.errors import InputError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.work import work_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.remote.place import BucketPlace

KEPT_FOLDERS = 16
"""Copies that are kept, of all places together."""
IN_USE_S = 3600.0
"""Seconds for which a copy stays whatever their number: another process may read it."""


def fetched(place: BucketPlace, names: Sequence[str], kind: str, n_kept: int = KEPT_FOLDERS) -> Path:
    """Give a local folder with some objects of a place.

    Parameters
    ----------
    place
        A folder in a bucket.
    names
        Of the objects.
    kind
        What it is, such as ``model``: for the message, and for the place on the disk.
    n_kept
        Copies of this kind that are kept.

    Returns
    -------
    Path
        A folder that nothing is written to any more; the objects are those of one look at their etags.

    Raises
    ------
    InputError
        If an object is missing, or cannot be read.
    OutputError
        If there is no place for the copy.
    """
    bucket = Bucket(place)
    entries = [bucket.find(name) for name in names]
    missing = [name for name, entry in zip(names, entries, strict=True) if entry is None]
    if missing:
        raise InputError(f"there is no {kind} at {place}: it has no {missing[0]}.")
    told = [f"{entry.key} {entry.size} {entry.etag}" for entry in entries if entry is not None]
    home = work_folder(place, f"{kind}s")
    target = home / hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
    if not target.is_dir():
        partial = Path(tempfile.mkdtemp(dir=home))
        try:
            for name, entry in zip(names, entries, strict=True):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                bucket.fetch(name, partial / name, entry)
            with suppress(OSError):  # another process was faster
                partial.rename(target)
        except FileNotFoundError:
            raise InputError(f"the {kind} at {place} was removed while it was read; run again.") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):
        os.utime(target)
    _tidy(home.parent, target, n_kept)
    return target


def _tidy(root: Path, current: Path, n_kept: int) -> None:
    """Remove the copies that were not asked for in the longest time."""
    ages: list[tuple[float, Path]] = []
    for path in root.glob("*/*"):
        with suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    for modified_s, path in sorted(ages, reverse=True)[n_kept:]:
        if path != current and time.time() - modified_s > IN_USE_S:
            shutil.rmtree(path, ignore_errors=True)
