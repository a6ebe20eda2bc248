"""Matrix Market files that lie in a bucket: text is read from its beginning, so they are copied to the local disk first."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from scamac_scale.durable.atomic import check_room
from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError
from scamac_scale.ingestion.files import ROOT_FILES
from scamac_scale.ingestion.formats.mtx_files import SUFFIXES, TABLES, find_market
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.copies import fetched
from scamac_scale.remote.place import BucketPlace
from scamac_scale.remote.work import work_base

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.remote.bucket import Entry

logger = logging.getLogger(__name__)

DEPTH = 4
"""Folders below one another: Solo.out/Gene/filtered/matrix.mtx."""
KEPT = 2
"""Copies that are kept for a later pass or run."""


def copied_market(place: BucketPlace) -> Path | None:
    """Copy Matrix Market files to the local disk, if a place holds some and is nothing else.

    Parameters
    ----------
    place
        Of a file ``.mtx`` or ``.mtx.gz``, or of a folder that holds one, itself or below.

    Returns
    -------
    Path or None
        Of the copy of the same; in ``SCAMAC_WORK_DIR``, or the folder for temporary files.

    Raises
    ------
    InputError
        If there are several folders to choose from, or the files cannot be read.
    OutputError
        If the disk has no room for them.
    """
    if place.name.endswith(SUFFIXES):
        bucket = Bucket(place.parent)
        if bucket.find(place.name) is None:
            return None
        beside = [entry for entry in bucket.level()[1] if entry.key.endswith(TABLES)]
        found = bucket.find(place.name)
        return None if found is None else _copy(bucket, [found, *beside]) / place.name
    bucket = Bucket(place)
    if not place.key or bucket.find() is not None:
        return None
    names = [entry.key for entry in bucket.level()[1]]
    if set(names) & set(ROOT_FILES) or any(name.endswith("feature_bc_matrix.h5") for name in names):
        return None
    wanted = [entry for entry in bucket.listing() if entry.key.endswith(SUFFIXES + TABLES)]
    folders = {PurePosixPath(entry.key).parent for entry in wanted if entry.key.endswith(SUFFIXES)}
    folders = {folder for folder in folders if len(folder.parts) <= DEPTH}
    if PurePosixPath() in folders:
        folders = {PurePosixPath()}
    elif len(folders) > 1:
        folders = {folder for folder in folders if not folder.name.startswith("raw")}
    if not folders:
        return None
    if len(folders) > 1:
        told = ", ".join(str(place / str(folder)) for folder in sorted(folders)[:8])
        raise InputError(f"{place} holds {len(folders)} folders of Matrix Market files; give one of them: {told}.")
    [folder] = folders
    return _copy(bucket, [entry for entry in wanted if PurePosixPath(entry.key).parent == folder])


def stamp_beside(path: Path | BucketPlace) -> str | None:
    """Digest of names, sizes and times of the files of names beside a single Matrix Market file; None for any other input.

    Parameters
    ----------
    path
        Of an input that was opened.

    Returns
    -------
    str or None
        Changes when one of these files does.
    """
    if not path.name.endswith(SUFFIXES):
        return None
    if isinstance(path, BucketPlace):
        if Bucket(path).find() is None:
            return None
        beside = [entry for entry in Bucket(path.parent).level()[1] if entry.key.endswith(TABLES)]
        return sha256_of(*(f"{entry.key} {entry.size} {entry.etag}\n" for entry in beside))
    files = find_market(path)
    if files is None or path.is_dir():
        return None
    stats = [(name.name, name.stat()) for name in (files.genes, files.cells)]
    return sha256_of(*(f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in stats))


def _copy(bucket: Bucket, entries: list[Entry]) -> Path:
    n_bytes = sum(entry.size for entry in entries)
    check_room(work_base(), n_bytes)
    logger.info("%s: %d files of %d bytes are copied to the local disk first", bucket.place, len(entries), n_bytes)
    return fetched(bucket.place, [entry.key for entry in entries], "input", KEPT)
