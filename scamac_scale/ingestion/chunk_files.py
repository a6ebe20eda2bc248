"""Chunks of a zarr array as they lie in its store: files of a folder, or objects of a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scamac_scale.remote.zarrs import ZarrObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Array = Any
"""Of zarr."""
_METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})


class ChunkFiles(Protocol):
    """The files of one array, by their names below it, metadata left out."""

    @property
    def place(self) -> str:
        """Folder of the array, for messages."""

    @property
    def is_local(self) -> bool:
        """Whether they are files of this machine, which cost little to look into."""

    def names(self, depth: int) -> Iterator[str]:
        """Names of all of them, and so many folders below; no chunk lies deeper, and links to folders multiply."""

    def size(self, name: str) -> int:
        """Bytes of one."""

    def read(self, name: str, start: int, size: int) -> bytes:
        """Read bytes of one, as many as there are."""

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of that name."""

    def check_with(self, check: Callable[[str, bytes], None]) -> None:
        """Have each chunk checked when it is read, if it can be."""


def chunk_files(array: Array) -> ChunkFiles | None:
    """Find the files of an array; None where it has none, as in memory."""
    store = array.store_path.store
    if isinstance(store, ZarrObjects):
        return _Objects(store, array.path)
    root = getattr(store, "root", None)
    return None if root is None else _Files(Path(root) / array.path)


class _Files:
    """Those of a folder."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        return str(self._folder)

    def names(self, depth: int) -> Iterator[str]:
        waiting = [("", str(self._folder), 0)]
        while waiting:
            prefix, place, level = waiting.pop()
            if not os.path.isdir(place):
                continue  # consolidated metadata name an array whose folder is lost
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if level < depth:
                            waiting.append((f"{prefix}{entry.name}/", entry.path, level + 1))
                    elif entry.name not in _METADATA:
                        yield prefix + entry.name

    def size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def read(self, name: str, start: int, size: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def has_folder(self, name: str) -> bool:
        return (self._folder / name).is_dir()

    def check_with(self, check: Callable[[str, bytes], None]) -> None:
        """Do nothing: files are looked into at once."""


class _Objects:
    """Those of a bucket."""

    is_local = False

    def __init__(self, store: ZarrObjects, path: str) -> None:
        self._store, self._path = store, path.strip("/")

    @property
    def place(self) -> str:
        return str(self._store.bucket.place / self._path)

    def _key(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def names(self, depth: int) -> Iterator[str]:
        n_skip = len(self._path) + 1 if self._path else 0
        for entry in self._store.below(self._path):
            name = entry.key[n_skip:]
            if name.count("/") <= depth and name.rpartition("/")[2] not in _METADATA:
                yield name

    def size(self, name: str) -> int:
        return self._store.entries[self._key(name)].size

    def read(self, name: str, start: int, size: int) -> bytes:
        left = self.size(name) - start
        return self._store.read(self._key(name), start, max(0, min(size, left)))

    def has_folder(self, name: str) -> bool:
        return next(self._store.below(self._key(name)), None) is not None

    def check_with(self, check: Callable[[str, bytes], None]) -> None:
        self._store.check_with(self._path, check)
