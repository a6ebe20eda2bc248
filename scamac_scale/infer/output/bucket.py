"""Predictions into a bucket: made on a local disk, then put there; the object by which they are found is put last, if nobody else has."""

from __future__ import annotations

import logging
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.durable.plain import parse_json, sealed
from scamac_scale.errors import OutputError, StoppedError
from scamac_scale.infer.output.already_there import identity_in
from scamac_scale.infer.output.journal import check_same
from scamac_scale.progress import track
from scamac_scale.ranks.signals import Signals
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.exchange import see
from scamac_scale.remote.stream import ObjectFile
from scamac_scale.remote.uploads import is_same
from scamac_scale.remote.work import VARIABLE, work_folder
from scamac_scale.remote.zarrs import ZarrObjects

if TYPE_CHECKING:
    from scamac_scale.remote.bucket import Entry
    from scamac_scale.remote.place import BucketPlace

logger = logging.getLogger(__name__)

ROOT = "zarr.json"
"""Without it there is no zarr; it is put last."""
KIND = "results"
"""Of the work, in the folder where it is done."""
THREADS = 4
MAX_CONDITIONAL_BYTES = 2**26
"""Of an h5ad that is put on the condition that there is none of its name: such a request has no parts."""


class ResultBucket:
    """A result in a bucket; for rank 0.

    Parameters
    ----------
    place
        Of the result, ending in ``.zarr`` or ``.h5ad``.

    Attributes
    ----------
    path
        Where it is made, on the local disk.

    Raises
    ------
    OutputError
        If there is no place for that; of all methods: if the bucket cannot be read or written, after it was tried for long.
    """

    def __init__(self, place: BucketPlace) -> None:
        self.place = place
        self._home = work_folder(place, KIND, is_made=False)
        self.path = self._home / place.name
        self._bucket, self._above = Bucket(place, OutputError), Bucket(place.parent, OutputError)
        self._root = ROOT if self.path.suffix == ".zarr" else ""
        self._note = f".{place.name}.writing.json"

    def check(self, *, resume: bool) -> None:
        """Refuse a result that is there and not to be gone on with, before any work."""
        if not resume and self._bucket.find(self._root) is not None:
            raise self._exists()

    def _exists(self) -> OutputError:
        return OutputError(f"{self.place} is already there; remove it or choose another name.")

    def begin(self, belongs: dict[str, Any], *, resume: bool) -> bool:
        """Say that this is being written, unless it is complete.

        Parameters
        ----------
        belongs
            From `journal.identity`.
        resume
            Whether a complete one is what is asked for, or a refusal.

        Returns
        -------
        bool
            Whether it is complete.

        Raises
        ------
        OutputError
            If there is something, or something else is being written there.
        ResumeError
            If it is a result of another model, input or other options.
        """
        self.check(resume=resume)
        if (entry := self._bucket.find(self._root)) is not None:
            found = self._identity(entry)
            if found is None:
                raise self._exists()
            check_same(found, belongs, self.place)
            self._above.delete(self._note)
            return True
        self._say(sha256_of(belongs))
        work_folder(self.place, KIND)
        if not resume:
            self.forget_files()
        return False

    def _identity(self, entry: Entry) -> dict[str, Any] | None:
        """Read what a result in the bucket was made from; None where it is none of ours."""
        import h5py
        import zarr

        with suppress(OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
            bucket = Bucket(self.place)
            if self._root:
                return identity_in(zarr.open_group(ZarrObjects(bucket, bucket.listing()), mode="r"))
            with h5py.File(ObjectFile(bucket, entry), "r") as file:
                return identity_in(file)
        return None

    def _say(self, digest: str) -> None:
        """Leave a note of what is being written; refuse where there is one of something else, or objects without one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"identity": digest, "host": socket.gethostname()[:200], "since": now}
        is_new = self._above.put_if_absent(self._note, sealed(note).encode()) == "created"
        if not is_new:
            seen = see(self._above, self._note)
            found: dict[str, Any] = {}
            with suppress(ValueError):
                found = parse_json(seen.content) if seen is not None else note
            if found.get("identity") != digest:
                raise OutputError(
                    f"{self.place} is being written by another prediction (of {str(found.get('host'))[:200]}, since "
                    f"{str(found.get('since'))[:40]}), with another model, input or other options; choose another name, or remove "
                    f"{self._above.place / self._note} and what is below {self.place} if that one is no more."
                )
        elif self._root and self._bucket.listing():
            self._above.delete(self._note)
            raise OutputError(f"there are objects below {self.place} already; remove them or choose another name.")

    def put(self) -> None:
        """Put the result, which is complete on the disk, into the bucket; remove the local one.

        Raises
        ------
        OutputError
            If it cannot be written, or has appeared in the meantime.
        StoppedError
            After a signal: the local one is kept.
        """
        try:
            with Signals() as signals:
                if self._root:
                    self._put_files(signals)
                reach("bucket.result")
                self._put_root()
        except OutputError as error:
            raise OutputError(
                f"{str(error).rstrip('.')}. The result is complete in {self.path}; --resume puts it from there, with the same {VARIABLE} on "
                "this machine."
            ) from error
        self._above.delete(self._note)
        shutil.rmtree(self._home, ignore_errors=True)

    def _put_files(self, signals: Signals) -> None:
        """Put all files of a zarr but the root."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        keys = [path.relative_to(self.path).as_posix() for path in files]
        there = {entry.key: entry for entry in self._bucket.listing()}

        def put(key: str) -> None:
            if key != self._root and signals.received is None and not is_same(self.path / key, there.get(key)):
                self._bucket.put(key, self.path / key)

        with track(f"put {self.place.name}", len(keys), "objects") as progress, ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(put, keys):
                progress.advance(1)
        if signals.received is not None:
            raise StoppedError(
                f"stopped by {signals.received}; the result is complete in {self.path}, run again with --resume to put the rest of it."
            )
        self._bucket.delete(there.keys() - set(keys))

    def _put_root(self) -> None:
        """Put the object by which the result is found, if there is none."""
        path = self.path / self._root if self._root else self.path
        if path.stat().st_size > MAX_CONDITIONAL_BYTES:
            if self._bucket.find(self._root) is not None:
                raise self._exists()
            self._bucket.put(self._root, path)
        elif self._bucket.put_if_absent(self._root, path.read_bytes()) == "other":
            raise self._exists()

    def forget_files(self) -> None:
        """Remove a complete result on the disk that was not put; what a stopped prediction has left is its own matter."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
