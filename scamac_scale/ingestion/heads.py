"""What the heads of chunks of a zarr say, looked at before the library believes them.

A chunk of texts begins with their number. The library makes room for so many before it looks further: a flipped bit there asks for
sixteen gigabytes, and takes minutes to fail. A chunk packed by Blosc says its length, which is not compared with that of the file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import InputError
from scamac_scale.ingestion.chunk_files import chunk_files

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def check(name: str, content: bytes) -> None:
        try:
            n_texts = int.from_bytes(bytes(unpack(content))[:4], "little")
        except Exception:  # noqa: BLE001 - the library says what is wrong with it, when it reads
            return
        if n_texts > n_most:
            raise InputError(
                f"{where}: {name} holds {n_texts:,} texts, and a chunk has {n_most:,}; the file is damaged, copy it again."
            )

    _check_chunks(array, check)


def check_blosc_lengths(array: Array, where: str) -> None:
    """Refuse a chunk packed by Blosc that is shorter or longer than its head says; parameters and errors as of `check_text_counts`.

    The library unpacks what is left of such a chunk, and whatever lies behind it in memory, without a word.
    """
    metadata = array.metadata
    if metadata.zarr_format == 2:
        is_packed = getattr(metadata.compressor, "codec_id", "") == "blosc"
    else:
        is_packed = str(metadata.codecs[-1].to_dict()["name"]) == "blosc"
    if not is_packed:
        return

    def check(name: str, content: bytes, size: int | None = None) -> None:
        size = len(content) if size is None else size
        said = int.from_bytes(content[12:16], "little")
        if len(content) < BLOSC_HEAD_BYTES or said != size:
            raise InputError(
                f"{where}: {name} has {size:,} bytes and says that it has {said:,}; it was cut off, copy it again."
            )

    _check_chunks(array, check, BLOSC_HEAD_BYTES)


def _check_chunks(array: Array, check: Callable[..., None], n_bytes: int | None = None) -> None:
    """Check the chunks of an array: files at once, by their heads where that is enough; objects when they are read."""
    found = chunk_files(array)
    if found is None:
        return
    if not found.is_local:
        found.check_with(check)
        return
    for name in found.names(len(array.shape)):
        if not name.rpartition("/")[2].startswith(".") and not name.endswith(".json"):
            size = found.size(name)
            content = found.read(name, 0, size if n_bytes is None else n_bytes)
            check(f"{found.place}/{name}", content, *([] if n_bytes is None else [size]))


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
