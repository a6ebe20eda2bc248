"""How a training store looks on disk: names, types, chunks, version, commit record.

A store is an AnnData zarr v3 group. ``X`` holds the chosen genes of every cell as sparse rows of raw values; ``obs`` the
columns of the input and two of ours; ``var`` the gene statistics; ``uns/scamac`` the gene space and where all came from.
The commit record lies in the attributes of the root group and is written last: without it a folder is not a store.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
RECORD = "scamac_store"
"""Attribute of the root group that holds the commit record."""
METADATA = "zarr.json"
TOTAL = "scamac_total"
"""Column of obs: total of the cell over the filtered genes, before scaling."""
SOURCE_ROW = "scamac_row"
"""Column of obs: row of the cell in the input."""
CHUNK_CELLS = 1024
"""Cells that a chunk of values holds on average."""
MIN_CHUNK_VALUES = 2**14
MAX_CHUNK_VALUES = 2**20
INDPTR_CHUNK = 2**17


def index_dtype(n_genes: int) -> np.dtype[Any]:
    """Smallest type of the gene indices: uint16 below 65,536 genes, uint32 beyond."""
    return np.dtype(np.uint16 if n_genes < 2**16 else np.uint32)


def value_dtype(kind: str, largest: float) -> np.dtype[Any]:
    """Type of the stored values.

    Parameters
    ----------
    kind
        Of the gene space.
    largest
        Largest value to be stored; only asked for counts.

    Returns
    -------
    dtype
        The smallest unsigned type for counts, float32 otherwise.
    """
    if kind != "counts":
        return np.dtype(np.float32)
    return next(np.dtype(name) for name in ("u1", "u2", "u4", "u8") if largest <= np.iinfo(name).max)


def chunk_values(n_values: int, n_cells: int) -> int:
    """Values in a chunk: a power of two near those of `CHUNK_CELLS` cells.

    Parameters
    ----------
    n_values
        Values to be stored, or a guess.
    n_cells
        Cells to be stored.

    Returns
    -------
    int
        Between `MIN_CHUNK_VALUES` and `MAX_CHUNK_VALUES`.
    """
    wanted = n_values * CHUNK_CELLS // max(n_cells, 1)
    return int(np.clip(1 << max(wanted - 1, 1).bit_length(), MIN_CHUNK_VALUES, MAX_CHUNK_VALUES))


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What a reader must find before it believes the rest.

    Attributes
    ----------
    version
        Of the layout.
    n_cells, n_genes, n_values
        Cells, chosen genes, stored values.
    metadata
        SHA-256 of every ``zarr.json`` below the root, by its path.
    """

    version: int
    n_cells: int
    n_genes: int
    n_values: int
    metadata: Mapping[str, str]

    def to_attribute(self) -> dict[str, Any]:
        """Return the attribute of the root group, sealed with its own checksum."""
        fields = asdict(self) | {"metadata": dict(self.metadata)}
        return fields | {"checksum": _seal(fields)}


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def digest_metadata(root: Path) -> dict[str, str]:
    """Hash every ``zarr.json`` below the root, the root's own left out, which holds the record."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob(METADATA))
        if path.parent != root
    }


def is_store(root: Path) -> bool:
    """Whether a folder says that it is a training store; whether it is a sound one is for `read_record`."""
    try:
        return RECORD in json.loads((root / METADATA).read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_record(root: Path) -> CommitRecord:
    """Read and check the commit record of a store.

    Parameters
    ----------
    root
        Folder of the store.

    Returns
    -------
    CommitRecord
        Of this version, with every listed ``zarr.json`` unchanged.

    Raises
    ------
    StoreError
        If there is no store, it is incomplete, of another version, or its metadata changed.
    """
    remake = "write it with `scamac-scale ingest`"
    if not root.exists():
        raise StoreError(f"There is no training store at {root}; {remake}.")
    if not (root / METADATA).is_file():
        raise StoreError(f"{root} is not a training store (it has no {METADATA}); {remake}.")
    try:
        attributes = json.loads((root / METADATA).read_text()).get("attributes", {})
        fields = dict(attributes[RECORD]) if RECORD in attributes else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StoreError(f"{root / METADATA} cannot be read ({error}); {remake} again.") from error
    if fields is None:
        raise StoreError(
            f"{root} has no commit record: it is not a training store, or writing it did not finish; {remake}."
        )
    version = fields.get("version")
    if version != VERSION:
        raise StoreError(
            f"{root} is a training store of version {version}; this program reads version {VERSION}; {remake} again, "
            "or use the program that wrote it."
        )
    if fields.pop("checksum", None) != _seal(fields):
        raise StoreError(f"The commit record of {root} is damaged; {remake} again.")
    record = CommitRecord(**fields)
    _check_metadata(root, record, remake)
    return record


def _check_metadata(root: Path, record: CommitRecord, remake: str) -> None:
    for name, expected in record.metadata.items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StoreError(f"The commit record of {root} names {name!r}, which leads out of it; {remake} again.")
        try:
            content = (root / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{root / name} cannot be read ({error.strerror}); {remake} again.") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise StoreError(f"{root / name} is not what was written (wrong SHA-256); {remake} again.")
