"""The folder of one run: config.yaml, metrics.csv, TensorBoard files, run.json, beside the model."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.differences import differences, plain, told
from scamac_scale.durable.locks import lock
from scamac_scale.durable.plain import sealed_yaml
from scamac_scale.errors import (
    ConfigError,
    LostRankError,
    NumericalError,
    OutputError,
    ScamacError,
    StoppedError,
    StoreError,
)
from scamac_scale.ranks.collectives import from_first, gather_objects
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.run.checkpoints import Checkpoints
from scamac_scale.train.run.place import RunPlace, find_run
from scamac_scale.train.run.report import (
    CHECKPOINT_FOLDER,
    CODES_FILE,
    CONFIG_FILE,
    EVENTS_FOLDER,
    LOCK_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    NFS_FILE,
    check_run_tree,
    finished_words,
    is_finished,
    is_own,
    set_report_aside,
    write_report,
)
from scamac_scale.train.run.writers import MetricsLog

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from scamac_scale.config import ScamacConfig
    from scamac_scale.train.run.bucket import RunBucket
    from scamac_scale.train.run.checkpoints import State

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run; a context manager. Rank 0 writes, the others know where.

    What was refused leaves nothing: if the block ends with an error of input, settings or output before there is a checkpoint, the
    folder is removed. Otherwise it stays, run.json says that the run is not finished, and it can be resumed.

    Parameters
    ----------
    place
        New or empty folder, that of a run that did not come to a checkpoint, which is replaced, or with `resume` of any run that did
        not finish; or a place in a bucket, from `find_run`.
    config
        Of the run; written at once.
    resume
        Go on from the last checkpoint, if there is one.
    world
        This rank, and how many there are.

    Attributes
    ----------
    path
        The folder; of a run in a bucket its local copy.
    name
        What the user calls it.
    saved
        State of the checkpoint to go on from; None at the start of a run.
    cells_digest
        Of the cells that are fitted, by `sources.cells_digest`; set by the fit.
    origin
        Where they are from, by `sources.origin`; set by the fit.

    Raises
    ------
    OutputError
        If the folder holds something else, or a run that is not to be resumed, or cannot be written.
    ConfigError
        If a run is resumed with other settings.
    """

    def __init__(
        self,
        place: str | Path | RunPlace,
        config: ScamacConfig,
        *,
        resume: bool = False,
        world: World = ALONE,
    ) -> None:
        place = place if isinstance(place, RunPlace) else find_run(place)
        self.path, self.name, self._bucket = (
            place.path,
            str(place.path if place.bucket is None else place),
            place.bucket,
        )
        self.world = world
        self.checkpoints = Checkpoints(self.path / CHECKPOINT_FOLDER)
        self._config = config
        self._start_s = time.time()
        self._metrics: MetricsLog | None = None  # of rank 0
        self.cells_digest = ""
        self.origin: dict[str, Any] = {}
        self._lock = ExitStack()
        self.saved: State | None = from_first(lambda: self._open(resume), world)
        if place.bucket is not None:
            self._meet(place.bucket)

    def _open(self, resume: bool) -> State | None:
        """Make or take the folder, on rank 0; the state to go on from."""
        with writing(self.path):
            if self.path.is_dir():
                check_run_tree(self.path)
            is_made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.enter_context(lock(self.path / LOCK_FILE, self.path))
            except BaseException:
                if is_made:
                    with suppress(OSError):  # another job has begun to write there
                        self.path.rmdir()
                raise
            try:
                if self._bucket is not None:
                    self._bucket.look(resume=resume)
            except BaseException:
                self._lock.close()
                if is_made:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise
            is_new = not self._held()
            try:
                saved = None if is_new else self._find_checkpoint(resume)
                self.checkpoints.folder.mkdir(exist_ok=True)  # first: it tells a run from other folders
                n_rows, step = (saved["n_logged"], saved["state"]["step"]) if saved else (0, None)
                self._metrics = MetricsLog(self.path / METRICS_FILE, self.path / EVENTS_FOLDER, n_rows, step)
                if saved is None:
                    with atomic_file(self.path / CONFIG_FILE) as partial:
                        partial.write_text(sealed_yaml(plain(asdict(self._config))))
            except BaseException:
                self._lock.close()
                if is_new:
                    self.discard()
                raise
        return saved

    def _meet(self, bucket: RunBucket) -> None:
        """See whether all ranks work in the folder that rank 0 has filled."""
        token = from_first(lambda: uuid.uuid4().hex, self.world)
        from_first(lambda: bucket.copy.meet(token), self.world)
        blind = [rank for rank, seen in enumerate(gather_objects(bucket.copy.sees(token), self.world)) if not seen]
        if blind:
            self._lock.close()
            raise bucket.copy.unseen(blind)

    def begin(self) -> None:
        """Take the run, on rank 0, when nothing is left that could refuse it."""
        if self._bucket is not None:
            self._bucket.claim()

    def _held(self) -> list[Path]:
        return [
            path for path in self.path.iterdir() if not path.name.startswith((LOCK_FILE, NFS_FILE))
        ]  # others may try to lock it

    def _find_checkpoint(self, resume: bool) -> State | None:
        """Look what the folder holds, and clear away a run that never came to its first step."""
        held = self._held()
        if is_finished(self.path):
            raise OutputError(finished_words(self.name))
        if not resume and self.checkpoints.has_progress():
            raise OutputError(f"{self.path} holds a run that was stopped; add --resume to go on, or remove the folder.")
        saved = _checked(self.checkpoints) if resume else None
        if saved is None:
            if not is_run(self.path):
                raise OutputError(
                    f"the run folder {self.path} is not empty, and no run has written all that is in it; name a new one."
                )
            logger.warning("%s holds a run that did not come far; it starts anew", self.path)
            for path in held:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return None
        check_same_settings(saved["config"], asdict(self._config), self.name)
        set_report_aside(self.path)
        logger.info("%s goes on from step %d", self.name, saved["state"]["step"])
        return saved

    @property
    def model_path(self) -> Path:
        """Where the model is exported."""
        return self.path / MODEL_FOLDER

    @property
    def code_path(self) -> Path:
        """Where the clusters of all cells in the consensus members lie, until the run has finished."""
        return self.checkpoints.folder / CODES_FILE

    @property
    def n_logged(self) -> int:
        """Rows of metrics.csv; none on ranks but 0."""
        return self._metrics.n_rows if self._metrics else 0

    def log(self, values: dict[str, float], step: int) -> None:
        """Add a row to metrics.csv, and points to TensorBoard."""
        with writing(self.path):
            if self._metrics is not None:
                self._metrics.add(values, step)

    def save(self, state: State, in_flight: State | None = None) -> None:
        """Write a checkpoint: the state of the fit and of a sweep in flight, the settings, the cells, the rows of metrics.csv."""
        with writing(self.path):
            if self._metrics is not None:
                self._metrics.save()
        about = {"config": plain(asdict(self._config)), "data": self.cells_digest, "n_logged": self.n_logged}
        path = self.checkpoints.save({"state": state, "in_flight": in_flight, **about}, state["step"])
        if self._bucket is not None:
            self._bucket.saved(path, (state["target"] or {}).get("digest", ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world.rank != 0:
            return
        with self._lock:
            is_refused = isinstance(error, ScamacError) and not isinstance(
                error, NumericalError | StoppedError | LostRankError
            )
            if is_refused and not any(self.checkpoints.folder.iterdir()):
                self.discard()
                return
            try:
                with writing(self.path):
                    if self._metrics is not None:
                        self._metrics.close()
                    if error is not None:
                        self._write({"finished": False, "error": str(error) or type(error).__name__})
            except OutputError:
                if error is None:
                    raise  # the disk may be full, which is what the first error says
            if self._bucket is not None:
                self._bucket.forget() if error is None else self._bucket.leave()

    def discard(self) -> None:
        """Remove the folder with all that this run wrote."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._bucket is not None:
            self._bucket.discard()

    def finish(self, report: dict[str, Any]) -> None:
        """Write run.json of a finished run: versions, commit, hardware, seed, times, peak memory and the report.

        Parameters
        ----------
        report
            What the fit says of itself; plain data.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        if self.world.rank != 0:
            return
        with writing(self.path):
            if self._metrics is not None:
                self._metrics.save()
            self._write({"finished": True, "cells_digest": self.cells_digest, **self.origin, **report})
            self.code_path.unlink(missing_ok=True)
        if self._bucket is not None:
            self._bucket.finish()

    def _write(self, content: dict[str, Any]) -> None:
        write_report(self.path, self._config, {"seconds": round(time.time() - self._start_s, 3), **content})


def is_run(path: Path) -> bool:
    """Tell whether a folder holds a run, and nothing that no run writes: only then may it be cleared."""
    return all(is_own(entry.name) for entry in path.iterdir()) and (path / CHECKPOINT_FOLDER).is_dir()


def _checked(checkpoints: Checkpoints) -> State | None:
    """Read the newest checkpoint, and see whether it has the parts that a run writes."""
    saved = checkpoints.newest()
    parts: dict[str, Any] = {
        "config": dict,
        "data": str,
        "n_logged": int,
        "state": dict,
        "in_flight": (dict, type(None)),
    }
    if saved is not None:
        odd = [name for name, kind in parts.items() if name not in saved or not isinstance(saved[name], kind)]
        step = None if odd else saved["state"].get("step")
        if odd or saved["n_logged"] < 0 or type(step) is not int:
            raise StoreError(
                f"the checkpoint {checkpoints.newest_path} is of no run ({', '.join(odd) or 'its steps'}: not as a run writes it); put a "
                "copy back, or start a new run."
            )
    return saved


FREE_KEYS = frozenset(
    f"{part}.{name}"
    for part, names in {
        "train": ("checkpoint_every_s", "checkpoint_every_steps", "timeout_s", "setup_timeout_s", "log_every_s"),
        "loader": ("cache", "cache_bytes", "threads", "ahead", "densify"),
    }.items()
    for name in names
)
"""Settings that change nothing of the result, and may be others when a run is resumed."""


def result_settings(config: ScamacConfig) -> dict[str, Any]:
    """Give the settings on which the result depends, by their full names; those that are None are left out."""
    return {key: value for key, _, value in differences({}, asdict(config)) if key not in FREE_KEYS}


def check_same_settings(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Refuse to resume a run with settings that would change its result; one that an earlier version did not know had its default.

    Raises
    ------
    ConfigError
        Naming those that differ.
    """
    from scamac_scale.config import ScamacConfig

    defaults = {key: value for key, _, value in differences({}, asdict(ScamacConfig()))}
    found = sorted(
        each
        for each in differences(before, now)
        if each.key not in FREE_KEYS and (_holds(before, each.key) or each.after != defaults.get(each.key))
    )
    if found:
        raise ConfigError(
            f"{where} cannot go on with other settings: {told(found, most=3)}; leave them as they were, or start a new run."
        )


def _holds(settings: dict[str, Any], key: str) -> bool:
    """Whether settings have a value, be it None, under a full name."""
    *path, last = key.split(".")
    for name in path:
        settings = settings.get(name, {})
    return last in settings


def check_same_cells(before: str | None, now: str, where: str) -> None:
    """Refuse to resume a run with other cells, by their digests.

    Raises
    ------
    ConfigError
        If they differ.
    """
    if before != now:
        raise ConfigError(
            f"{where} was started with other cells or genes than these; give the data that it was started with, or start a new run."
        )
