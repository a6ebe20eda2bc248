"""Decoded pieces of a source, the most recently used ones, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

WINDOW_BYTES = 256 * 2**20
"""Default of a reader that streams: room for one window of a shuffled plan (65,536 cells) at 1,300 values a cell."""


class ByteCache:
    """Tuples of arrays by number; the least recently used are dropped.

    Parameters
    ----------
    max_bytes
        Bytes that may stay; the newest entry stays even where it alone is larger.

    Notes
    -----
    Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[int, tuple[NDArray[np.generic], ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> tuple[NDArray[np.generic], ...] | None:
        """Return an entry and mark it as used; None where it is not here."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def missing(self, keys: Iterable[int]) -> list[int]:
        """Return the keys that are not here."""
        with self._lock:
            return [key for key in keys if key not in self._entries]

    def put(self, key: int, arrays: tuple[NDArray[Any], ...]) -> None:
        """Keep an entry, and drop the oldest ones beyond the limit."""
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = arrays
            self._bytes += sum(array.nbytes for array in arrays)
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= sum(array.nbytes for array in dropped)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
