"""Objects that several machines write: each is replaced only where it is still the one that was seen.

What decides is the server: it compares the etag. An answer that is lost says nothing, so that what lies there is read back: these
very bytes are ours, however they came there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import OutputError
from scamac_scale.remote.patience import attempt

if TYPE_CHECKING:
    from scamac_scale.remote.bucket import Bucket


@dataclass(frozen=True)
class Seen:
    """An object at one moment.

    Attributes
    ----------
    content
        All its bytes.
    etag
        As the server gave it, for `replace`.
    """

    content: bytes
    etag: str


def see(bucket: Bucket, key: str) -> Seen | None:
    """Read a small object with its etag.

    Parameters
    ----------
    bucket
        Where it lies.
    key
        Its name there.

    Returns
    -------
    Seen or None
        None where there is none of that name.

    Raises
    ------
    ScamacError
        As `Bucket.read`.
    """
    import obstore

    place = bucket._at(key)

    def get() -> Seen:
        found = obstore.get(bucket._client, place.key)
        content = bytes(found.bytes())
        if len(content) != found.meta["size"]:
            raise ConnectionError("reset: it has ended too early")
        return Seen(content, str(found.meta["e_tag"] or ""))

    try:
        return attempt(get, place, "read", bucket.blames)
    except FileNotFoundError:
        return None


def replace(bucket: Bucket, key: str, content: bytes, before: Seen | None) -> Seen | None:
    """Put an object in the place of the one that was seen, and of no other.

    Parameters
    ----------
    bucket
        Where it lies.
    key
        Its name there.
    content
        Its bytes; best with something in them that no other writer has.
    before
        What was seen there; None where there was nothing.

    Returns
    -------
    Seen or None
        What lies there now, if it is `content`; None where another one came first, or `before` is gone.

    Raises
    ------
    OutputError
        If it is not known in the end whether it was written.
    """
    import obstore

    place = bucket._at(key)
    condition: Any = "create" if before is None else {"e_tag": before.etag}  # Any: as obstore types it

    def put() -> Seen | None:
        try:
            found = obstore.put(bucket._client, place.key, content, mode=condition, use_multipart=False)
            return Seen(content, str(found["e_tag"] or ""))
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError, FileNotFoundError):
            now = see(bucket, key)
        if now is not None and now.content == content:
            return now
        if (now and now.etag) == (before and before.etag):  # two requests at once: the server has let neither through
            raise ConnectionError("reset: it was written at the same moment")
        return None

    return attempt(put, place, "written", OutputError)
