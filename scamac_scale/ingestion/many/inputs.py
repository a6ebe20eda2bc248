"""What a user names as input, as a list of single ones: files, globs, manifests, an AnnData, and lists of these."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.manifest import is_manifest, read_manifest
from scamac_scale.ingestion.raw import IN_MEMORY
from scamac_scale.remote.patterns import glob as glob_objects
from scamac_scale.remote.patterns import is_pattern
from scamac_scale.remote.place import BucketPlace, is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_INPUTS = 100_000


@dataclass(frozen=True, eq=False)
class OneInput:
    """A single input.

    Attributes
    ----------
    data
        A path, an address such as ``s3://...``, or an AnnData.
    name
        What it is called, as the user named it; no two alike.
    matrix
        Where its values lie, if a manifest says so; None leaves it to ``ingest.matrix``.
    columns
        Of obs, each with the value that all of its cells have; None is a missing value.
    """

    data: Any  # Any: as said
    name: str
    matrix: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)  # Any: text, a number or a boolean


def is_list(data: Any) -> bool:  # Any: as of `list_inputs`
    """Whether this names inputs by way of a list, a glob or a manifest, and is not one itself."""
    if isinstance(data, (list, tuple)):
        return True
    if not isinstance(data, (str, os.PathLike)):
        return False
    if _is_address(data):
        return is_pattern(str(data))
    path = at_home(data)
    return is_manifest(path) or _is_glob(path)


def list_inputs(data: Any) -> tuple[OneInput, ...]:  # Any: as said below
    """List the single inputs that a user means.

    Parameters
    ----------
    data
        A path, a glob that no shell has expanded, a manifest (``.csv``, ``.tsv``, ``.yaml``, ``.yml``), an AnnData, or a list of
        these.

    Returns
    -------
    tuple of OneInput
        In the order given; those of a glob in the order of their names.

    Raises
    ------
    InputError
        If a list is empty, a glob finds nothing, a manifest cannot be read, or an input is given twice.
    """
    given = list(data) if isinstance(data, (list, tuple)) else [data]
    found = [one for entry in given for one in _single(entry)]
    if not found:
        raise InputError("there is no input: the list is empty; name at least one file.")
    if len(found) > MOST_INPUTS:
        raise InputError(f"{len(found):,} inputs are given; at most {MOST_INPUTS:,} are read.")
    _refuse_twice(found)
    return tuple(_named_apart(found))


def _single(entry: Any) -> Iterator[OneInput]:  # Any: as of `list_inputs`
    if isinstance(entry, (list, tuple)):
        raise InputError("an input is a list within a list; give one list of files.")
    if isinstance(entry, BucketPlace):
        entry = str(entry)
    if not isinstance(entry, (str, os.PathLike)):
        yield OneInput(entry, IN_MEMORY)
        return
    name = os.fspath(entry)
    if _is_address(entry):
        if is_pattern(name):
            found = glob_objects(name)
            if not found:
                raise InputError(f"nothing has a name like {name}; check the bucket and the pattern.")
            yield from (OneInput(str(place), str(place)) for place in found)
        else:
            yield OneInput(name, name)
        return
    path = at_home(entry)
    if is_manifest(path):
        for number, row in enumerate(read_manifest(path), start=1):
            place = row.path if _is_address(row.path) else path.parent / at_home(row.path)
            if isinstance(place, Path) and not os.path.lexists(place):
                raise InputError(
                    f"{path}: row {number} names {row.path}, which is not there; paths are relative to the manifest."
                )
            yield OneInput(place, row.path, row.matrix, row.columns)
    elif _is_glob(path):
        names = sorted(glob.glob(str(path), recursive=True))
        if not names:
            raise InputError(f"nothing has a name like {name}; check the folder and the pattern.")
        yield from (OneInput(Path(each), each) for each in names)
    else:
        yield OneInput(path, name)


def _is_address(entry: object) -> bool:
    return isinstance(entry, str) and is_url(entry)


def _is_glob(path: Path) -> bool:
    """Whether a path is a pattern; one that is there under just this name is none."""
    try:
        return glob.has_magic(str(path)) and not os.path.lexists(path)
    except ValueError:  # a zero byte: whoever opens it says so
        return False


def _refuse_twice(found: list[OneInput]) -> None:
    """Refuse an input that is given twice, by whatever name: its cells would count twice."""
    names: dict[Any, str] = {}  # Any: what tells an input
    for one in found:
        key: Any = id(one.data)
        if isinstance(one.data, str):
            key = one.data.rstrip("/")
        elif isinstance(one.data, Path):
            key = _identity(one.data)
        if key in names:
            same = "" if names[key] == one.name else f", for {names[key]} is the same"
            raise InputError(f"{one.name} is given twice{same}; its cells would count twice. Leave one out.")
        names[key] = one.name


def _identity(path: Path) -> Any:  # Any: two numbers, or a text
    """Tell a file from others: links, soft and hard ones, lead to the same."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.abspath(path)
    return status.st_dev, status.st_ino


def _named_apart(found: list[OneInput]) -> Iterator[OneInput]:
    """Give inputs whose names are alike others: their whole paths, or numbers."""
    counts = Counter(one.name for one in found)
    for number, one in enumerate(found, start=1):
        if counts[one.name] == 1:
            yield one
        elif isinstance(one.data, Path):
            yield replace(one, name=os.path.abspath(one.data))
        else:
            yield replace(one, name=f"{one.name}, number {number}")
