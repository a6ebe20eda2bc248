"""Arrays in large chunks, of which neighbouring runs of values share some: a shared chunk is unpacked once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array = Any
"""A NumPy, h5py or zarr array: has ``shape``, ``dtype`` and slices."""

SMALLEST_CHUNK = 2**18
"""Bytes; to unpack a smaller one twice costs less than to hand it on."""
LARGEST_CHUNK = 2**27
"""Bytes; a larger one is not held beside those of other threads."""
MOST_CHUNKS = 4
"""Chunks that are held, of runs that are read out of order; in order, only those that a run is still going to come for."""


def share_chunks(array: Array) -> Array:
    """Make runs of an array, read by threads in order or not, unpack a chunk that two of them touch only once.

    Parameters
    ----------
    array
        One-dimensional, sliceable.

    Returns
    -------
    Array
        `SharedChunks`, or `array` itself where that gains nothing: in memory, not packed, or in small or very large chunks.
    """
    chunks = getattr(array, "chunks", None)
    if not chunks or len(array.shape) != 1 or not _is_packed(array):
        return array
    n_bytes = int(chunks[0]) * array.dtype.itemsize
    return SharedChunks(array, int(chunks[0])) if SMALLEST_CHUNK <= n_bytes <= LARGEST_CHUNK else array


def _is_packed(array: Array) -> bool:
    """Whether a part of a chunk takes unpacking all of it."""
    if type(array).__module__.startswith("h5py"):
        return bool(array.id.get_create_plist().get_nfilters())
    return type(array).__module__.startswith("zarr")


@dataclass
class _Held:
    """A chunk, and how many of its values have not been asked for yet."""

    values: Future[NDArray[Any]]
    n_left: int


class SharedChunks:
    """A packed array of one dimension, see `share_chunks`; threads may slice it at once."""

    def __init__(self, array: Array, chunk: int) -> None:
        self._array, self._chunk = array, chunk
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        found: np.dtype[Any] = self._array.dtype
        return found

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        """Read a run of values: a new array."""
        start, stop, step = wanted.indices(self.shape[0])
        if step != 1 or stop <= start:
            return np.asarray(self._array[wanted])
        low, high = -(-start // self._chunk), stop // self._chunk  # whole chunks
        if stop == self.shape[0]:
            high = -(-stop // self._chunk)
        if low >= high:
            low = high = start // self._chunk + 1
        ends = (min(low * self._chunk, stop), min(high * self._chunk, stop))
        if (start, stop) == ends:
            return np.asarray(self._array[start:stop])
        out = np.empty(stop - start, self.dtype)
        for begin, end in ((start, ends[0]), (ends[1], stop)):
            if begin < end:
                out[begin - start : end - start] = self._piece(begin, end)
        if ends[0] < ends[1]:
            out[ends[0] - start : ends[1] - start] = self._array[ends[0] : ends[1]]
        return out

    def _piece(self, begin: int, end: int) -> NDArray[Any]:
        """Values of one chunk, not of all of it."""
        number = begin // self._chunk
        first = number * self._chunk
        last = min(first + self._chunk, self.shape[0])
        with self._lock:
            held = self._held.get(number)
            is_mine = held is None
            if held is None:
                held = self._held[number] = _Held(Future(), last - first)
                if len(self._held) > MOST_CHUNKS:
                    self._held.popitem(last=False)
            held.n_left -= end - begin
            if held.n_left <= 0:
                self._held.pop(number, None)
        if is_mine:
            try:
                held.values.set_result(np.asarray(self._array[first:last]))
            except BaseException as error:  # noqa: BLE001  handed to all who wait
                with self._lock:
                    self._held.pop(number, None)
                held.values.set_exception(error)
        return held.values.result()[begin - first : end - first]
