"""Where the files of a store lie: a folder, or a bucket whose shards are kept on the local disk while they are read."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from zarr.storage import LocalStore

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import MAX_BYTES, parse_json, read_json, read_plain
from scamac_scale.errors import StoreError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.cache import CachedFile, FileCache, cache_folder, limit_bytes
from scamac_scale.remote.place import is_url, parse
from scamac_scale.remote.zarrs import ZarrObjects
from scamac_scale.store import layout

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from scamac_scale.remote.place import BucketPlace

SHARDS = "c"
"""Folder of an array in which its shards lie, as of zarr v3."""
REMAKE = "write the store again with `scamac-scale ingest`"


class ShardFiles(Protocol):
    """The shards of one array, by their numbers."""

    def metadata(self) -> dict[str, Any]:
        """Read the ``zarr.json`` of the array; raises OSError or ValueError."""

    def name(self, number: int) -> str:
        """Name a shard in messages."""

    def open(self, number: int) -> tuple[int, bool]:
        """Open a shard: a handle that the caller closes, and whether it is another file than at the last time."""

    def digest(self, number: int) -> str | None:
        """SHA-256 that the file of a shard must have, if that is known."""

    def renew(self, number: int) -> bool:
        """Forget a damaged copy of a shard; whether there was one that can be made again."""

    def close(self) -> None:
        """Close the folder; what is opened afterwards is an error."""


class FolderShards:
    """Those of a folder, and of this very folder: what replaces it under the same name is another store."""

    def __init__(self, folder: Path, n_values: int, digests: Mapping[int, str] | None = None) -> None:
        self._folder, self._digests = folder, digests or {}
        try:
            self._handle = os.open(folder / SHARDS, os.O_RDONLY | os.O_DIRECTORY) if n_values else -1
        except OSError as error:
            raise StoreError(f"{folder / SHARDS} cannot be read ({error.strerror}); {REMAKE}.") from error
        self._close = weakref.finalize(self, os.close, self._handle) if n_values else None

    def __str__(self) -> str:
        return str(self._folder)

    def metadata(self) -> dict[str, Any]:
        """Read the ``zarr.json`` of the array."""
        return read_json(self._folder / layout.METADATA)

    def name(self, number: int) -> str:
        """Name a shard."""
        return f"{self._folder}/{SHARDS}/{number}"

    def open(self, number: int) -> tuple[int, bool]:
        """Open a shard; see `ShardFiles`."""
        return os.open(str(number), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self._handle), False

    def digest(self, number: int) -> str | None:
        """Tell what a shard must be; see `ShardFiles`."""
        return self._digests.get(number)

    def renew(self, number: int) -> bool:
        """Forget a damaged copy; see `ShardFiles`."""
        return False

    def close(self) -> None:
        """Close the folder."""
        self._handle = -1  # the system may give the number to another folder
        if self._close is not None:
            self._close()


class BucketShards:
    """Those of a bucket, of which copies are kept on the local disk."""

    def __init__(self, objects: ZarrObjects, path: str, cache: FileCache, digests: Mapping[int, str]) -> None:
        self._objects, self._path, self._cache, self._digests = objects, path, cache, digests
        self._files: dict[int, CachedFile] = {}
        self._seen: dict[int, tuple[int, int]] = {}
        self._is_closed = False

    def __str__(self) -> str:
        return str(self._objects.bucket.place / self._path)

    def metadata(self) -> dict[str, Any]:
        """Read the ``zarr.json`` of the array."""
        return parse_json(self._objects.read(f"{self._path}/{layout.METADATA}"))

    def name(self, number: int) -> str:
        """Name a shard."""
        return f"{self}/{SHARDS}/{number}"

    def _file(self, number: int) -> CachedFile:
        if number not in self._files or self._is_closed:
            entry = self._objects.entries.get(f"{self._path}/{SHARDS}/{number}")
            if entry is None or self._is_closed:
                raise FileNotFoundError(self.name(number))
            self._files[number] = self._cache.file(self._objects.bucket, entry, self._digests.get(number, ""))
        return self._files[number]

    def open(self, number: int) -> tuple[int, bool]:
        """Open a shard; see `ShardFiles`."""
        handle = self._file(number).open()
        about = os.fstat(handle)
        which = about.st_ino, about.st_mtime_ns
        is_other = self._seen.get(number, which) != which
        self._seen[number] = which
        return handle, is_other

    def digest(self, number: int) -> str | None:
        """Tell what a shard must be; see `ShardFiles`."""
        return self._digests.get(number)

    def renew(self, number: int) -> bool:
        """Forget a damaged copy; see `ShardFiles`."""
        self._file(number).forget()
        return True

    def close(self) -> None:
        """Close the folder."""
        self._is_closed = True


class StoreFolder:
    """The files of a store in a folder.

    Parameters
    ----------
    path
        Of the store.

    Attributes
    ----------
    digests
        SHA-256 of files, by their names, as far as they are known: what is read whole is compared with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: Mapping[str, str] = {}

    def __str__(self) -> str:
        return str(self.path)

    def zarr_store(self) -> Store:
        """Give what zarr reads it from: a missing chunk is an error, where zarr would read zeros."""
        store = _StrictFolder(self.path, read_only=True)
        store.digests = self.digests
        return store

    def shards(self, path: str, n_values: int) -> ShardFiles:
        """Find those of an array."""
        return FolderShards(self.path / path, n_values, _of_shards(path, self.digests))

    def read_all(self, names: Collection[str]) -> None:
        """Do nothing: files are read when they are asked for."""

    def read(self, name: str) -> bytes:
        """Read a file of metadata; raises OSError, or ValueError for one that is no plain file or too large."""
        return read_plain(self.path / name)

    def size(self, name: str) -> int:
        """Bytes of a file; raises OSError."""
        return (self.path / name).stat().st_size


class StoreObjects:
    """The files of a store in a bucket, as a listing found them when it was opened.

    Parameters
    ----------
    path
        Of the store.
    cache_bytes
        Of copies of shards on the local disk.

    Attributes
    ----------
    digests
        As of `StoreFolder`; shards are compared with it when they are copied.

    Raises
    ------
    StoreError
        If it cannot be listed.
    """

    def __init__(self, path: BucketPlace, cache_bytes: int | None = None) -> None:
        self.path = path
        bucket = Bucket(path, StoreError)
        self.objects = _StrictObjects(bucket, bucket.listing() if path.key else [])
        self.digests: Mapping[str, str] = {}
        self._cache_bytes = limit_bytes() if cache_bytes is None else cache_bytes

    def __str__(self) -> str:
        return str(self.path)

    def zarr_store(self) -> Store:
        """Give what zarr reads it from."""
        self.objects.digests = self.digests
        return self.objects

    def shards(self, path: str, n_values: int) -> ShardFiles:
        """Find those of an array."""
        cache = FileCache(cache_folder(), self._cache_bytes)
        return BucketShards(self.objects, path, cache, _of_shards(path, self.digests))

    def read_all(self, names: Collection[str]) -> None:
        """Read files of metadata together, for those who ask for them later."""
        self.objects.hold(name for name in names if self.size(name) <= MAX_BYTES)

    def read(self, name: str) -> bytes:
        """Read an object of metadata; raises as of a folder."""
        if self.size(name) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        return self.objects.read(name)

    def size(self, name: str) -> int:
        """Bytes of an object; raises OSError."""
        entry = self.objects.entries.get(name)
        if entry is None:
            raise FileNotFoundError(name)
        return entry.size


def _of_shards(path: str, digests: Mapping[str, str]) -> dict[int, str]:
    """Pick those of the shards of an array, by their numbers."""
    start = f"{path}/{SHARDS}/"
    found = ((name.removeprefix(start), digest) for name, digest in digests.items() if name.startswith(start))
    return {int(number): digest for number, digest in found if number.isascii() and number.isdecimal()}


StorePlace = StoreFolder | StoreObjects
"""Where a store lies."""


def place_of_store(path: str | os.PathLike[str] | BucketPlace, cache_bytes: int | None = None) -> StorePlace:
    """Find the files of a store.

    Parameters
    ----------
    path
        A folder, or a URL.
    cache_bytes
        As of `StoreObjects`.

    Raises
    ------
    ConfigError, StoreError
        If the URL is of no storage that is known, or cannot be listed.
    """
    return StoreObjects(parse(path), cache_bytes) if is_url(path) else StoreFolder(at_home(path))  # type: ignore[arg-type]


_METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})


class _StrictFolder(LocalStore):
    """Files of a store; a missing chunk is an error, where zarr would read zeros, and so is one of another store."""

    digests: Mapping[str, str] = {}

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        _refuse(found, key, f"{self.root / key}", self.digests.get(key) if byte_range is None else None)
        return found


class _StrictObjects(ZarrObjects):
    """Objects of a store, likewise."""

    digests: Mapping[str, str] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        _refuse(found, key, str(self.bucket.place / key), self.digests.get(key) if byte_range is None else None)
        return found


def _refuse(found: Buffer | None, key: str, name: str, digest: str | None) -> None:
    if found is None and key.rpartition("/")[2] not in _METADATA_NAMES:
        raise StoreError(f"{name} is missing; {REMAKE}.")
    if found is not None and digest is not None and sha256_of(found.to_bytes()) != digest:
        raise StoreError(
            f"{name} is of another store, or damaged: it is not what was written (wrong SHA-256); {REMAKE}."
        )
