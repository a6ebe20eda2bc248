"""What the heads of chunks of a zarr say, looked at before the library believes them.

A chunk of texts begins with their number. The library makes room for so many before it looks further: a flipped bit there asks for
sixteen gigabytes, and takes minutes to fail. A chunk packed by Blosc says its length, which is not compared with that of the file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Array = Any
"""Of zarr."""
BLOSC_HEAD_BYTES = 16


def check_text_counts(array: Array, where: str) -> None:
    """Refuse a chunk of texts that promises more of them than a chunk of this array has.

    Parameters
    ----------
    array
        Of zarr; arrays of numbers, of shards, and of compressions that are not known here pass.
    where
        The file, and its place there, for the message.

    Raises
    ------
    InputError
        Names the chunk.
    """
    unpack = _unpacking(array.metadata)
    if unpack is None:
        return
    n_most = math.prod(array.chunks)
    for path in _chunk_files(array):
        try:
            n_texts = int.from_bytes(bytes(unpack(path.read_bytes()))[:4], "little")
        except Exception:  # noqa: BLE001 - the library says what is wrong with it, when it reads
            continue
        if n_texts > n_most:
            raise InputError(
                f"{where}: {path} holds {n_texts:,} texts, and a chunk has {n_most:,}; the file is damaged, copy it again."
            )


def check_blosc_lengths(array: Array, where: str) -> None:
    """Refuse a chunk packed by Blosc that is shorter or longer than its head says; parameters and errors as of `check_text_counts`.

    The library unpacks what is left of such a chunk, and whatever lies behind it in memory, without a word.
    """
    metadata = array.metadata
    if metadata.zarr_format == 2:
        is_packed = getattr(metadata.compressor, "codec_id", "") == "blosc"
    else:
        is_packed = str(metadata.codecs[-1].to_dict()["name"]) == "blosc"
    for path in _chunk_files(array) if is_packed else ():
        with path.open("rb") as file:
            head = file.read(BLOSC_HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
        said = int.from_bytes(head[12:16], "little")
        if len(head) < BLOSC_HEAD_BYTES or said != size:
            raise InputError(
                f"{where}: {path} has {size:,} bytes and says that it has {said:,}; it was cut off, copy it again."
            )


def _chunk_files(array: Array) -> Iterator[Path]:
    root = getattr(array.store_path.store, "root", None)
    for place, _, names in os.walk(Path(root) / array.path) if root is not None else ():
        yield from (Path(place) / name for name in names if not name.startswith(".") and not name.endswith(".json"))


def _unpacking(metadata: Any) -> Callable[[bytes], bytes] | None:  # Any: of either format
    """Find how a chunk of texts becomes the bytes of its texts; None where it holds none, or that is not known."""
    import numcodecs

    if metadata.zarr_format == 2:
        filters = [part.codec_id for part in metadata.filters or ()]
        if filters not in (["vlen-utf8"], ["vlen-bytes"]):
            return None
        return bytes if metadata.compressor is None else metadata.compressor.decode
    first, *packing = [part.to_dict()["name"] for part in metadata.codecs]
    if not str(first).startswith("vlen-") or len(packing) > 1:
        return None
    known: dict[str, Any] = {"zstd": numcodecs.Zstd, "gzip": numcodecs.GZip, "blosc": numcodecs.Blosc}
    if not packing:
        return bytes
    return known[packing[0]]().decode if packing[0] in known else None
