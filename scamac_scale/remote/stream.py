"""An object as an open file: blocks of it are read when they are asked for, kept for a while, and those that follow are read ahead."""

from __future__ import annotations

import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from scamac_scale.errors import ScamacError

if TYPE_CHECKING:
    from scamac_scale.remote.bucket import Bucket, Entry

BLOCK_BYTES = 4 * 2**20
CACHE_BLOCKS = 24
"""Kept: a CSR matrix is read at two places in turn, and its metadata again and again."""
AHEAD_BLOCKS = 4
"""Read before they are asked for, where the block before was read, too."""
THREADS = 6


_OPENED: WeakValueDictionary[str, ObjectFile] = WeakValueDictionary()


def opened_as(name: str) -> ObjectFile | None:
    """Find an open object by the name that a library has for it: h5py tells a file's name, and not what it was opened on."""
    return _OPENED.get(name)


class ObjectFile(io.RawIOBase):
    """Reads an object of a bucket like a file; what replaces it under its name meanwhile is an error.

    Parameters
    ----------
    bucket
        Opened at the object.
    entry
        What was seen of it.

    Attributes
    ----------
    error
        The last failure; a library in between may have put other words in its place.

    Notes
    -----
    Memory is `CACHE_BLOCKS` and `AHEAD_BLOCKS` of `BLOCK_BYTES`: 112 MiB at most, less for a smaller object.
    """

    def __init__(self, bucket: Bucket, entry: Entry) -> None:
        super().__init__()
        self._bucket, self._entry = bucket, entry
        self._at = 0
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="object")
        self._lock = Lock()
        self.error: ScamacError | None = None
        _OPENED[repr(self)] = self

    def __repr__(self) -> str:
        return str(self._bucket.place)

    def peek(self, start: int, size: int) -> bytes:
        """Read bytes anywhere, fewer only at the end; the place stays."""
        before, found = self._at, bytearray(max(0, min(size, self._entry.size - start)))
        self._at = start
        try:
            self.readinto(found)
        finally:
            self._at = before
        return bytes(found)

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def seekable(self) -> bool:
        """Tell that it is."""
        return True

    def tell(self) -> int:
        """Place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as of any file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        """Read from the place on into a buffer; tells how many bytes, fewer only at the end."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # any buffer
        n_bytes = max(0, min(len(view), self._entry.size - self._at))
        done = 0
        while done < n_bytes:
            number, start = divmod(self._at + done, BLOCK_BYTES)
            last = (self._at + n_bytes - 1) // BLOCK_BYTES
            block = self._block(number, last)
            piece = block[start : start + n_bytes - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
        self._at += done
        return done

    def close(self) -> None:
        """Forget all blocks; those on their way are not waited for."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                self._blocks.clear()
        super().close()

    def _block(self, number: int, last: int) -> memoryview:
        """Give a block, after asking for it and those that will be needed next, `last` at least."""
        with self._lock:
            is_in_order = number - 1 in self._blocks
            n_more = max(AHEAD_BLOCKS if is_in_order else 0, min(last - number, AHEAD_BLOCKS))
            n_blocks = -(-self._entry.size // BLOCK_BYTES)
            for wanted in range(number, min(number + n_more + 1, n_blocks)):
                if wanted not in self._blocks:
                    self._blocks[wanted] = self._pool.submit(self._read, wanted)
            found = self._blocks[number]
            self._blocks.move_to_end(number)
            while len(self._blocks) > CACHE_BLOCKS + AHEAD_BLOCKS:
                self._blocks.popitem(last=False)
        try:
            return memoryview(found.result())
        except (ScamacError, OSError) as error:
            with self._lock:
                self._blocks.pop(number, None)
            self.error = error if isinstance(error, ScamacError) else None
            raise

    def _read(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        return self._bucket.read_range("", start, min(BLOCK_BYTES, self._entry.size - start), self._entry.etag)
