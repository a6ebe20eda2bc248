"""A store on its way into a bucket: made on the local disk, then put there, its commit record last and only if there is none.

Two objects say how it stands. The root ``zarr.json`` with the commit record: with it there is a store, without it none. And
``.NAME.writing.json`` beside the store, while objects are put: a digest of the record that is going to be, which has digests of all
files, so that stores of two jobs never mix. A request may take long on its way, and arrive when another job has the place: so the job
looks again when its root is there, and withdraws it if the place was no longer its own; and who has the place withdraws a root that is
not its own. A root is withdrawn by putting another object in the place of that very one, which is no root of a store.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
import uuid
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
from scamac_scale.remote.exchange import Seen, replace, see
from scamac_scale.remote.uploads import put_folder
from scamac_scale.remote.work import work_folder
from scamac_scale.store.layout import METADATA, RECORD
from scamac_scale.store.record import is_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scamac_scale.remote.bucket import Entry
    from scamac_scale.remote.place import BucketPlace

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds after which it is looked at again whether another job has taken the place."""
KIND = "stores"
"""Of the work, in the folder where it is done."""
WITHDRAWN = "withdrawn"
"""What a root says in place of a record."""
_TRIES = 20


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
        self._home = work_folder(place, KIND, is_made=False)
        self.path = self._home / place.name
        self._note = f".{place.name}.writing.json"
        self._identity, self._root, self._told_all, self._may_replace = "", b"", b"", False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only job of this machine that makes this store."""
        work_folder(self.place, KIND)
        with lock(lock_file(self._home), str(self.place)):
            try:
                yield
            finally:
                with suppress(OSError):
                    self._home.rmdir()  # where nothing was made

    @property
    def is_there(self) -> bool:
        """Whether a commit record, or the root of another zarr, is there."""
        root = see(self._bucket, METADATA)
        return root is not None and not _is_withdrawn(root.content)

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
        self._root, self._may_replace = (self.path / METADATA).read_bytes(), overwrite
        try:
            self.check(overwrite=overwrite)
            self._say(sha256_of(self._root), overwrite=overwrite)
            if overwrite:
                self._check_ours()  # first of all: nobody takes a mixture for a store
            entries: dict[str, Entry] = {}
            counts = put_folder(self._bucket, self.path, METADATA, entries)
            with track(f"put {self.place.name}", next(counts), "objects") as progress:
                looked_s = time.monotonic()
                for count in counts:
                    progress.advance(count)
                    if time.monotonic() - looked_s > LOOK_S:
                        self._check_ours()
                        looked_s = time.monotonic()
            reach("bucket.store")
            self._confirm(self._commit(), entries)
        except OutputError as error:
            how = "--resume --overwrite" if isinstance(error, _TakenError) else "--resume"
            where = " in place of the other" if isinstance(error, _TakenError) else ""
            raise OutputError(
                f"{str(error).rstrip('.')}. The store is complete in {self.path}; {how} puts it from there{where}."
            ) from error
        logger.info("put the store to %s", self.place)
        self.forget()

    def forget(self) -> None:
        """Remove what is left of the work: the local folder, and the note if it is of this store."""
        with suppress(FileNotFoundError):
            identity = self._identity or sha256_of(self._bucket.read(METADATA))
            if self._noted().get("identity") == identity:
                self._above.delete(self._note)  # one that comes right now is left again by its job, see `_check_ours`
        shutil.rmtree(self._home, ignore_errors=True)

    # -------------------------------------------------------------- whose place it is

    def _say(self, identity: str, *, overwrite: bool) -> None:
        """Leave a note of what is being put; refuse where there is one of something else."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"identity": identity, "job": uuid.uuid4().hex, "host": socket.gethostname()[:200], "since": now}
        self._identity, self._told_all = identity, sealed(about).encode()
        if overwrite:
            self._above.put(self._note, self._told_all)
            return
        if self._above.put_if_absent(self._note, self._told_all) != "other":
            return
        if self._noted().get("identity") != identity:
            raise _TakenError(
                f"{self.place} is being written by another ingest ({self._told()}), of other data or settings; wait for it, choose another name, or, if it is no "
                "more, overwrite what it has left."
            )

    def _told(self) -> str:
        """Say who left the note."""
        found = self._noted()
        return f"of {str(found.get('host'))[:200]}, since {str(found.get('since'))[:40]}"

    def _noted(self) -> dict[str, object]:
        """Read what the note says; nothing where it is gone or damaged."""
        with suppress(FileNotFoundError, ValueError):
            return parse_json(self._above.read(self._note))
        return {}

    def _check_ours(self) -> Seen | None:
        """Refuse a place that another job has taken, and withdraw a record that came too late from the job before this one.

        Returns
        -------
        Seen or None
            The root that lies there.

        Notes
        -----
        The root is seen before the note: a job that has taken the place since has left its note before its root. So a root beside our
        note is of a job that had lost the place, and what is withdrawn is that very object.
        """
        root = see(self._bucket, METADATA)
        is_free = root is None or root.content == self._root or _is_withdrawn(root.content)
        found = self._noted()
        if not found and is_free:  # it was removed, as by one who has looked at it before it was ours
            if root is not None and root.content == self._root:
                return root
            self._above.put_if_absent(self._note, self._told_all)
            found = self._noted()
        if found.get("identity") != self._identity:
            raise _TakenError(
                f"{self.place} was taken over by another ingest, which overwrites it; let one job write it"
            )
        if is_free or root is None:
            return root
        if not self._may_replace:
            raise OutputError(f"{self.place} has been written by another job in the meantime; choose another name.")
        return self._withdraw(root) or self._check_ours()

    def _withdraw(self, root: Seen) -> Seen | None:
        """Make a root one of no store, where it is still the one that was seen; storages know no condition on which to remove one."""
        return replace(self._bucket, METADATA, json.dumps({RECORD: WITHDRAWN, "by": uuid.uuid4().hex}).encode(), root)

    def _commit(self) -> Seen:
        """Put the root, in place of none or of a withdrawn one."""
        for _ in range(_TRIES):
            before = self._check_ours()
            if before is not None and before.content == self._root:
                return before
            if (root := replace(self._bucket, METADATA, self._root, before)) is not None:
                return root
        raise OutputError(f"{self.place / METADATA} changes all the time: another job is writing there; let one do so.")

    def _confirm(self, root: Seen, entries: Mapping[str, Entry]) -> None:
        """See that the place was this job's up to the root, which may have taken long on its way; else withdraw the root."""
        found = {entry.key: (entry.size, entry.etag.strip('"')) for entry in self._bucket.listing()}
        expected = {key: (entry.size, entry.etag.strip('"')) for key, entry in entries.items()}
        expected[METADATA] = len(root.content), root.etag.strip('"')
        noted = self._noted()
        if noted and noted.get("identity") != self._identity:
            self._withdraw(root)
            raise _TakenError(
                f"{self.place} was taken over by another ingest, which overwrites it; let one job write it"
            )
        if found != expected:
            self._withdraw(root)
            odd = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
            raise OutputError(
                f"{self.place}: {odd[0]} is not as it was put; another job is writing there, let one do so."
            )


class _TakenError(OutputError):
    """Another job has the place."""


def _is_withdrawn(content: bytes) -> bool:
    with suppress(ValueError):
        return parse_json(content).get(RECORD) == WITHDRAWN
    return False
