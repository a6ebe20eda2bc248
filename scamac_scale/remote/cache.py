"""Objects kept as files on the local disk: bounded, shared by all processes of the machine, each fetched by one of them.

A file is named by where its object lies and by its etag, so that another object of the same name is another file. It gets its name
when it is whole. The least recently used file goes first; whoever has it open reads on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.durable.plain import digest_of_file
from scamac_scale.errors import ConfigError, OutputError
from scamac_scale.host.places import private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.remote.bucket import Bucket, Entry

_log = logging.getLogger(__name__)

FOLDER_VARIABLE, BYTES_VARIABLE = "SCAMAC_CACHE_DIR", "SCAMAC_CACHE_BYTES"
CACHE_BYTES = 2**36
_NAME = "objects"
_PARTIAL, _LOCK = ".partial", ".lock"
TOUCH_S = 5.0
"""Seconds between two notes that a file is in use."""
LEFT_S = 600.0
"""Seconds after which a part of a file that nobody writes on is what a killed process has left."""
SPARE_BYTES = 2**28
"""Of the disk, that are left free."""


def limit_bytes() -> int:
    """Read how much of the disk the cache may take: ``SCAMAC_CACHE_BYTES``, else 64 GiB.

    Raises
    ------
    ConfigError
        If it is no whole number above 0.
    """
    text = os.environ.get(BYTES_VARIABLE, "")
    if not text:
        return CACHE_BYTES
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 19 and int(text) > 0):
        raise ConfigError(
            f"{BYTES_VARIABLE}={text[:40]!r} is no number of bytes; set it to one, such as {CACHE_BYTES}."
        )
    return int(text)


def cache_folder() -> Path:
    """Find the folder of the cache, closed to other users: in ``SCAMAC_CACHE_DIR``, else ``XDG_CACHE_HOME``, ``~/.cache`` or ``TMPDIR``.

    Raises
    ------
    ConfigError
        If there is none that this user can write and others cannot.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    home = os.environ.get("HOME")
    bases = (
        [named]
        if named
        else [os.environ.get("XDG_CACHE_HOME"), home and f"{home}/.cache", os.environ.get("TMPDIR"), "/tmp"]
    )
    for base in filter(None, bases):
        if os.path.isabs(base) and (found := private_folder(Path(base))) is not None:
            folder = found / _NAME
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                return folder
    raise ConfigError(
        f"there is no folder for copies of objects; set {FOLDER_VARIABLE} to the full path of one that you can write and others cannot"
        f"{f' (it is {named!r})' if named else ''}."
    )


class CachedFile:
    """The copy of one object, there or not.

    Attributes
    ----------
    bucket, entry
        Of the object.
    sha256
        Of its content, where that is known: an object that has another one is refused.
    path
        Of the copy.
    """

    def __init__(self, cache: FileCache, bucket: Bucket, entry: Entry, sha256: str, path: Path) -> None:
        self.bucket, self.entry, self.sha256, self.path = bucket, entry, sha256, path
        self._cache = cache
        self._name = str(path)
        self._touched_s = 0.0

    def open(self) -> int:
        """Open it for reading, after fetching it if it is not there.

        Returns
        -------
        int
            A handle, to be closed by the caller.

        Raises
        ------
        FileNotFoundError
            If the object is gone.
        OutputError
            If the disk has no room, or the folder cannot be written.
        ScamacError
            As `Bucket.fetch`.
        """
        try:
            return self.open_copy()
        except FileNotFoundError:
            return self._cache.fetch(self)

    def open_copy(self) -> int:
        """Open it where it is there; FileNotFoundError elsewhere."""
        handle = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            now_s = time.monotonic()
            if now_s - self._touched_s > TOUCH_S:
                about = os.fstat(handle)
                if about.st_size != self.entry.size:
                    self.forget()
                    raise FileNotFoundError(self._name)
                os.utime(
                    handle, ns=(time.time_ns(), about.st_mtime_ns)
                )  # used; the latter tells whether it is this file
                self._touched_s = now_s
        except BaseException:
            os.close(handle)
            raise
        return handle

    def forget(self) -> None:
        """Remove it: it is damaged."""
        self._touched_s = 0.0
        self.path.unlink(missing_ok=True)


class FileCache:
    """Files of objects.

    Parameters
    ----------
    folder
        See `cache_folder`.
    limit_bytes
        Of all files; one that is larger is kept alone.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes

    def file(self, bucket: Bucket, entry: Entry, sha256: str = "") -> CachedFile:
        """Name the file of an object, as a listing of this bucket showed it, and as it must be; nothing is fetched yet."""
        what = f"{bucket.place / entry.key}\n{entry.etag}\n{entry.size}" + (f"\n{sha256}" if sha256 else "")
        return CachedFile(self, bucket, entry, sha256, self._folder / hashlib.sha256(what.encode()).hexdigest())

    def fetch(self, file: CachedFile) -> int:
        """Fetch a file, unless another has done so meanwhile; returns it open."""
        while True:
            with self._locked(file.path):
                try:
                    return file.open_copy()
                except FileNotFoundError:
                    self._fetch(file)
            with suppress(FileNotFoundError):  # else another process made room of it at once
                return file.open_copy()

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Be the only one who fetches a file; the lock ends with its owner."""
        lock = path.with_name(path.name + _LOCK)
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}; see {FOLDER_VARIABLE}.") from error
        try:
            with suppress(OSError):  # a file system without locks: then several may fetch, each into a file of its own
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)  # the file stays, empty: another may be waiting for it

    def _fetch(self, file: CachedFile) -> None:
        bucket, entry, path = file.bucket, file.entry, file.path
        self._make_room(entry.size)
        partial = path.with_name(f"{path.name}{_PARTIAL}.{os.getpid()}.{uuid.uuid4().hex}")
        try:
            bucket.fetch(entry.key, partial, entry)
        except OutputError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._make_room(entry.size, limit=0)  # others fill this disk, too
            bucket.fetch(entry.key, partial, entry)
        if file.sha256 and digest_of_file(partial) != file.sha256:
            partial.unlink()
            raise bucket.blames(
                f"{bucket.place / entry.key} is of another store, or damaged: it is not what was written (wrong SHA-256); write the store again with "
                "`scamac-scale ingest`."
            )
        partial.replace(path)
        _log.info("%s is kept as %s", bucket.place / entry.key, path)

    def _make_room(self, n_bytes: int, limit: int | None = None) -> None:
        """Remove the files that were used longest ago, until there is room for so many bytes."""
        limit = self._limit if limit is None else limit
        found = []
        with os.scandir(self._folder) as entries:
            for item in entries:
                with suppress(FileNotFoundError):
                    about = item.stat(follow_symlinks=False)
                    if item.name.endswith(_LOCK):
                        continue
                    if _PARTIAL in item.name and time.time() - about.st_mtime > LEFT_S:
                        os.unlink(item.path)  # its writer was killed
                        continue
                    found.append((about.st_atime_ns, about.st_size, item.path))
        total = sum(size for _, size, _ in found)
        free = shutil.disk_usage(self._folder).free
        for _, size, path in sorted(found):
            if total + n_bytes <= limit and free >= n_bytes + SPARE_BYTES:
                return
            if _PARTIAL in path:
                continue
            with suppress(FileNotFoundError):
                os.unlink(path)
                with suppress(FileNotFoundError):
                    os.unlink(path + _LOCK)
            total, free = total - size, free + size
