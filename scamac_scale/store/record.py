"""The commit record of a store: written last, read first.

It lies in the attributes of the root group and names every other file by its SHA-256, and the rest of the data by its size, too.
It is sealed by the SHA-256 of the root's ``zarr.json`` itself, so that two stores with the same root are the same store. Without it
a folder is not a store.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.foreign import foreign_entry
from scamac_scale.durable.plain import digest_of_file, parse_json, read_plain
from scamac_scale.errors import StoreError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.place import BucketPlace
from scamac_scale.store.layout import GENE_SPACE, METADATA, PROFILES, RECORD, VERSION
from scamac_scale.store.places import StoreFolder, StoreObjects, StorePlace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_UNSEALED = "0" * 64
_REMAKE = "write it with `scamac-scale ingest`"


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What a reader must find before it believes the rest.

    Attributes
    ----------
    version
        Of the layout.
    profile
        Key of `layout.PROFILES`.
    n_cells, n_genes, n_values
        Cells, chosen genes, stored values.
    metadata
        SHA-256 of every ``zarr.json`` below the root, by its path.
    files
        Bytes of every other file, by its path.
    digests
        SHA-256 of these, by their paths: two stores whose files have the same names and sizes may differ in nothing but the order of the
        cells. None in stores of an older program.
    """

    version: int
    profile: str
    n_cells: int
    n_genes: int
    n_values: int
    metadata: Mapping[str, str]
    files: Mapping[str, int]
    digests: Mapping[str, str] | None = None


_OPTIONAL = frozenset({"digests"})


def write_record(
    root: Path, *, profile: str, n_cells: int, n_genes: int, n_values: int, digests: Mapping[str, str] | None = None
) -> None:
    """Make a folder a store: the last thing that is written into it.

    Parameters
    ----------
    root
        The folder, complete but for this.
    profile, n_cells, n_genes, n_values
        As of `CommitRecord`.
    digests
        SHA-256 of large files that are known already; all others are read.
    """
    metadata, files, known, found = {}, {}, digests or {}, {}
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        if path.name == METADATA:
            metadata[name] = sha256_of(path.read_bytes())
        else:
            files[name] = path.stat().st_size
            found[name] = known.get(name) or digest_of_file(path)
    del metadata[METADATA]  # the root's holds this record
    counts = {"n_cells": n_cells, "n_genes": n_genes, "n_values": n_values}
    record = CommitRecord(version=VERSION, profile=profile, **counts, metadata=metadata, files=files, digests=found)
    about = json.loads((root / METADATA).read_text())
    about["attributes"][RECORD] = asdict(record) | {"checksum": _UNSEALED}
    text = json.dumps(about, indent=1)
    (root / METADATA).write_text(text.replace(_UNSEALED, sha256_of(text)))


def _files(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def is_store(root: Path | BucketPlace) -> bool:
    """Whether a folder says that it is a training store, or was one; whether it is sound is for `read_record`."""
    if isinstance(root, BucketPlace):
        return _is_store_of_objects(root)
    with suppress(OSError, ValueError):
        if RECORD.encode() in read_plain(root / METADATA):
            return True
    with suppress(OSError, ValueError):  # the record, or the name of it, may be what is damaged, or a link to another
        return b'"sharding_indexed"' in read_plain(root / "X" / "data" / METADATA) and (root / GENE_SPACE).is_dir()
    return False


def _is_store_of_objects(place: BucketPlace) -> bool:
    if not place.key:
        return False
    bucket = Bucket(place, StoreError)
    with suppress(FileNotFoundError):
        if RECORD.encode() in bucket.read(METADATA):
            return True
    with suppress(FileNotFoundError):  # the record is written last, and may be lost
        return b'"sharding_indexed"' in bucket.read(f"X/data/{METADATA}") and bucket.kind(GENE_SPACE) == "folder"
    return False


def read_record(root: Path | StorePlace) -> CommitRecord:
    """Read and check the commit record of a store.

    Parameters
    ----------
    root
        Folder of the store, or its files.

    Returns
    -------
    CommitRecord
        Of this version; every file that it lists is there, with its size, and every ``zarr.json`` is unchanged.

    Raises
    ------
    StoreError
        If there is no store, it is incomplete, of another version, or not as it was written.

    Notes
    -----
    Looks at every file once, and reads the metadata; the data itself is checked when it is read.
    """
    place = StoreFolder(root) if isinstance(root, Path) else root
    _check_place(place)
    try:
        text = place.read(METADATA).decode()
        attributes = parse_json(text).get("attributes", {})
        noted = dict(attributes[RECORD]) if RECORD in attributes else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StoreError(f"{place}/{METADATA} cannot be read ({error}); {_REMAKE} again.") from error
    if noted is None:
        raise StoreError(
            f"{place} has no commit record: it is not a training store, or writing it did not finish; {_REMAKE}."
        )
    names = {field.name for field in fields(CommitRecord)} - _OPTIONAL
    version = noted.get("version")
    if version != VERSION or (names - noted.keys()) == {"profile", "files"}:  # how stores were before they had shards
        raise StoreError(
            f"{place} is a training store of version {str(version)[:40] if version != VERSION else 'before 1'}; this program reads "
            f"version {VERSION}; {_REMAKE} again, or use the program that wrote it."
        )
    seal = noted.pop("checksum", None)
    is_sealed = (
        isinstance(seal, str) and len(seal) == len(_UNSEALED) and sha256_of(text.replace(seal, _UNSEALED)) == seal
    )
    if not is_sealed or names != noted.keys() - _OPTIONAL or not _is_typed(noted):
        raise StoreError(f"The commit record in {place}/{METADATA} is damaged; {_REMAKE} again.")
    record = CommitRecord(**noted)
    _check_files(place, record)
    return record


def _check_place(place: StorePlace) -> None:
    """Refuse a place that holds no store, or what no store has; no file is opened."""
    if isinstance(place, StoreObjects):
        if not place.objects.entries:
            raise StoreError(f"There is no training store at {place}; {_REMAKE}.")
        if METADATA not in place.objects.entries:
            raise StoreError(
                f"{place} is not a training store (it has no {METADATA}, which is written last: it may be on its way, or its "
                f"writer was stopped); {_REMAKE}."
            )
        return
    root = place.path
    if not root.exists():
        raise StoreError(f"There is no training store at {root}; {_REMAKE}.")
    if found := _foreign(root):
        raise StoreError(f"{root / found[0]} is {found[1]}, which is not followed; copy the store itself (cp -rL).")
    if not os.path.lexists(root / METADATA):
        raise StoreError(f"{root} is not a training store (it has no {METADATA}); {_REMAKE}.")


def _foreign(root: Path) -> tuple[str, str] | None:
    try:
        return foreign_entry(root) if root.is_dir() else None
    except OSError as error:
        raise StoreError(f"{error.filename or root} cannot be listed: {error.strerror}.") from error


def _is_typed(found: dict[str, Any]) -> bool:
    """Whether the parts of a record are of the types that they are declared with; somebody may have sealed it again."""
    counts = [found[name] for name in ("version", "n_cells", "n_genes", "n_values")]
    metadata, files, digests = found["metadata"], found["files"], found.get("digests")
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and isinstance(found["profile"], str)
        and found["profile"] in PROFILES
        and isinstance(metadata, dict)
        and all(isinstance(digest, str) for digest in metadata.values())
        and isinstance(files, dict)
        and all(type(size) is int for size in files.values())
        and (digests is None or isinstance(digests, dict))
        and all(isinstance(digest, str) for digest in (digests or {}).values())
    )


def _check_files(place: StorePlace, record: CommitRecord) -> None:
    for name in (*record.metadata, *record.files):
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StoreError(f"The commit record of {place} names {name!r}, which leads out of it; {_REMAKE} again.")
    if record.digests is not None and record.digests.keys() != record.files.keys():
        raise StoreError(f"The commit record of {place} tells of other files than it names; {_REMAKE} again.")
    with suppress(FileNotFoundError):  # said below
        place.read_all(record.metadata)
    for name in (*record.metadata, *record.files):
        try:
            size = place.size(name)
            content = place.read(name) if name in record.metadata else b""
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
            raise StoreError(f"{place}/{name} {what}; {_REMAKE} again.") from error
        if name in record.metadata and sha256_of(content) != record.metadata[name]:
            raise StoreError(f"{place}/{name} is not what was written (wrong SHA-256); {_REMAKE} again.")
        if name in record.files and size != record.files[name]:
            raise StoreError(
                f"{place}/{name} has {size:,} bytes, not {record.files[name]:,} as written; {_REMAKE} again."
            )
