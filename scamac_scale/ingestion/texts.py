"""Texts of any length in a zarr: whether a chunk holds as many as it should, before they are read.

Such a chunk begins with the number of its texts. The library makes room for so many before it looks further: a flipped bit there
asks for sixteen gigabytes, and takes minutes to fail.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

Array = Any
"""Of zarr."""


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
    root = getattr(array.store_path.store, "root", None)
    if unpack is None or root is None:
        return
    n_most = math.prod(array.chunks)
    folder = Path(root) / array.path
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if name.startswith(".") or path.suffix == ".json":
                continue
            try:
                n_texts = int.from_bytes(bytes(unpack(path.read_bytes()))[:4], "little")
            except Exception:  # noqa: BLE001 - the library says what is wrong with it, when it reads
                continue
            if n_texts > n_most:
                raise InputError(
                    f"{where}: {path} holds {n_texts:,} texts, and a chunk has {n_most:,}; the file is damaged, copy it again."
                )


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
