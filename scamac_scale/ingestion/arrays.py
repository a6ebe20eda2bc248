"""Arrays of a stranger's file, before a value is read: what they are, how they are encoded, and how much memory they would take."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.chunk_files import ChunkFiles, chunk_files
from scamac_scale.ingestion.heads import check_blosc_lengths, check_text_counts
from scamac_scale.ingestion.raw import blamed
from scamac_scale.remote.stream import opened_as

if TYPE_CHECKING:
    from collections.abc import Iterable

Element = Any
"""An h5py or zarr group or array."""

CHUNK_BYTES = 2**30
"""A chunk is read whole; a larger one is refused."""
MOST_CHUNKS = 2**27
"""Of one array."""
TEXT_BYTES = 2**16
"""Of one text of fixed length."""
MOST_TEXT_BYTES = 2**30
"""Of the texts that are read at once."""
NAMES_PER_BYTE = 20
"""Names are all different, so they cannot be packed more tightly; a file that promises more is damaged."""
FEW_NAMES = 2**20
"""So many cost nothing, whatever the file says."""
FILTERS = {
    4: "szip",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32026: "blosc2",
}
"""Filters of HDF5 that its own library does not always have."""


def is_array(element: Element) -> bool:
    """Whether something that a file holds is an array: neither a group nor a named type."""
    return hasattr(element, "shape") and hasattr(element, "dtype") and hasattr(element, "attrs")


def part_of(group: Element, key: str, where: str) -> Element:
    """Take an array out of a group.

    Parameters
    ----------
    group
        Of h5py or zarr.
    key
        Its name there.
    where
        The file, and the place of the group, for the message.

    Raises
    ------
    InputError
        If there is none, it is no array, or it cannot be read here; see `check_array`.
    """
    if not hasattr(group, "keys"):
        raise InputError(f"{where} is {_what(group)} where a group is expected; the file is damaged, write it again.")
    if key not in group:
        raise InputError(f"{where} has no part {key!r}; the file is damaged, write it again.")
    with blamed(f"{where}/{key}", "it"):  # a link may lead to nothing, or round and round
        element = group[key]
    if not is_array(element):
        raise InputError(
            f"{where}/{key} is {_what(element)} where an array is expected; the file is damaged, write it again."
        )
    check_array(element, f"{where}/{key}")
    return element


def _what(element: Element) -> str:
    if hasattr(element, "keys"):
        return "a group"
    return "an array" if is_array(element) else "a named type"


def check_array(array: Element, where: str) -> None:
    """Check that an array can be read: its filters are there, and no part of it takes more memory than it should.

    Parameters
    ----------
    array
        Of h5py or zarr; others pass.
    where
        The file, and its place there, for the message.

    Raises
    ------
    InputError
        If a filter of HDF5 is not installed, or a chunk or a text is too large.
    """
    library = type(array).__module__.split(".")[0]
    if library not in ("h5py", "zarr"):
        return
    if library == "h5py":
        _check_filters(array, where)
    itemsize = int(array.dtype.itemsize)
    if array.dtype.kind in "SUV" and array.dtype.names is None and itemsize > TEXT_BYTES:
        raise InputError(f"{where} holds texts of {itemsize:,} bytes each; at most {TEXT_BYTES:,} are read.")
    if not array.chunks:
        return
    n_bytes = itemsize * math.prod(array.chunks)
    if n_bytes > CHUNK_BYTES:
        raise InputError(
            f"{where} is cut into chunks of {n_bytes:,} bytes, each of which is read whole; at most {CHUNK_BYTES:,} are. "
            "Write it again with smaller chunks."
        )
    n_chunks = math.prod(-(-int(n) // size) for n, size in zip(array.shape, array.chunks, strict=True))
    if n_chunks > MOST_CHUNKS:
        raise InputError(
            f"{where} has {n_chunks:,} chunks; at most {MOST_CHUNKS:,} are read. Write it with larger ones."
        )
    if library == "zarr":
        check_blosc_lengths(array, where)
        check_text_counts(array, where)


def _check_filters(array: Element, where: str) -> None:
    import h5py

    settings = array.id.get_create_plist()
    for at in range(settings.get_nfilters()):
        number = settings.get_filter(at)[0]
        if h5py.h5z.filter_avail(number) or (_has_plugins() and h5py.h5z.filter_avail(number)):
            continue
        known = f" ({FILTERS[number]})" if number in FILTERS else ""
        raise InputError(
            f"{where} is compressed with HDF5 filter {number}{known}, which is not installed here; the file is sound: "
            "pip install hdf5plugin, and run this again."
        )


def _has_plugins() -> bool:
    """Load further filters, if the user has them."""
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        return False
    return True


def check_names(array: Element, where: str) -> None:
    """Check names before they are read: a few bytes cannot hold millions of them.

    Parameters
    ----------
    array
        (N,) texts.
    where
        The file, and its place there, for the message.

    Raises
    ------
    InputError
        If it is not one-dimensional, or promises more names, or longer ones, than it can have.
    """
    if len(array.shape) != 1:
        raise InputError(
            f"{where} has shape {tuple(array.shape)}, expected one name for each row; the file is damaged."
        )
    if type(array).__module__.startswith("h5py"):
        n_stored, n_text = int(array.id.get_storage_size()), _hdf5_text_bytes(array)
    elif type(array).__module__.startswith("zarr") and (files := chunk_files(array)) is not None:
        n_stored, n_text = _zarr_text_bytes(files)
    else:
        return
    n_names = int(array.shape[0])
    if n_names > FEW_NAMES and n_names > NAMES_PER_BYTE * n_stored:
        raise InputError(
            f"{where} promises {n_names:,} names in {n_stored:,} bytes; the file is damaged, write it again."
        )
    if n_text > MOST_TEXT_BYTES and n_text > 2**10 * n_names:
        raise InputError(
            f"{where} promises {n_text:,} bytes of text for {n_names:,} names; the file is damaged, write it again."
        )


def _hdf5_text_bytes(array: Element) -> int:
    """Bytes of all texts of variable length that lie in one piece: each place says how long its text is."""
    import h5py

    offset = array.id.get_offset()
    if h5py.check_string_dtype(array.dtype) is None or array.dtype.kind != "O" or offset is None:
        return 0
    n_bytes = 16 * int(array.shape[0])
    if (opened := opened_as(array.file.filename)) is not None:
        head = opened.peek(offset, n_bytes)
    else:
        with Path(array.file.filename).open("rb") as file:
            file.seek(offset)
            head = file.read(n_bytes)
    places = np.frombuffer(head[: len(head) // 16 * 16], dtype=[("length", "<u4"), ("heap", "V12")])
    return int(places["length"].sum(dtype=np.int64))


def _zarr_text_bytes(files: ChunkFiles) -> tuple[int, int]:
    """Bytes of all files of an array, and those that they promise when they are unpacked."""
    n_stored = n_text = 0
    for name in files.names(1):
        if not name.endswith(".json") and not name.rpartition("/")[2].startswith("."):
            n_stored += files.size(name)
            n_text += _unpacked(files.read(name, 0, 18))
    return n_stored, n_text


def _unpacked(head: bytes) -> int:
    """Bytes that a compressed chunk says it holds, 0 where it does not say; frames of Zstandard, headers of Blosc."""
    if head.startswith(b"\x28\xb5\x2f\xfd") and len(head) == 18:
        flags = head[4]
        is_single, n_size = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
        start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
        if n_size == 0:
            return head[start] if is_single else 0
        return int.from_bytes(head[start : start + n_size], "little") + (256 if n_size == 2 else 0)
    if len(head) >= 16 and head[0] in (1, 2) and head[1] in (1, 2):
        return int.from_bytes(head[4:8], "little")
    return 0


KNOWN_ENCODINGS: dict[str, frozenset[str]] = {
    "dataframe": frozenset({"0.1.0", "0.2.0"}),
    "csr_matrix": frozenset({"0.1.0"}),
    "csc_matrix": frozenset({"0.1.0"}),
    "array": frozenset({"0.2.0"}),
    "anndata": frozenset({"0.1.0"}),
    "raw": frozenset({"0.1.0"}),
}
"""Versions of what is read here without anndata; it refuses others itself."""


def encoding(element: Element) -> tuple[str | None, str | None]:
    """Type and version that the writer has noted of an element."""
    found = dict(getattr(element, "attrs", {}))
    return tuple(_text(found.get(key)) for key in ("encoding-type", "encoding-version"))  # type: ignore[return-value]  # two of them


def _text(value: Any) -> str | None:  # Any: what an attribute holds
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if value is None or isinstance(value, str) else repr(value)


def check_encoding(element: Element, where: str, kinds: Iterable[str]) -> None:
    """Refuse what a later version has written otherwise.

    Parameters
    ----------
    element
        Group or array.
    where
        The file, and its place there, for the message.
    kinds
        Types that it may have; one that is not noted passes.

    Raises
    ------
    InputError
        Names the encoding.
    """
    kind, version = encoding(element)
    if kind in (None, ""):
        return
    if kind not in kinds or (version not in (None, "") and version not in KNOWN_ENCODINGS.get(kind, {version})):
        raise unknown_encoding(element, where)


def unknown_encoding(element: Element, where: str) -> InputError:
    """Make the error about an element that is encoded in a way nobody here knows."""
    from importlib.metadata import version

    kind, noted = encoding(element)
    return InputError(
        f"{where} is of an encoding that is not known here ({kind!r}, version {noted}); anndata {version('anndata')} is "
        "installed: update it, or write the file with this version. If no later one wrote it, the file is damaged."
    )
