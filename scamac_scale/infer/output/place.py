"""Where a result goes: a path, or a place in a bucket by way of a local disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scamac_scale.durable.foreign import at_home
from scamac_scale.infer.output.already_there import is_finished
from scamac_scale.infer.output.bucket import ResultBucket
from scamac_scale.infer.output.table import check_suffix, check_target
from scamac_scale.remote.place import is_url, parse

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class OutPlace:
    """Where a result goes.

    Attributes
    ----------
    path
        Where it is made, on a disk.
    bucket
        Where it is put then; None where it stays.
    """

    path: Path
    bucket: ResultBucket | None = None

    def __str__(self) -> str:
        """Name it as the user does."""
        return str(self.path if self.bucket is None else self.bucket.place)

    @property
    def found_at(self) -> Path | str:
        """What a caller is given: a path, or a URL."""
        return self.path if self.bucket is None else str(self.bucket.place)

    def check(self, *, resume: bool) -> None:
        """Refuse what cannot be written, before any work."""
        check_suffix(str(self))
        if self.bucket is not None:
            self.bucket.check(resume=resume)
        elif not (resume and self.path.exists()):
            check_target(self.path)

    def look(self, belongs: dict[str, Any], *, resume: bool) -> Literal["done", "made", "wanted"]:
        """Tell whether the result is there, is made and not put yet, or is wanted; see `ResultBucket.begin` for what it raises."""
        if self.bucket is not None:
            if self.bucket.begin(belongs, resume=resume):
                return "done"
            return "made" if resume and is_finished(self.path, belongs) else "wanted"
        return "done" if resume and is_finished(self.path, belongs) else "wanted"


def find_out(out: str | Path) -> OutPlace:
    """Tell where a result goes.

    Parameters
    ----------
    out
        A path, or a URL such as ``s3://bucket/result.zarr``.

    Raises
    ------
    ConfigError, InputError, OutputError
        If it is a URL that cannot be used, has another ending, or there is no place where the result can be made.
    """
    if not is_url(out):
        return OutPlace(at_home(out))
    place = parse(out)
    check_suffix(str(place))
    bucket = ResultBucket(place)
    return OutPlace(bucket.path, bucket)
