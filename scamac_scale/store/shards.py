"""The sharded arrays of a store, written as a stream and read by runs of values.

A shard is one file of many chunks: each chunk encoded by itself and followed by its crc32c, at the end of the file the place
and the size of every chunk, and a crc32c of that (``sharding_indexed`` of zarr v3). Any zarr reader opens these arrays.
This module is there for speed and memory: it writes a shard without holding it, and reads runs of values straight into
memory that is used again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import Blosc

from scamac_scale.durable.atomic import flush
from scamac_scale.durable.faults import reach
from scamac_scale.durable.plain import sha256_of_file, sha256_of_handle
from scamac_scale.errors import ScamacError, StoreError
from scamac_scale.store import layout
from scamac_scale.store.journal import cut
from scamac_scale.store.places import REMAKE as _REMAKE
from scamac_scale.store.places import SHARDS, FolderShards, ShardFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

MAX_CHUNK_VALUES, MAX_SHARD_VALUES = 2**20, 2**31
"""Sizes that are read; those of `layout` are far below."""
_CRC_BYTES = 4
_SHA256_BYTES = 32
_ABSENT = np.iinfo(np.uint64).max  # place and size of a chunk that is not there
_MAX_CHUNKS = 32  # read by one call: bounds the scratch of a thread; the system takes at most 1,024 pieces


class ShardWriter:
    """Writes the values of an array one after the other; memory is two chunks.

    Parameters
    ----------
    folder
        Of the array, below which the shards go.
    dtype
        Of the values.
    sizes
        Values in a chunk and in a shard.
    shuffle
        How the bytes of a chunk are shuffled before LZ4; None leaves chunks uncompressed.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], sizes: layout.Sizes, shuffle: str | None) -> None:
        self._folder = folder / SHARDS
        self._sizes = sizes
        self._codec = None if shuffle is None else _blosc(shuffle, dtype)
        self._pending = np.empty(sizes.chunk_values, dtype)
        self._n_pending = 0
        self._n_shards = 0
        self._file: Any = None  # a binary file
        self._index = np.empty((sizes.shard_values // sizes.chunk_values, 2), np.dtype("<u8"))
        self._n_chunks = 0  # in the shard that is being written
        self._sha256 = hashlib.sha256()  # of what is written of it
        self._digests: list[bytes] = []
        self.n_values = 0
        self._folder.mkdir(parents=True, exist_ok=True)

    def append(self, values: NDArray[Any]) -> None:
        """Write values."""
        self.n_values += len(values)
        done = 0
        while done < len(values):
            n = min(len(values) - done, self._pending.size - self._n_pending)
            self._pending[self._n_pending : self._n_pending + n] = values[done : done + n]
            self._n_pending += n
            done += n
            if self._n_pending == self._pending.size:
                self._put()

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each shard that is whole, in 64 hexadecimal digits."""
        return [digest.hex() for digest in self._digests]

    def finish(self) -> None:
        """Write what is left: the last chunk is filled up with zeros, as zarr wants it."""
        if self._n_pending:
            self._pending[self._n_pending :] = 0
            self._put()
        if self._n_chunks:
            self._end_shard()

    def state(self) -> dict[str, NDArray[Any]]:
        """Flush what was written to the disk, and tell what `restore` needs to go on from here."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        flush(self._folder)
        return {
            "n_shards": np.array(self._n_shards),
            "index": self._index[: self._n_chunks].copy(),
            "pending": self._pending[: self._n_pending].copy(),
            "digests": np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, _SHA256_BYTES),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> bool:
        """Go back to a `state`; False where the shards do not hold what they must."""
        index, pending, self._n_shards = state["index"], state["pending"], int(state["n_shards"])
        self._n_chunks, self._n_pending = len(index), len(pending)
        self._digests = [digest.tobytes() for digest in state["digests"]]
        self._index[:] = _ABSENT
        self._index[: len(index)] = index
        self._pending[: len(pending)] = pending
        self.n_values = self._n_shards * self._sizes.shard_values + len(index) * self._sizes.chunk_values + len(pending)
        whole = {str(number) for number in range(self._n_shards)}
        if not whole <= {path.name for path in self._folder.iterdir()} or len(self._digests) != self._n_shards:
            return False
        current = self._folder / str(self._n_shards)
        if self._n_chunks:
            if not cut(current, int(self._index[self._n_chunks - 1].sum())):
                return False
            self._file = current.open("ab")
            self._sha256 = sha256_of_file(current)
        for path in list(self._folder.iterdir()):
            if path.name not in whole and (path != current or not self._n_chunks):
                path.unlink()
        return True

    def close(self) -> None:
        """Close the file; what was not finished is lost, so that it does not matter whether it can be written."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _put(self) -> None:
        payload = self._pending.tobytes() if self._codec is None else self._codec.encode(self._pending)
        if self._file is None:
            self._file = (self._folder / str(self._n_shards)).open("wb")
            self._index[:] = _ABSENT
            self._sha256 = hashlib.sha256()
        self._index[self._n_chunks] = self._file.tell(), len(payload) + _CRC_BYTES
        for part in (payload, _crc(payload)):
            self._file.write(part)
            self._sha256.update(part)
        self._n_pending = 0
        self._n_chunks += 1
        if self._n_chunks == len(self._index):
            self._end_shard()

    def _end_shard(self) -> None:
        index = self._index.tobytes()
        self._file.write(index + _crc(index))
        self._sha256.update(index + _crc(index))
        self._digests.append(self._sha256.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        reach("ingest.shard")
        self._n_chunks = 0
        self._n_shards += 1


class ShardReader:
    """Reads runs of values of a sharded array.

    Parameters
    ----------
    files
        Of the array, or its folder.
    dtype
        Type that the values must have.
    n_values
        Length that the array must have.
    limit
        What every value must lie below, if anything: a gene beyond the last one would be written past the end of a batch.

    Raises
    ------
    StoreError
        If the array is another than expected, or not written in the way of `ShardWriter`.

    Notes
    -----
    Files are read, not mapped: as fast when the memory is used again, resident memory stays where it is, and a file that
    has become shorter is an error and not the end of the process. The checksum of an uncompressed chunk is computed, and its
    values compared with `limit`, when the chunk is met for the first time; that of a compressed one each time. Memory is 17
    bytes per chunk, and 32 chunks per thread. A store that replaces this one under the same name is not read. Safe to use
    from several threads.
    """

    def __init__(self, files: Path | ShardFiles, dtype: np.dtype[Any], n_values: int, limit: int | None = None) -> None:
        self._files = FolderShards(files, n_values) if isinstance(files, Path) else files
        self._dtype = dtype
        self._limit = limit
        sizes, shuffle = self._read_metadata(n_values)
        self._n_values = n_values
        self._chunk, self._shard = sizes.chunk_values, sizes.shard_values
        self._codec = None if shuffle is None else _blosc(shuffle, dtype)
        self._is_checked = np.zeros(-(-n_values // self._chunk), bool)
        self._indexes: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._local = threading.local()

    def _read_metadata(self, n_values: int) -> tuple[layout.Sizes, str | None]:
        try:
            metadata = self._files.metadata()
            shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            sharding = metadata["codecs"][0]["configuration"]
            sizes = layout.Sizes(chunk_values=sharding["chunk_shape"][0], shard_values=shard)
            _check_sizes(sizes)
            compression = [codec for codec in sharding["codecs"] if codec["name"] == "blosc"]
            shuffle = compression[0]["configuration"]["shuffle"] if compression else None
            expected = layout.array_metadata(self._dtype, sizes, shuffle)
            is_same = all(metadata[key] == value for key, value in expected.items())
            found = f"{metadata['data_type']} {metadata['shape']}"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(f"{self._files}/{layout.METADATA} cannot be read ({error}); {_REMAKE}.") from error
        if not is_same or metadata["shape"] != [n_values]:
            raise StoreError(
                f"{self._files} is not the array of {n_values} values of {self._dtype} that the commit record names (found "
                f"{found}), or another program wrote it; {_REMAKE}."
            )
        return sizes, shuffle

    def close(self) -> None:
        """Close the folder; what is read afterwards is an error."""
        self._files.close()

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read the values `start` to `stop` (exclusive) into `out`; raises StoreError where a file or checksum is wrong."""
        while start < stop:
            number = start // self._shard
            base = number * self._shard
            most = ((start - base) // self._chunk + _MAX_CHUNKS) * self._chunk
            end = min(stop, base + min(self._shard, most))
            self._read_within(number, start - base, end - base, out[: end - start])
            out = out[end - start :]
            start = end

    def verify(self) -> Iterator[int]:
        """Recompute all checksums, of shards and of chunks; give how many values each step has read, StoreError where one is wrong."""
        self._is_checked[:] = False
        self._indexes.clear()
        step = _MAX_CHUNKS * self._chunk
        held = np.empty(min(step, self._n_values), self._dtype)
        for start in range(0, self._n_values, step):
            stop = min(start + step, self._n_values)
            self.read(start, stop, held[: stop - start])
            yield stop - start
        for number in range(-(-self._n_values // self._shard)):  # chunks first: what they say is nearer to the damage
            if not self._is_as_written(number) and not (self._renew(number) and self._is_as_written(number)):
                raise StoreError(
                    f"{self._files.name(number)} is of another store, or damaged: it is not what was written (wrong SHA-256); {_REMAKE}."
                )

    def _is_as_written(self, number: int) -> bool:
        """Whether a shard has the bytes that the record of the store tells of; those of an older program tell of none."""
        expected, path = self._files.digest(number), self._files.name(number)
        if expected is None:
            return True
        with _told(path):
            handle = self._files.open(number)[0]
            try:
                return sha256_of_handle(handle).hexdigest() == expected
            finally:
                os.close(handle)

    def _read_within(self, number: int, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read values of one shard, counted from its first; once more where what was read is a damaged copy."""
        try:
            self._read_once(number, start, stop, out)
        except StoreError:
            if not self._renew(number):
                raise
            self._read_once(number, start, stop, out)

    def _renew(self, number: int) -> bool:
        """Forget a copy of a shard, and what was seen of it; whether there was one."""
        try:
            is_renewed = self._files.renew(number)
        except FileNotFoundError:
            return False
        if is_renewed:
            self._forget(number)
        return is_renewed

    def _forget(self, number: int) -> None:
        n_chunks = self._shard // self._chunk
        self._is_checked[number * n_chunks : (number + 1) * n_chunks] = False
        self._indexes.pop(number, None)

    def _read_once(self, number: int, start: int, stop: int, out: NDArray[Any]) -> None:
        path = self._files.name(number)
        first, last = start // self._chunk, (stop - 1) // self._chunk
        flags = number * (self._shard // self._chunk)
        checked = self._is_checked[flags + first : flags + last + 1]
        with _told(path):
            handle, is_other = self._files.open(number)
            try:
                if is_other:
                    self._forget(number)
                places, sizes = self._index(number, handle, path)
                if self._codec is None and checked.all():
                    self._copy(handle, path, int(places[first]), start - first * self._chunk, out)
                    return
                size = int(places[last] + sizes[last] - places[first])
                held = self._scratch(size)
                if os.preadv(handle, [held.data], int(places[first])) != size:
                    raise StoreError(f"{path} is truncated; {_REMAKE}.")
            finally:
                os.close(handle)
        for chunk in range(first, last + 1):
            at = int(places[chunk] - places[first])
            payload, crc = np.split(held[at : at + int(sizes[chunk])], [int(sizes[chunk]) - _CRC_BYTES])
            if _crc(payload) != crc.tobytes():
                raise StoreError(f"{path}: chunk {chunk} is damaged (wrong crc32c); {_REMAKE}.")
            low, high = max(start, chunk * self._chunk), min(stop, (chunk + 1) * self._chunk)
            wanted = out[low - start : high - start]
            values = self._decode(payload, wanted, path)
            if values is not wanted:
                wanted[:] = values[low - chunk * self._chunk : high - chunk * self._chunk]
            if self._limit is not None and not checked[chunk - first] and int(values.max()) >= self._limit:
                raise StoreError(f"{path}: chunk {chunk} holds a value beyond {self._limit - 1}; {_REMAKE}.")
        checked[:] = True

    def _copy(self, handle: int, path: str, place: int, skipped: int, out: NDArray[Any]) -> None:
        """Read uncompressed values around the checksums that lie between the chunks."""
        pieces: list[Any] = []
        crc = np.empty(_CRC_BYTES, np.uint8)
        done, n = 0, min(self._chunk - skipped, out.size)
        while done < out.size:
            pieces += [out[done : done + n], crc]
            done += n
            n = min(self._chunk, out.size - done)
        wanted = out.nbytes + _CRC_BYTES * (len(pieces) // 2 - 1)
        if os.preadv(handle, pieces[:-1], place + skipped * self._dtype.itemsize) != wanted:
            raise StoreError(f"{path} is truncated; {_REMAKE}.")

    def _decode(self, payload: NDArray[np.uint8], wanted: NDArray[Any], path: str) -> NDArray[Any]:
        """Values of a whole chunk: written into `wanted` where that is as long, otherwise valid until the next call."""
        if self._codec is None:
            return payload.view(self._dtype)
        values = wanted if wanted.size == self._chunk else self._chunk_scratch()
        try:
            self._codec.decode(payload, values)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"{path} cannot be decompressed ({error}); {_REMAKE}.") from error
        return values

    def _index(self, number: int, handle: int, path: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place and size of every chunk of a shard, -1 for those that are not there."""
        if number in self._indexes:
            return self._indexes[number]
        n_chunks = self._shard // self._chunk
        size = 16 * n_chunks + _CRC_BYTES
        end = os.fstat(handle).st_size
        raw = os.pread(handle, size, end - size) if size <= end else b""
        if len(raw) != size or _crc(raw[:-_CRC_BYTES]) != raw[-_CRC_BYTES:]:
            raise StoreError(f"{path} is truncated, or its index is damaged (wrong crc32c); {_REMAKE}.")
        index = np.frombuffer(raw[:-_CRC_BYTES], "<u8").reshape(n_chunks, 2)
        n_present = min(n_chunks, -(-(self._n_values - number * self._shard) // self._chunk))
        places, sizes = index.T.astype(np.int64)  # absent ones become -1
        ends = np.cumsum(sizes[:n_present])
        is_packed = (places[:n_present] == ends - sizes[:n_present]).all() and (sizes[:n_present] > _CRC_BYTES).all()
        if self._codec is None:
            is_packed &= bool((sizes[:n_present] == self._chunk * self._dtype.itemsize + _CRC_BYTES).all())
        if not is_packed or ends[-1] != end - size:
            raise StoreError(f"{path} does not hold its chunks one after the other; {_REMAKE}.")
        self._indexes[number] = places, sizes
        return places, sizes

    def _scratch(self, size: int) -> NDArray[np.uint8]:
        held: NDArray[np.uint8] | None = getattr(self._local, "held", None)
        if held is None or held.size < size:
            self._local.held = held = np.empty(size, np.uint8)
        return held[:size]

    def _chunk_scratch(self) -> NDArray[Any]:
        if not hasattr(self._local, "chunk"):
            self._local.chunk = np.empty(self._chunk, self._dtype)
        chunk: NDArray[Any] = self._local.chunk
        return chunk


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Say of a shard that is opened and read that it is missing, or cannot be read."""
    try:
        yield
    except ScamacError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing; {_REMAKE}.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); {_REMAKE}.") from error


def _check_sizes(sizes: layout.Sizes) -> None:
    """Refuse cuts that no writer makes: a reader would ask for the memory, or divide by nothing."""
    chunk, shard = sizes.chunk_values, sizes.shard_values
    if not (type(chunk) is type(shard) is int and 0 < chunk <= MAX_CHUNK_VALUES and chunk <= shard <= MAX_SHARD_VALUES):
        raise ValueError("its chunks or shards are of a size that no store has")
    if shard % chunk:
        raise ValueError("its shards are no whole chunks")


def _blosc(shuffle: str, dtype: np.dtype[Any]) -> Any:  # Any: numcodecs is not typed
    return Blosc(
        cname=layout.COMPRESSOR["cname"],
        clevel=layout.COMPRESSOR["clevel"],
        shuffle={"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}[shuffle],
    )


def _crc(payload: Any) -> bytes:  # Any: bytes or a NumPy array
    return int(google_crc32c.value(payload)).to_bytes(_CRC_BYTES, "little")
