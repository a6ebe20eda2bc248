"""The folder of a run in a bucket, of which rank 0 has a copy on a local disk: what is saved there is put into the bucket.

A checkpoint is put first, then the small files, then ``latest.json``, which names it; ``run.json``, which seals the run, is the last
of all. Only what this process's own ``latest.json`` no longer names is removed.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.durable.faults import reach
from scamac_scale.durable.plain import digest_of_file, parse_json
from scamac_scale.errors import OutputError, ScamacError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.exchange import see
from scamac_scale.remote.work import VARIABLE
from scamac_scale.train.run.checkpoints import number_of
from scamac_scale.train.run.copy import SMALL_FILES, LocalCopy
from scamac_scale.train.run.latest import NAME, Latest, Part
from scamac_scale.train.run.lease import Lease
from scamac_scale.train.run.report import (
    CHECKPOINT_FOLDER,
    CODES_FILE,
    EVENTS_FOLDER,
    MODEL_FOLDER,
    NONFINITE,
    RUN_FILE,
    finished_words,
    is_own,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scamac_scale.remote.place import BucketPlace

logger = logging.getLogger(__name__)

MODEL_FILES = ("model.safetensors", "model.json")
"""In the order in which they are put: the description seals the tensors."""


class RunBucket:
    """A run in a bucket; its methods are for rank 0, in the order in which they stand here.

    Parameters
    ----------
    place
        Of the run.

    Attributes
    ----------
    copy
        On the local disk.

    Raises
    ------
    OutputError
        If there is no place for a local copy; of all methods: if the bucket cannot be read or written, after it was tried for long, or
        another process has taken the run.
    """

    def __init__(self, place: BucketPlace) -> None:
        self.place = place
        self._bucket = Bucket(place, OutputError)
        self.copy = LocalCopy(self._bucket)
        self._lease: Lease | None = None
        self._is_finished = False
        self._sent: dict[Path, tuple[int, int]] = {}

    @property
    def _own(self) -> Lease:
        assert self._lease is not None
        return self._lease

    # ------------------------------------------------------------------ before the fit

    def look(self, *, resume: bool) -> None:
        """Refuse what cannot be gone on with, and bring the local folder in line with the bucket, where nothing is written.

        Raises
        ------
        OutputError
            If there is something else, a run that has finished, or one that was stopped and is not to be resumed.
        StoreError
            If all checkpoints are damaged.
        """
        if is_finished(self._bucket):
            raise OutputError(finished_words(str(self.place)))
        lease = Lease(self._bucket)
        latest = lease.latest if lease.is_there else self._adopted()
        if latest.has_progress and not resume:
            raise OutputError(
                f"{self.place} holds a run that was stopped; add --resume to go on, or remove what is there."
            )
        if latest.newest is None or not resume:
            self._refuse_others(lease)
            latest = latest.with_checkpoints((), None)
        lease.latest = self.copy.bring_in_line(latest, resume=resume)
        self._lease = lease

    def _adopted(self) -> Latest:
        """Take up a run folder that somebody has copied into the bucket."""
        sizes = {entry.key.rpartition("/")[2]: entry.size for entry in self._bucket.listing(CHECKPOINT_FOLDER)}
        names = sorted((name for name in sizes if number_of(name) is not None), key=lambda name: number_of(name) or 0)
        codes = Part(CODES_FILE, sizes[CODES_FILE], "") if CODES_FILE in sizes else None
        return Latest().with_checkpoints(tuple(Part(name, sizes[name], "") for name in names), codes)

    def _refuse_others(self, lease: Lease) -> None:
        """Refuse a place with objects that no run has written, or with a model and nothing that leads to it."""
        folders, objects = self._bucket.level()
        names = [name.rpartition("/")[2] for name in (*folders, *(entry.key for entry in objects))]
        is_odd = MODEL_FOLDER in names and not lease.is_there
        if is_odd or not all(is_own(name) or name == NAME for name in names):
            raise OutputError(
                f"the run folder {self.place} is not empty, and no run has written all that is in it; name a new one."
            )

    def claim(self) -> None:
        """Take the run for this process, when nothing is left that could refuse it."""
        self._own.take()
        self.copy.note(self._own.latest.token)
        self._remove_strays()

    def _remove_strays(self) -> None:
        """Remove checkpoints that somebody put and did not come to name."""
        kept = {part.name for part in self._own.latest.checkpoints}
        names = {entry.key.rpartition("/")[2] for entry in self._bucket.listing(CHECKPOINT_FOLDER)}
        strays = [name for name in sorted(names - kept) if number_of(name) is not None]
        if strays:
            self._own.check()  # after the listing: so none of them is of a process that has taken the run since
            self._remove(strays)

    # ------------------------------------------------------------------ the fit

    def saved(self, path: Path, codes: str) -> None:
        """Put a checkpoint into the bucket, name it, and remove those that are no longer kept.

        Parameters
        ----------
        path
            The file.
        codes
            SHA-256 of the clusters in the consensus members that it needs; empty where it needs none.
        """
        with self._keeping():
            part, table = self._put_part(path), self._own.latest.codes
            if codes and (table is None or table.sha256 != codes):
                table = self._put_part(path.with_name(CODES_FILE))
            self._put_small()
            reach("bucket.latest")
            before = {each.name for each in self._own.latest.checkpoints}
            self._own.write(self._own.latest.with_new(part, table))
            self._remove(before - {each.name for each in self._own.latest.checkpoints})

    def _put_part(self, path: Path) -> Part:
        part = Part(path.name, path.stat().st_size, digest_of_file(path))
        self._bucket.put(f"{CHECKPOINT_FOLDER}/{part.name}", path)
        reach("bucket.checkpoint")
        return part

    def _put_small(self) -> None:
        """Put the files that people read, those that have changed since they were put last."""
        events = self.copy.folder / EVENTS_FOLDER
        small = [self.copy.folder / name for name in SMALL_FILES]
        for path in (*filter(Path.is_file, small), *(sorted(events.iterdir()) if events.is_dir() else ())):
            about = path.stat()  # before it is read
            if self._sent.get(path) == (about.st_size, about.st_mtime_ns):
                continue
            if path.parent == events:
                self._bucket.put(f"{EVENTS_FOLDER}/{path.name}", path)  # no other process has a file of that name
            else:
                self._own.put(path.name, path.read_bytes())
            self._sent[path] = about.st_size, about.st_mtime_ns

    def _remove(self, names: Iterable[str]) -> None:
        self._bucket.delete(f"{CHECKPOINT_FOLDER}/{name}" for name in names)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Say of what could not be put where it is kept."""
        try:
            self._own.check()
            yield
        except OutputError as error:
            if not self._own.is_held:
                raise
            raise OutputError(
                f"{str(error).rstrip('.')}. What was done is kept in {self.copy.folder}, from which --resume goes on with the same "
                f"{VARIABLE} on this machine."
            ) from error

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Put the model, and run.json last."""
        with self._keeping():
            self._put_small()
            for name in MODEL_FILES:
                self._own.put(f"{MODEL_FOLDER}/{name}", (self.copy.folder / MODEL_FOLDER / name).read_bytes())
            reach("bucket.run")
            self._own.write(self._own.latest.with_checkpoints(self._own.latest.checkpoints, None))
            self._own.put(RUN_FILE, (self.copy.folder / RUN_FILE).read_bytes())
            self._remove([CODES_FILE])
            self._remove_strays()
        self._is_finished = True

    def leave(self) -> None:
        """Put what a fit that has failed says of itself, if that can be done."""
        if self._lease is None or not self._lease.is_held:
            return
        try:
            self._put_small()
            for path in self.copy.folder.glob(f"{NONFINITE}*.json"):
                self._bucket.put(path.name, path)
        except ScamacError as error:
            logger.warning("%s", error)

    def discard(self) -> None:
        """Remove what this process wrote, where that is no more than that it has the run."""
        self.copy.remove()
        if self._lease is not None and not self._lease.latest.checkpoints:
            with suppress(ScamacError):
                self._lease.give_back()

    def forget(self) -> None:
        """Remove the local copy, if the run has finished: then all is in the bucket."""
        if self._is_finished:
            self.copy.remove()


def is_finished(bucket: Bucket) -> bool:
    """Tell by its run.json whether a run in a bucket has come to its end."""
    seen = see(bucket, RUN_FILE)
    try:
        return seen is not None and parse_json(seen.content, is_finite=False).get("finished") is True
    except ValueError:
        return False
