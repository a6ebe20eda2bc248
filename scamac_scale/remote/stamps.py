"""Whether a file or a folder is still what it was when it was looked at first; for other processes, which look again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError, ScamacError
from scamac_scale.remote.bucket import stamp_of
from scamac_scale.remote.place import is_url, parse

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


@dataclass(frozen=True)
class Stamp:
    """What tells a file, a folder or an object from a changed one.

    Attributes
    ----------
    path
        Where it lies.
    n_bytes
        Of a file; of a folder the number of entries below it.
    changed
        When a file was changed, nanoseconds; of a folder a digest of names, sizes and times of all that is below it.
    """

    path: str
    n_bytes: int
    changed: int | str

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Look at a file or a folder; raises OSError where it cannot be seen."""
        if is_url(path):
            n_bytes, etag, _ = stamp_of(parse(path))
            return cls(path, n_bytes, etag)
        place = Path(path)
        status = place.stat()
        if not place.is_dir():
            return cls(path, status.st_size, status.st_mtime_ns)
        below = [(entry.relative_to(place), _status(entry)) for entry in sorted(place.rglob("*"))]
        told = (f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in below)
        return cls(path, len(below), sha256_of(*told))

    def check(self, when: str = "since it was opened first") -> None:
        """Look again; raises InputError if it is gone, or was changed."""
        try:
            found = Stamp.of(self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be seen ({error.strerror or error}).") from error
        if found != self:
            raise InputError(f"{self.path} was changed {when}; begin anew.")


def looks_at(paths: Iterable[str]) -> tuple[Stamp, ...]:
    """Look at files and folders before they are opened; none where one cannot be seen: who opens it says why."""
    try:
        return tuple(map(Stamp.of, paths))
    except ScamacError:
        raise
    except (OSError, ValueError):  # a path with a zero byte
        return ()


def check_unchanged(stamps: Iterable[Stamp]) -> None:
    """Look again at the end of all reading, for what was read may be of two files; raises InputError if one was changed."""
    for stamp in stamps:
        stamp.check("while it was read")


def _status(path: Path) -> os.stat_result:
    """Look at an entry of a folder; at a link itself where it leads nowhere."""
    with suppress(OSError):
        return path.stat()
    return path.lstat()
