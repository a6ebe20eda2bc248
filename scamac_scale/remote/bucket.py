"""Objects of a bucket: looked at, listed, read, fetched, put and removed; each call is done again where it fails in passing.

Objects are whole or absent: a reader sees the old one or the new one, never a part. There is no renaming. What must be told apart
from an older object of the same name is read with its etag.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from scamac_scale.errors import InputError, OutputError, PlanError, ScamacError, output_error
from scamac_scale.remote.client import Client, connect
from scamac_scale.remote.patience import attempt
from scamac_scale.remote.place import BucketPlace, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

PIECE_BYTES = 8 * 2**20
"""Of an object that is fetched or put piece by piece."""
THREADS = 4
"""Pieces that are on their way at once: memory is `THREADS` of `PIECE_BYTES`."""
MAX_READ_BYTES = 2**30
"""Of an object that is read whole."""
_MAX_PARTS = 9000
_DELETE_TOGETHER = 500

Put = Literal["created", "same", "other"]


@dataclass(frozen=True)
class Entry:
    """An object, as a listing shows it.

    Attributes
    ----------
    key
        Below the place that the bucket was opened at.
    size
        Bytes.
    etag
        Changes with the content, as the storage writes it, with quotes; empty where it gives none.
    modified_ns
        When it was put, nanoseconds since 1970, to the second.
    """

    key: str
    size: int
    etag: str
    modified_ns: int = 0


def part_bytes(size: int) -> int:
    """Bytes of each part of a large object: a storage takes 10,000 parts at most."""
    return max(PIECE_BYTES, -(-size // _MAX_PARTS))


class Bucket:
    """The objects at and below a place.

    Parameters
    ----------
    place
        A URL, or what `parse` made of it. Keys are relative to it; an empty key is the object of that very name.
    blames
        Error that is raised where reading fails: of the input, of a store, ... Writing raises `OutputError`.

    Raises
    ------
    ConfigError, MissingExtraError
        As `parse` and `connect`.

    Notes
    -----
    Threads may use one at once. A process that was forked off may not: the threads of the client do not survive that.
    """

    def __init__(self, place: str | os.PathLike[str] | BucketPlace, blames: type[ScamacError] = InputError) -> None:
        self.place = parse(place)
        self._client: Client = connect(self.place)
        self.blames = blames
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"Bucket({str(self.place)!r})"

    def _at(self, key: str) -> BucketPlace:
        if os.getpid() != self._pid:
            raise PlanError(
                f"{self.place} was opened by process {self._pid} and is used by {os.getpid()}, which was forked off: the "
                "threads of its client do not survive that. Open it in the process that uses it."
            )
        return self.place / key

    # -------------------------------------------------------------- reading

    def find(self, key: str = "") -> Entry | None:
        """Look at an object; None where there is none of that name."""
        import obstore

        place = self._at(key)
        if not place.key:
            return None
        try:
            found = attempt(lambda: obstore.head(self._client, place.key), place, "looked at", self.blames)
        except FileNotFoundError:
            return None
        return self._entry(found)

    def listing(self, prefix: str = "") -> list[Entry]:
        """List all objects below a folder, however deep, in the order of their keys.

        Raises
        ------
        ScamacError
            If it cannot be listed, or a key would lead out of a folder.
        """
        import obstore

        place = self._at(prefix)

        def gather() -> list[Entry]:
            return [
                self._entry(about)
                for page in obstore.list(self._client, place.key or None, chunk_size=1000)
                for about in page
            ]

        try:
            found = attempt(gather, place, "listed", self.blames)
        except FileNotFoundError:
            return []
        kept = _without_markers(found)
        for entry in kept:
            if any(part in ("", ".", "..") for part in entry.key.split("/")) or "\\" in entry.key:
                raise self.blames(f"{self.place} holds an object of the name {entry.key!r}, which is not followed.")
        return kept

    def level(self, prefix: str = "") -> tuple[list[str], list[Entry]]:
        """List one level: names of the folders, and the objects; keys as of `listing`."""
        import obstore

        place = self._at(prefix)
        try:
            found = attempt(
                lambda: obstore.list_with_delimiter(self._client, place.key or None), place, "listed", self.blames
            )
        except FileNotFoundError:
            return [], []
        folders = sorted(self._relative(folder) for folder in found["common_prefixes"])
        entries = sorted(map(self._entry, found["objects"]), key=lambda entry: entry.key)
        return folders, [entry for entry in entries if entry.key]

    def kind(self, key: str = "") -> Literal["object", "folder"] | None:
        """Whether there is an object of that name, a folder with objects below it, or nothing."""
        if self.find(key) is not None:
            return "object"
        folders, objects = self.level(key)
        return "folder" if folders or objects else None

    def read(self, key: str = "", etag: str = "") -> bytes:
        """Read an object whole.

        Parameters
        ----------
        key
            Of the object.
        etag
            Which it must have; empty takes any.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        ScamacError
            If it cannot be read, was replaced, or is larger than `MAX_READ_BYTES`.
        """
        import obstore

        place = self._at(key)

        def get() -> bytes:
            found = obstore.get(self._client, place.key, options={"if_match": etag} if etag else None)
            if found.meta["size"] > MAX_READ_BYTES:
                raise self.blames(f"{place} has {found.meta['size']:,} bytes, which are not read at once.")
            content = bytes(found.bytes())
            if len(content) != found.meta["size"]:
                raise ConnectionError("reset: it has ended too early")
            return content

        return attempt(get, place, "read", self.blames)

    def read_range(self, key: str, start: int, size: int, etag: str = "") -> bytes:
        """Read bytes of an object, all of which must be there; errors as of `read`."""
        import obstore

        place = self._at(key)
        if size <= 0:
            return b""

        def get() -> bytes:
            found = (
                obstore.get(self._client, place.key, options={"range": (start, start + size), "if_match": etag})
                if etag
                else obstore.get(self._client, place.key, options={"range": (start, start + size)})
            )
            content = bytes(found.bytes())
            if len(content) != size:
                raise ConnectionError("reset: it has ended too early")
            return content

        return attempt(get, place, "read", self.blames)

    def fetch(self, key: str, path: Path, entry: Entry | None = None) -> Entry:
        """Copy an object to a file, piece by piece.

        Parameters
        ----------
        key
            Of the object.
        path
            The file; one that is there is replaced. It is not flushed to the disk.
        entry
            What a listing said of it; None looks.

        Returns
        -------
        Entry
            Of the object that the file is a copy of, to the byte.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        OutputError
            If the file cannot be written; it is then removed.
        ScamacError
            If it cannot be read, or was replaced meanwhile.
        """
        about = entry or self.find(key)
        if about is None:
            raise FileNotFoundError(f"{self.place / key} is not there")
        starts = range(0, about.size, PIECE_BYTES)
        try:
            with path.open("wb") as file, ThreadPoolExecutor(THREADS) as pool:

                def copy(start: int) -> None:
                    piece = self.read_range(key, start, min(PIECE_BYTES, about.size - start), about.etag)
                    os.pwrite(file.fileno(), piece, start)

                for _ in pool.map(copy, starts):  # holds no piece: each is written by the thread that has read it
                    pass
            if path.stat().st_size != about.size:
                raise self.blames(f"{self.place / key} has {about.size:,} bytes, {path} has others; run again.")
        except BaseException as error:
            path.unlink(missing_ok=True)
            if (
                isinstance(error, OSError) and error.errno is not None and not isinstance(error, ScamacError)
            ):  # of the file
                raise output_error(path, error) from error
            raise
        return about

    # -------------------------------------------------------------- writing

    def put(self, key: str, content: bytes | Path) -> Entry:
        """Put an object, in place of the one of that name.

        Parameters
        ----------
        key
            Of the object.
        content
            Its bytes, or a file, which is sent in parts and not held in memory.

        Returns
        -------
        Entry
            As the bucket shows it afterwards.

        Raises
        ------
        OutputError
            If it cannot be written, or has another size afterwards; the file itself cannot be read.
        """
        import obstore

        place = self._at(key)
        try:
            size = content.stat().st_size if isinstance(content, Path) else len(content)
        except OSError as error:
            raise OutputError(f"{error.filename} cannot be read to be put to {place}: {error.strerror}.") from error

        def put() -> None:
            obstore.put(
                self._client,
                place.key,
                content if size > PIECE_BYTES or isinstance(content, bytes) else content.read_bytes(),
                use_multipart=size > PIECE_BYTES,
                chunk_size=part_bytes(size),
                max_concurrency=THREADS,
            )

        try:
            attempt(put, place, "written", OutputError)
        except FileNotFoundError:
            raise OutputError(f"{place} cannot be written: what is to be put there has gone.") from None
        found = self.find(key)
        if found is None or found.size != size:
            have = "none" if found is None else f"{found.size:,}"
            raise OutputError(
                f"{place} has {have} of the {size:,} bytes that were written; another job is writing there."
            )
        return found

    def put_if_absent(self, key: str, content: bytes) -> Put:
        """Put an object if there is none of that name.

        Parameters
        ----------
        key
            Of the object.
        content
            Its bytes, a few; best with something in it that no other writer has.

        Returns
        -------
        str
            ``created``; ``same`` where an object of these very bytes is there, as after an answer that was lost; ``other`` where one
            of other bytes is.

        Raises
        ------
        OutputError
            If it is not known in the end whether it was written, or the storage knows no such condition.
        """
        import obstore

        place = self._at(key)

        def put() -> Put:
            try:
                obstore.put(self._client, place.key, content, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                try:
                    return "same" if self.read(key) == content else "other"
                except FileNotFoundError:
                    raise ConnectionError("reset: it was removed meanwhile") from None
            return "created"

        try:
            return attempt(put, place, "written", OutputError)
        except FileNotFoundError:
            raise OutputError(f"{place} cannot be written: there is no such place.") from None

    def delete(self, keys: str | Iterable[str]) -> None:
        """Remove objects; those that are not there are gone already.

        Raises
        ------
        OutputError
            If one cannot be removed.
        """
        import obstore

        wanted = [keys] if isinstance(keys, str) else list(keys)
        for start in range(0, len(wanted), _DELETE_TOGETHER):
            places = [self._at(key) for key in wanted[start : start + _DELETE_TOGETHER]]
            try:
                attempt(
                    lambda places=places: obstore.delete(self._client, [place.key for place in places]),  # type: ignore[misc]
                    places[0],
                    "removed",
                    OutputError,
                )
            except FileNotFoundError:
                if len(places) > 1:  # some storages refuse the rest, too
                    for place in places:
                        self.delete(self._relative(place.key))

    def delete_below(self, prefix: str = "") -> int:
        """Remove all objects of a folder; returns how many there were."""
        keys = [entry.key for entry in self.listing(prefix)]
        self.delete(keys)
        return len(keys)

    # -------------------------------------------------------------- names

    def _relative(self, key: str) -> str:
        return key.strip("/") if not self.place.key else key.strip("/")[len(self.place.key) + 1 :]

    def _entry(self, about: object) -> Entry:
        assert isinstance(about, dict)
        key = str(about["path"])
        relative = key if not self.place.key else key[len(self.place.key) + 1 :]
        modified_ns = int(about["last_modified"].timestamp()) * 10**9
        return Entry(relative, int(about["size"]), str(about["e_tag"] or ""), modified_ns)


def _without_markers(entries: list[Entry]) -> list[Entry]:
    """Sort entries, and leave out those by which some programs show folders: empty objects whose names end with a slash."""
    found = sorted(entries, key=lambda entry: entry.key)
    folders = {str(folder) for entry in found for folder in PurePosixPath(entry.key).parents}
    return [entry for entry in found if entry.key and (entry.size or entry.key not in folders)]


def open_bucket(place: str | os.PathLike[str] | BucketPlace, blames: type[ScamacError] = InputError) -> Bucket:
    """Open the objects at and below a place; see `Bucket`."""
    return Bucket(place, blames)


def stamp_of(place: BucketPlace) -> tuple[int, str, bool]:
    """Tell what lies at a place from what may lie there later.

    Parameters
    ----------
    place
        Of an object or of a folder.

    Returns
    -------
    n_bytes : int
        Of the object; of a folder the number of its objects.
    etag : str
        Of the object, without quotes; of a folder a digest of names, sizes and etags of all its objects.
    is_object : bool
        Whether it is an object.

    Raises
    ------
    InputError
        If there is nothing.
    """
    bucket = Bucket(place, InputError)
    if (entry := bucket.find()) is not None:
        return entry.size, entry.etag.strip('"'), True
    entries = bucket.listing()
    if not entries:
        raise InputError(f"there is no object and no folder {place}.")
    found = hashlib.sha256()
    for entry in entries:
        found.update(f"{entry.key} {entry.size} {entry.etag}\n".encode())
    return len(entries), found.hexdigest(), False
