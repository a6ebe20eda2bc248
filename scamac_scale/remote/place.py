"""Where something lies in a bucket: ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from scamac_scale.errors import ConfigError

SCHEMES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""Kinds of object storage, and how the names of the environment begin that hold their credentials."""
_NEAR = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "wasb": "az", "wasbs": "az"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PATH = re.compile(r"(s3|gs|az):/(?!/)")
"""What is left of a URL that somebody made a ``Path`` of."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_QUERY = re.compile(r"\?[\w.%-]*=")
_MAX_KEY_BYTES = 1024


def is_url(text: object) -> bool:
    """Whether a text or path names something by a URL, of whatever kind; `parse` says whether it is one of ours."""
    if isinstance(text, BucketPlace):
        return True
    if not isinstance(text, str | os.PathLike):
        return False
    found = os.fspath(text)
    return isinstance(found, str) and bool(_URL.match(found) or _PATH.match(found))


@dataclass(frozen=True, order=True)
class BucketPlace:
    """A place in a bucket: an object, or a folder by its name.

    Attributes
    ----------
    scheme
        Key of `SCHEMES`.
    bucket
        Its name; a container of Azure.
    key
        Of the object, without a slash in front or at the end; empty for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        """Give the URL back."""
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"

    def __truediv__(self, name: str) -> BucketPlace:
        """Name something below this place; an empty name gives the place itself."""
        key = "/".join(part for part in (self.key, name.strip("/")) if part)
        return BucketPlace(self.scheme, self.bucket, key)

    @property
    def name(self) -> str:
        """Last part of the key; the bucket, where there is no key."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def suffix(self) -> str:
        """Ending of the name, such as ``.zarr``; empty where there is none."""
        _, dot, ending = self.name.rpartition(".")
        return dot + ending if dot else ""

    @property
    def parent(self) -> BucketPlace:
        """The folder above; of a bucket, itself."""
        return BucketPlace(self.scheme, self.bucket, self.key.rpartition("/")[0])


def parse(text: str | os.PathLike[str] | BucketPlace) -> BucketPlace:
    """Read a URL.

    Parameters
    ----------
    text
        Such as ``s3://bucket/run1/atlas.h5ad``; a slash at the end is left out.

    Returns
    -------
    BucketPlace
        What it names; nothing is asked of the network.

    Raises
    ------
    ConfigError
        If it is of another kind, or holds what no URL here may: credentials, a query, ``..``, an empty part. Such a text is not
        repeated in the message where it may hold a secret.
    """
    if isinstance(text, BucketPlace):
        return text
    place = split_url(os.fspath(text))
    if "?" in place.key:
        raise ConfigError(
            f"a URL of {place.scheme}://{place.bucket} has a ? in it; signed addresses are not taken: give "
            f"{place.scheme}://BUCKET/KEY, and credentials by the environment."
        )
    return place


def split_url(text: str) -> BucketPlace:
    """Read a URL whose key may hold the signs of a pattern; errors as of `parse`."""
    text = _PATH.sub(r"\1://", text, count=1)
    match = _URL.match(text)
    scheme = match.group(1).lower() if match else ""
    if scheme not in SCHEMES:
        near = f" Did you mean {_NEAR[scheme]}://?" if scheme in _NEAR else ""
        if scheme == "file":
            near = " Give the path alone."
        elif scheme.startswith("http"):
            near = " Fetch it first, and give its path."
        raise ConfigError(
            f"{scheme}:// is no storage that is known here; expected a path, s3://, gs:// or az://.{near}"
        )
    bucket, _, key = text[len(scheme) + 3 :].partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"a {scheme}:// URL has credentials or a port in front of its key; they are taken from the environment only "
            f"({SCHEMES[scheme]}_...): give {scheme}://BUCKET/KEY."
        )
    if _QUERY.search(key) or "?" in bucket or "#" in bucket:
        raise ConfigError(
            f"a {scheme}:// URL has a query behind its key; signed addresses are not taken: give {scheme}://BUCKET/KEY, and "
            "credentials by the environment."
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{scheme}://{bucket[:80]!r} is no name of a bucket; give {scheme}://BUCKET/KEY.")
    key = key.removesuffix("/")
    _check_key(key, f"{scheme}://{bucket}/{key[:200]}")
    return BucketPlace(scheme, bucket, key)


def _check_key(key: str, name: str) -> None:
    if not key:
        return
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError(f"{name!r} has an empty part, . or .. in its key; name the object as the bucket lists it.")
    if any(ord(letter) < 32 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in key):
        raise ConfigError(
            f"{name!r} has signs in its key that cannot be printed; name the object as the bucket lists it."
        )
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise ConfigError(f"{name!r}... is longer than the {_MAX_KEY_BYTES:,} bytes that a key may have.")
