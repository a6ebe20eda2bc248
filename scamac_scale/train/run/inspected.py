"""A run in a bucket, for whoever looks at it: a copy of what is small, that is gone afterwards."""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.atomic import check_room
from scamac_scale.errors import InputError
from scamac_scale.remote.work import work_base
from scamac_scale.train.run.checkpoints import number_of
from scamac_scale.train.run.latest import NAME, Latest
from scamac_scale.train.run.report import CHECKPOINT_FOLDER, CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, RUN_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scamac_scale.remote.bucket import Bucket, Entry

logger = logging.getLogger(__name__)

RUN_NAMES = frozenset((NAME, CONFIG_FILE, RUN_FILE))
"""A folder with one of them is that of a run."""
_SMALL = RUN_NAMES | {METRICS_FILE, *(f"{MODEL_FOLDER}/{name}" for name in ("model.json", "model.safetensors"))}


@contextmanager
def fetched_run(
    bucket: Bucket, entries: Sequence[Entry], *, is_verified: bool
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Fetch what tells of a run.

    Parameters
    ----------
    bucket
        At the place of the run.
    entries
        All objects there.
    is_verified
        Whether the checkpoints are fetched, too.

    Yields
    ------
    Path
        A folder, as that of a run on a disk; gone at the end.
    dict
        What ``latest.json`` says: generation, host, the newest checkpoint; empty where there is none.

    Raises
    ------
    InputError, StoreError
        If something cannot be read, or ``latest.json`` is damaged.
    OutputError
        If the local disk has no room.
    """
    wanted = [entry for entry in entries if entry.key in _SMALL or (is_verified and _is_checkpoint(entry.key))]
    n_bytes = sum(entry.size for entry in wanted)
    base = work_base()
    check_room(base, n_bytes)
    logger.info("fetching %s bytes of %s", f"{n_bytes:,}", bucket.place)
    with tempfile.TemporaryDirectory(dir=base, prefix="look-") as name:
        folder = Path(name)
        for part in (CHECKPOINT_FOLDER, MODEL_FOLDER):
            if any(entry.key.startswith(f"{part}/") for entry in wanted):
                (folder / part).mkdir()
        for entry in wanted:
            with suppress(FileNotFoundError):  # the run goes on: a checkpoint gives way to another
                bucket.fetch(entry.key, folder / entry.key, entry)
        told: dict[str, Any] = {}
        if (folder / NAME).is_file():
            latest = Latest.from_bytes((folder / NAME).read_bytes(), bucket.place / NAME)
            told = {"generation": latest.generation, "held_by": latest.holder}
            if latest.newest is not None:
                told["newest_checkpoint"] = latest.newest.name
        try:
            yield folder, told
        except InputError as error:  # of what lies there: the copy has its bytes
            raise InputError(str(error).replace(str(folder), str(bucket.place))) from error


def _is_checkpoint(key: str) -> bool:
    folder, _, name = key.partition("/")
    return folder == CHECKPOINT_FOLDER and number_of(name) is not None
