"""The object ``latest.json`` of a run in a bucket: whose the run is, and which checkpoints are whole."""

from __future__ import annotations

import re
import socket
import uuid
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.durable.plain import check_seal, parse_json, sealed
from scamac_scale.errors import StoreError
from scamac_scale.train.run.checkpoints import KEPT, number_of

if TYPE_CHECKING:
    from scamac_scale.remote.place import BucketPlace

NAME = "latest.json"
FORMAT = "scamac_scale run in a bucket"
VERSION = 1
_TOKEN, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}|")


@dataclass(frozen=True)
class Part:
    """An object that a checkpoint needs.

    Attributes
    ----------
    name
        In the folder of the checkpoints.
    bytes
        Its size.
    sha256
        Of its content; empty where only its name tells it, as in a folder that was copied into a bucket.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Latest:
    """What stands in ``latest.json``.

    Attributes
    ----------
    generation
        Counts the processes that have taken the run: the highest has it.
    token
        Of that process, like no other.
    writes
        How often it has written this, so that no two are alike.
    host, since
        For messages.
    newest
        The newest whole checkpoint.
    older
        Others that are kept, the oldest first.
    codes
        The clusters of all cells in the consensus members, once they are known.
    """

    generation: int = 0
    token: str = ""
    writes: int = 0
    host: str = ""
    since: str = ""
    newest: Part | None = None
    older: tuple[Part, ...] = field(default=())
    codes: Part | None = None

    @property
    def checkpoints(self) -> tuple[Part, ...]:
        """All that are kept, the oldest first."""
        return self.older if self.newest is None else (*self.older, self.newest)

    @property
    def has_progress(self) -> bool:
        """Whether one is of after the start."""
        return any((number_of(part.name) or 0) > 0 for part in self.checkpoints)

    @property
    def holder(self) -> str:
        """Who has the run, for messages."""
        return f"{self.host or 'another machine'}, since {self.since or 'some time'}"

    def taken(self) -> Self:
        """Give the same run to this process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        host = socket.gethostname()[:200]
        return replace(self, generation=self.generation + 1, token=uuid.uuid4().hex, writes=0, host=host, since=now)

    def counted(self) -> Self:
        """Give the same, written once more."""
        return replace(self, writes=self.writes + 1)

    def with_checkpoints(self, parts: tuple[Part, ...], codes: Part | None) -> Self:
        """Name the checkpoints that there are, of which the last `KEPT` count."""
        *older, newest = parts[-KEPT:] or (None,)
        return replace(self, newest=newest, older=tuple(part for part in older if part), codes=codes)

    def with_new(self, part: Part, codes: Part | None) -> Self:
        """Add a checkpoint."""
        return self.with_checkpoints((*(each for each in self.checkpoints if each.name != part.name), part), codes)

    def to_bytes(self) -> bytes:
        """Give the object, sealed."""
        return sealed({"format": FORMAT, "version": VERSION, **asdict(self)}).encode()

    @classmethod
    def from_bytes(cls, content: bytes, place: BucketPlace) -> Self:
        """Read the object, which anybody may have written.

        Raises
        ------
        StoreError
            If it is damaged, or of another version.
        """
        try:
            found = check_seal(content.decode(), parse_json(content))
            if (found.pop("format", None), found.pop("version", None)) != (FORMAT, VERSION):
                raise ValueError("it is of another format, or another version")
            return cls._checked(found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"{place} cannot be used: {' '.join(str(error).split())[:200]}; put it back as it was, or remove it: then the newest "
                "checkpoint beside it counts."
            ) from error

    @classmethod
    def _checked(cls, found: dict[str, Any]) -> Self:
        newest, older, codes = found.pop("newest"), found.pop("older"), found.pop("codes")
        latest = cls(
            **found,
            newest=None if newest is None else _part(newest),
            older=tuple(map(_part, older)),
            codes=None if codes is None else _part(codes),
        )
        texts = (latest.token, latest.host, latest.since)
        counts = (latest.generation, latest.writes)
        if not all(type(text) is str for text in texts) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("it holds what no run has written")
        if not _TOKEN.fullmatch(latest.token) or len(latest.older) >= KEPT:
            raise ValueError("it holds what no run has written")
        if any(number_of(part.name) is None for part in latest.checkpoints):
            raise ValueError("it names checkpoints that no run has written")
        return latest


def _part(found: dict[str, Any]) -> Part:
    part = Part(**found)
    is_sound = isinstance(part.name, str) and isinstance(part.sha256, str) and _SHA256.fullmatch(part.sha256)
    if not is_sound or type(part.bytes) is not int or part.bytes < 0:
        raise ValueError("it names parts that no run has written")
    return part
