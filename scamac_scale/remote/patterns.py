"""Patterns over objects, such as ``s3://bucket/run*/atlas.h5ad``."""

from __future__ import annotations

import fnmatch

from scamac_scale.errors import ConfigError, InputError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.place import BucketPlace, split_url

_SIGNS = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Whether a URL has a sign of a pattern behind its bucket: ``*``, ``?`` or ``[``."""
    return bool(_SIGNS & set(text.partition("://")[2].partition("/")[2]))


def glob(pattern: str) -> list[BucketPlace]:
    """Find what a pattern names.

    Parameters
    ----------
    pattern
        A URL in whose key ``*``, ``?`` and ``[...]`` stand for signs within one part, as in a shell: none of them stands for a slash, nor
        for a dot in front. ``**`` is not known.

    Returns
    -------
    list of BucketPlace
        Objects and folders (such as a zarr), in the order of their names; of a URL without a sign, itself.

    Raises
    ------
    ConfigError
        As `split_url`, and for ``**`` or a sign in the name of the bucket.
    InputError
        If a folder cannot be listed.
    """
    place = split_url(pattern)
    parts = place.key.split("/") if place.key else []
    if "**" in parts:
        raise ConfigError(
            f"{pattern}: ** is not known in a pattern; name the folders in between, as in */*/atlas.h5ad."
        )
    root = BucketPlace(place.scheme, place.bucket)
    if not is_pattern(pattern):
        return [place]
    bucket = Bucket(root, InputError)
    found = [""]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if not _SIGNS & set(part):
            found = [f"{key}/{part}".strip("/") for key in found]
            if is_last:
                found = [key for key in found if bucket.kind(key) is not None]
            continue
        found = [name for key in found for name in _matching(bucket, key, part, is_last=is_last)]
    return [root / key for key in sorted(set(found))]


def _matching(bucket: Bucket, folder: str, part: str, *, is_last: bool) -> list[str]:
    folders, objects = bucket.level(folder)
    names = folders + ([entry.key for entry in objects] if is_last else [])
    return [name for name in names if _is_match(name.rpartition("/")[2], part)]


def _is_match(name: str, part: str) -> bool:
    return fnmatch.fnmatchcase(name, part) and (not name.startswith(".") or part.startswith("."))
