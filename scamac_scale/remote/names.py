"""Names of what is a path or a URL: those who hand them on need not know which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.durable.atomic import partial_folder
from scamac_scale.durable.foreign import at_home
from scamac_scale.remote.place import is_url, parse
from scamac_scale.remote.work import work_folder, working_in

if TYPE_CHECKING:
    from pathlib import Path


def below(path: str | Path, name: str) -> str:
    """Name something in a folder, which is a path or a URL."""
    return str(parse(path) / name) if is_url(path) else str(at_home(path) / name)


def has_partial(out: str | Path, scratch: str | None = None) -> bool:
    """Tell whether a writer of an output that was stopped has left something to go on with, in `scratch` where one was named."""
    if not is_url(out):
        return partial_folder(out).is_dir()
    with working_in(scratch):
        folders = [work_folder(parse(out), kind, is_made=False) for kind in ("results", "stores")]
        return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)
