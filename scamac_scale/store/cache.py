"""Decoded pieces of a source, the most recently used ones, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

Arrays = tuple["NDArray[Any]", ...]


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
        self._entries: OrderedDict[int, Arrays] = OrderedDict()
        self._lock = threading.Lock()

    def through(
        self, numbers: NDArray[np.int64], read: Callable[[list[int]], dict[int, Arrays]], max_run: int
    ) -> Iterator[Arrays]:
        """Give entries in order, and read those that are not here by runs of consecutive ones.

        Parameters
        ----------
        numbers
            (n,) ascending, no two alike.
        read
            Reads the entries of consecutive numbers.
        max_run
            Entries read at once, at most.

        Yields
        ------
        tuple of ndarray
            One for each of `numbers`.
        """
        keys: list[int] = numbers.tolist()
        missing = self._missing(keys)
        fresh: dict[int, Arrays] = {}
        for key in keys:
            found = fresh.pop(key, None) or self.get(key)
            if found is None:
                run = [key]
                while len(run) < max_run and run[-1] + 1 in missing:
                    run.append(run[-1] + 1)
                fresh = read(run)
                for number, arrays in fresh.items():
                    self.put(number, arrays)
                found = fresh.pop(key)
            yield found

    def get(self, key: int) -> Arrays | None:
        """Return an entry and mark it as used; None where it is not here."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def _missing(self, keys: list[int]) -> set[int]:
        with self._lock:
            return {key for key in keys if key not in self._entries}

    def put(self, key: int, arrays: Arrays) -> None:
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
