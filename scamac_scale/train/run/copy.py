"""The local copy of a run in a bucket: what a fit goes on from, fetched and compared with what was written."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.plain import digest_of_file, read_json, sealed
from scamac_scale.errors import OutputError, StoreError
from scamac_scale.remote.work import VARIABLE, work_folder
from scamac_scale.train.run.checkpoints import is_whole, number_of
from scamac_scale.train.run.report import CHECKPOINT_FOLDER, CODES_FILE, CONFIG_FILE, LOCK_FILE, METRICS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.remote.bucket import Bucket
    from scamac_scale.train.run.latest import Latest, Part

logger = logging.getLogger(__name__)

SMALL_FILES = (CONFIG_FILE, METRICS_FILE)
CLAIM_FILE, MEET_FILE = "claim.json", "meet"
"""Beside the folder: the token under which this machine had the run last; by what ranks see that they share it."""


class LocalCopy:
    """A folder on a local disk, the same for all ranks of a machine and for the next start there.

    Parameters
    ----------
    bucket
        At the place of the run.

    Attributes
    ----------
    folder
        Of the run.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._place = bucket, bucket.place
        self._home = work_folder(bucket.place, "runs")
        self.folder = self._home / "run"

    def bring_in_line(self, latest: Latest, *, resume: bool) -> Latest:
        """Fetch what a fit goes on from, and is not here.

        Parameters
        ----------
        latest
            What there is in the bucket.
        resume
            Whether a fit goes on: what this machine saved last, and did not come to put into the bucket, is then taken, too, where
            nobody else has had the run since.

        Returns
        -------
        Latest
            Without checkpoints that are damaged.

        Raises
        ------
        StoreError
            If all are.
        """
        if not (resume and latest.token and self._token() == latest.token):
            self._clear()
        newest, folder = latest.newest, self.folder / CHECKPOINT_FOLDER
        if newest is None:
            return latest
        with writing(folder):
            folder.mkdir(exist_ok=True)
            here = [path for path in folder.iterdir() if number_of(path.name) is not None]
            for path in here:
                if not is_whole(path):
                    path.unlink()
        last = number_of(newest.name) or 0
        if any(path.exists() and (number_of(path.name) or 0) >= last for path in here):
            return latest
        latest = self._fetch_checkpoint(latest, folder)
        if latest.codes is not None:
            self._fetch_part(latest.codes, folder)
        for name in SMALL_FILES:
            with suppress(FileNotFoundError):
                self._bucket.fetch(name, self.folder / name)
        return latest

    def _clear(self) -> None:
        """Empty the folder, but for the lock."""
        with writing(self.folder):
            for path in self.folder.iterdir():
                if path.name.startswith(LOCK_FILE):
                    continue
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _fetch_checkpoint(self, latest: Latest, folder: Path) -> Latest:
        parts = list(latest.checkpoints)
        while parts:
            if self._fetch_part(parts[-1], folder):
                return latest.with_checkpoints(tuple(parts), latest.codes)
            parts.pop()
        named = ", ".join(str(self._place / CHECKPOINT_FOLDER / part.name) for part in latest.checkpoints)
        raise StoreError(
            f"all checkpoints are damaged or missing ({named}); put a copy back, or remove the run and start anew."
        )

    def _fetch_part(self, part: Part, folder: Path) -> bool:
        """Fetch a file of a checkpoint; whether it is what was written."""
        key, path = f"{CHECKPOINT_FOLDER}/{part.name}", folder / part.name
        try:
            self._bucket.fetch(key, path)
        except FileNotFoundError:
            logger.warning("%s is missing", self._place / key)
            return False
        is_sound = digest_of_file(path) == part.sha256 if part.sha256 else part.name == CODES_FILE or is_whole(path)
        if not is_sound:
            logger.warning("%s cannot be used (its content is not what was written)", self._place / key)
            path.unlink()
        return is_sound

    # ------------------------------------------------------------------ whose it is

    def _token(self) -> str:
        with suppress(OSError, ValueError):
            return str(read_json(self._home / CLAIM_FILE).get("token", ""))
        return ""

    def note(self, token: str) -> None:
        """Note under which token this machine has the run."""
        with writing(self._home), atomic_file(self._home / CLAIM_FILE) as partial:
            partial.write_text(sealed({"place": str(self._place), "token": token}))

    def meet(self, token: str) -> None:
        """Leave a token where all ranks look for it."""
        with writing(self._home):
            (self._home / MEET_FILE).write_text(token)

    def sees(self, token: str) -> bool:
        """Tell on any rank whether its folder is that of rank 0."""
        with suppress(OSError):
            return (self._home / MEET_FILE).read_text() == token
        return False

    def unseen(self, ranks: list[int]) -> OutputError:
        """Make the error of ranks that have another folder."""
        named = ", ".join(map(str, ranks))
        return OutputError(
            f"{self._home}, where rank 0 keeps its copy of {self._place}, is not seen by rank {named}: ranks share a folder while they "
            f"work; set {VARIABLE} to one on a file system that all machines see, or use one machine."
        )

    def remove(self) -> None:
        """Remove the folder, and all beside it."""
        shutil.rmtree(self._home, ignore_errors=True)
