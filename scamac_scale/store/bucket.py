"""A store on its way into a bucket: made on the local disk, then put there, its commit record last and only if there is none.

Two objects say how it stands. The root ``zarr.json`` with the commit record: with it there is a store, without it none. And
``.NAME.writing.json`` beside the store, while objects are put: a digest of the record that is going to be, so that stores of two
jobs never mix.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.durable.locks import lock, lock_file
from scamac_scale.durable.plain import parse_json, sealed
from scamac_scale.errors import ConfigError, OutputError
from scamac_scale.progress import track
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.uploads import put_folder
from scamac_scale.remote.work import work_folder
from scamac_scale.store.layout import METADATA
from scamac_scale.store.record import is_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.remote.place import BucketPlace

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds after which it is looked at again whether another job has taken the place."""
KIND = "stores"
"""Of the work, in the folder where it is done."""


class StoreBucket:
    """A store that is going to lie in a bucket.

    Parameters
    ----------
    place
        Of the store.

    Attributes
    ----------
    place
        Of the store.
    path
        Where it is made.

    Raises
    ------
    ConfigError
        If the URL names a bucket and nothing in it, or cannot be used.
    OutputError
        If there is no place where it can be made; of all methods: if the bucket cannot be read or written.
    """

    def __init__(self, place: BucketPlace) -> None:
        if not place.key:
            raise ConfigError(f"{place} is a bucket; name the store in it, such as {place}/atlas.store.zarr.")
        self.place = place
        self._bucket, self._above = Bucket(place, OutputError), Bucket(place.parent, OutputError)
        self._home = work_folder(place, KIND)
        self.path = self._home / place.name
        self._note = f".{place.name}.writing.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only job of this machine that makes this store."""
        with lock(lock_file(self._home), str(self.place)):
            yield

    @property
    def is_there(self) -> bool:
        """Whether a commit record, or the root of another zarr, is there."""
        return self._bucket.find(METADATA) is not None

    def check(self, *, overwrite: bool) -> None:
        """Refuse a place where something lies that may not be replaced, before any work."""
        if self._bucket.find() is not None:
            raise OutputError(f"{self.place} is an object, and no store is written in its place; choose another name.")
        if self.is_there:
            if not overwrite:
                raise OutputError(f"{self.place} is already there; remove it, choose another name, or overwrite it.")
            if not is_store(self.place):
                raise OutputError(f"{self.place} is no training store, so it is not overwritten; choose another name.")
        elif self._above.find(self._note) is not None:
            logger.warning(
                "%s: objects of an ingest that was stopped, or is going on, lie there (%s): the same ingest goes on with them, "
                "another one must overwrite them",
                self.place,
                self._told(),
            )
        elif self._bucket.level() != ([], []) and not (overwrite and is_store(self.place)):
            raise OutputError(f"there are objects below {self.place} already; remove them or choose another name.")

    def put(self, *, overwrite: bool) -> None:
        """Put the store, which is complete on the disk, into the bucket; remove the local one.

        Parameters
        ----------
        overwrite
            Whether a store that is there is replaced. From here on it is no more.

        Raises
        ------
        OutputError
            If an object cannot be written, or another job is writing there, or has done so. The local store is kept.
        """
        root = (self.path / METADATA).read_bytes()
        try:
            self.check(overwrite=overwrite)
            identity = sha256_of(root)
            self._say(identity, overwrite=overwrite)
            if overwrite:
                self._bucket.delete(METADATA)  # first: nobody takes a mixture for a store
            counts = put_folder(self._bucket, self.path, METADATA)
            with track(f"put {self.place.name}", next(counts), "objects") as progress:
                looked_s = time.monotonic()
                for count in counts:
                    progress.advance(count)
                    if time.monotonic() - looked_s > LOOK_S:
                        self._check_ours(identity)
                        looked_s = time.monotonic()
            reach("bucket.store")
            self._check_ours(identity)
            if self._bucket.put_if_absent(METADATA, root) == "other":
                raise OutputError(f"{self.place} has been written by another job in the meantime; choose another name.")
        except OutputError as error:
            raise OutputError(
                f"{str(error).rstrip('.')}. The store is complete in {self.path}; --resume puts it from there."
            ) from error
        logger.info("put the store to %s", self.place)
        self.forget()

    def forget(self) -> None:
        """Remove what is left of the work: the note and the local folder."""
        self._above.delete(self._note)
        shutil.rmtree(self._home, ignore_errors=True)

    def _say(self, identity: str, *, overwrite: bool) -> None:
        """Leave a note of what is being put; refuse where there is one of something else."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = sealed({"identity": identity, "host": socket.gethostname()[:200], "since": now}).encode()
        if overwrite:
            self._above.put(self._note, note)
            return
        if self._above.put_if_absent(self._note, note) != "other":
            return
        if self._noted().get("identity") != identity:
            raise OutputError(
                f"{self.place} is being written by another ingest ({self._told()}), of other data or settings; wait for it, choose another name, or, if it is no "
                "more, overwrite what it has left."
            )

    def _told(self) -> str:
        """Say who left the note."""
        found = self._noted()
        return f"of {str(found.get('host'))[:200]}, since {str(found.get('since'))[:40]}"

    def _check_ours(self, identity: str) -> None:
        if self._noted().get("identity") != identity:
            raise OutputError(
                f"{self.place} was taken over by another ingest, which overwrites it; let one job write it"
            )

    def _noted(self) -> dict[str, object]:
        """Read what the note says; nothing where it is gone or damaged."""
        with suppress(FileNotFoundError, ValueError):
            return parse_json(self._above.read(self._note))
        return {}
