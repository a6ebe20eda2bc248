"""A zarr in a bucket, as zarr reads it: by what a listing found at the start, each object as it was then."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from scamac_scale.remote.bucket import Bucket, Entry

HOLD_THREADS = 16
"""Small objects that are read at once: it is their number that takes time."""
_METADATA = (".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


class ZarrObjects(Store):
    """Objects of a zarr; read only.

    Parameters
    ----------
    bucket
        Opened at the root of the zarr.
    entries
        What a listing of it found. An object that is not among them is not there, and is not asked for; one that was replaced
        since is an error.

    Notes
    -----
    Memory is some 200 bytes for each object.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, bucket: Bucket, entries: Iterable[Entry]) -> None:
        super().__init__(read_only=True)
        self.bucket = bucket
        self.entries = {entry.key: entry for entry in entries}
        self._keys = sorted(self.entries)
        self._held: dict[str, bytes] = {}
        self._checks: dict[str, list[Callable[[str, bytes], None]]] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    def __str__(self) -> str:
        return str(self.bucket.place)

    __repr__ = __str__  # zarr names a store so in its messages

    def check_with(self, path: str, check: Callable[[str, bytes], None]) -> None:
        """Have every chunk below a path checked when it is read: ``check(key, content)`` raises what is wrong with it."""
        self._checks.setdefault(path, []).append(check)

    def hold(self, keys: Iterable[str]) -> None:
        """Read small objects together, and hold them."""
        wanted = [key for key in keys if key in self.entries]
        with ThreadPoolExecutor(HOLD_THREADS) as pool:
            self._held.update(zip(wanted, pool.map(self.read, wanted), strict=True))

    def below(self, path: str) -> Iterator[Entry]:
        """Objects below a path, in the order of their keys."""
        prefix = f"{path}/" if path else ""
        for at in range(bisect_left(self._keys, prefix), len(self._keys)):
            if not self._keys[at].startswith(prefix):
                return
            yield self.entries[self._keys[at]]

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object, or bytes of it, all of which are there."""
        entry = self.entries[key]
        if key in self._held:
            return self._held[key][start : None if size is None else start + size]
        if start == 0 and size is None:
            return self.bucket.read(key, entry.etag)
        return self.bucket.read_range(key, start, entry.size - start if size is None else size, entry.etag)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of it; None where there is none."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        start, size = _part(byte_range, entry.size)
        content = await asyncio.to_thread(self.read, key, start, size)
        if byte_range is None:
            self._check(key, content)
        return prototype.buffer.from_bytes(content)

    def _check(self, key: str, content: bytes) -> None:
        path = key
        while path and self._checks:
            path = path.rpartition("/")[0]
            for check in self._checks.get(path, ()):
                if not key.endswith(_METADATA):
                    check(str(self.bucket.place / key), content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether the listing had it."""
        return key in self.entries

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: it is read only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: it is read only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in self._keys:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys that begin so."""
        for key in self._keys:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of one level."""
        path = prefix.rstrip("/")
        n_skip = len(path) + 1 if path else 0
        for name in dict.fromkeys(entry.key[n_skip:].partition("/")[0] for entry in self.below(path)):
            yield name


def _part(byte_range: Any, size: int) -> tuple[int, int | None]:  # Any: one of zarr's kinds of ranges
    """Start and length of what is asked for; no length for all of it."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, max(0, min(byte_range.end, size) - byte_range.start)
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, max(0, size - byte_range.offset)
    if isinstance(byte_range, SuffixByteRequest):
        n_bytes = min(byte_range.suffix, size)
        return size - n_bytes, n_bytes
    return 0, None
