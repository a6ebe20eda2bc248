"""Where a run is kept: a folder, or a place in a bucket with a local copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scamac_scale.durable.foreign import at_home
from scamac_scale.remote.place import is_url, parse
from scamac_scale.train.run.bucket import RunBucket

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class RunPlace:
    """Where a run is kept.

    Attributes
    ----------
    path
        Folder in which the fit works.
    bucket
        What that is a copy of; None where the folder is the run.
    """

    path: Path
    bucket: RunBucket | None = None

    def __str__(self) -> str:
        """Name it as the user does."""
        return str(self.path.absolute()) if self.bucket is None else str(self.bucket.place)


def find_run(run: str | Path) -> RunPlace:
    """Tell where a run is kept.

    Parameters
    ----------
    run
        A folder, or a URL such as ``s3://bucket/runs/1``.

    Raises
    ------
    ConfigError, OutputError
        If it is a URL that cannot be used, or there is no place for a local copy.
    """
    if not is_url(run):
        return RunPlace(at_home(run))
    bucket = RunBucket(parse(run))
    return RunPlace(bucket.copy.folder, bucket)
