"""Which process a run in a bucket belongs to: the last one that took it, by its generation in ``latest.json``.

There is no clock and no heartbeat: whoever starts with ``--resume`` takes the run, and the one before finds that out when it next
writes. It writes under the condition that nobody else has, so that a machine that was given up and comes back changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import OutputError
from scamac_scale.remote.exchange import Seen, replace, see
from scamac_scale.train.run.latest import NAME, Latest

if TYPE_CHECKING:
    from scamac_scale.remote.bucket import Bucket

_TRIES = 20


@dataclass(frozen=True)
class _Known:
    """What is kept of an object: it may be a model."""

    sha256: str
    etag: str

    @classmethod
    def of(cls, seen: Seen | None) -> _Known | None:
        return None if seen is None else cls(sha256_of(seen.content), seen.etag)


class Lease:
    """The right to write a run in a bucket.

    Parameters
    ----------
    bucket
        At the place of the run.

    Attributes
    ----------
    latest
        What stands in ``latest.json``, as far as this process knows.
    is_there
        Whether there was one.
    is_held
        Whether this process has the run, as far as it knows.

    Raises
    ------
    OutputError
        Of all methods: if the bucket cannot be read or written, after it was tried for long, or another process has taken the run.
    StoreError
        If ``latest.json`` is damaged.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._place = bucket, bucket.place
        self._seen, self.latest = self._look()
        self.is_there, self.is_held = self._seen is not None, False
        self._objects: dict[str, _Known | None] = {}

    def _look(self) -> tuple[Seen | None, Latest]:
        seen = see(self._bucket, NAME)
        return seen, Latest() if seen is None else Latest.from_bytes(seen.content, self._place / NAME)

    def take(self) -> None:
        """Take the run for this process; what its holder has saved since `latest` was read is kept."""
        before_token, latest, before = self.latest.token, self.latest.taken(), self._seen
        for _ in range(_TRIES):
            now = replace(self._bucket, NAME, latest.to_bytes(), before)
            if now is not None:
                self._seen, self.latest, self.is_held = now, latest, True
                return
            before, other = self._look()
            if other.token != before_token:
                raise self._lost(other)
            latest = latest.with_checkpoints(other.checkpoints, other.codes)
        raise self._contended(NAME)

    def check(self) -> None:
        """See whether the run is still this process's, before much is put there."""
        other = self._look()[1]
        if other.token != self.latest.token:
            raise self._lost(other)

    def write(self, latest: Latest) -> None:
        """Write ``latest.json``, if the run is still this process's."""
        latest = latest.counted()
        now = replace(self._bucket, NAME, latest.to_bytes(), self._seen)
        if now is None:
            raise self._lost(self._look()[1])
        self._seen, self.latest = now, latest

    def put(self, key: str, content: bytes) -> None:
        """Replace an object that every process of this run would write, if the run is still this one's."""
        if key not in self._objects:
            self._objects[key] = _Known.of(see(self._bucket, key))
            self.check()  # after that: who takes the run from here on puts another one, and the etag tells
        for _ in range(_TRIES):
            before = self._objects[key]
            if before is not None and before.sha256 == sha256_of(content):
                return
            now = replace(self._bucket, key, content, None if before is None else Seen(b"", before.etag))
            if now is not None:
                self._objects[key] = _Known.of(now)
                return
            self.check()
            self._objects[key] = _Known.of(see(self._bucket, key))
        raise self._contended(key)

    def give_back(self) -> None:
        """Remove ``latest.json``, if it is still as this process wrote it."""
        if self.is_held and see(self._bucket, NAME) == self._seen:
            self._bucket.delete(NAME)
        self.is_held = False

    def _contended(self, key: str) -> OutputError:
        return OutputError(f"{self._place / key} changes all the time: another machine trains there; stop one of them.")

    def _lost(self, other: Latest) -> OutputError:
        """Give the run up, and make the error that says so."""
        self.is_held = False
        if not other.token:
            return OutputError(f"{self._place / NAME} was removed while this run was going on; it stops here.")
        return OutputError(
            f"{self._place} was taken over by another process ({other.holder}), so this one stops and writes nothing more there; what is "
            "there goes on from the last checkpoint that was saved. Let one job have a run."
        )
