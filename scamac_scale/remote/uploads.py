"""Folders that are put into a bucket file by file, the one by which they are found last."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from scamac_scale.errors import OutputError
from scamac_scale.remote.bucket import THREADS, part_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.remote.bucket import Bucket, Entry


def is_same(path: Path, entry: Entry | None) -> bool:
    """Tell whether an object is surely a file, as `Bucket.put` puts it: by its MD5, or that of its parts, where that is the etag."""
    size = path.stat().st_size
    if entry is None or entry.size != size:
        return False
    n_bytes, found = part_bytes(size), []
    with path.open("rb") as file:
        while part := file.read(n_bytes):
            found.append(hashlib.md5(part, usedforsecurity=False))
    if len(found) < 2:
        whole = found[0] if found else hashlib.md5(usedforsecurity=False)
        return whole.hexdigest() == entry.etag.strip('"')
    joined = hashlib.md5(b"".join(part.digest() for part in found), usedforsecurity=False)
    return f"{joined.hexdigest()}-{len(found)}" == entry.etag.strip('"')


def put_folder(bucket: Bucket, folder: Path, last: str, put_now: dict[str, Entry]) -> Iterator[int]:
    """Put all files of a folder but one, each that is not there already, and remove all other objects.

    Parameters
    ----------
    bucket
        At the place of the folder.
    folder
        Complete, on the disk.
    last
        Name of the file that is not put: without it, nobody takes the others for a whole. An object of that name is left alone.
    put_now
        Is filled with the objects that are there of the files.

    Yields
    ------
    int
        Files that there are; then 1 for each that is there. When the last is out, all objects have been listed, and are those of
        the folder.

    Raises
    ------
    OutputError
        If an object cannot be written, or another job writes there.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    del files[last]
    there = {entry.key: entry for entry in bucket.listing() if entry.key != last}
    yield len(files)

    def put(key: str) -> Entry:
        found = there.get(key)
        return found if found is not None and is_same(files[key], found) else bucket.put(key, files[key])

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for key, entry in zip(files, pool.map(put, files), strict=True):
                put_now[key] = entry
                yield 1
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bucket.delete(there.keys() - files.keys())
    found = {entry.key: (entry.size, entry.etag) for entry in bucket.listing() if entry.key != last}
    if found != {key: (entry.size, entry.etag) for key, entry in put_now.items()}:
        odd = sorted(found.keys() ^ put_now.keys()) or ["an object"]
        raise OutputError(
            f"{bucket.place}: {odd[0]} is not as it was put; another job is writing there, let one do so."
        )
