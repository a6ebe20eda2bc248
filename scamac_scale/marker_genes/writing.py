"""A table into ``uns`` of a result that is there: the result is as it was or has all of it, whatever ends the process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.atomic import (
    absolute,
    atomic_file,
    atomic_folder,
    bytes_below,
    check_output,
    check_room,
    flush,
    flush_name,
    scratch_folder,
    writing,
)
from scamac_scale.durable.faults import reach
from scamac_scale.errors import InputError, OutputError
from scamac_scale.infer.output.table import check_suffix
from scamac_scale.marker_genes import into_h5ad
from scamac_scale.marker_genes.parts import unstable_types, write_part
from scamac_scale.remote.place import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scamac_scale.marker_genes.table import MarkerTable

    Write = Callable[[str, Iterable[tuple[str, Any]]], None]

ROOTS = ("zarr.json", ".zgroup")
"""One of them makes a folder a zarr, of version 3 or 2."""
METADATA = (*ROOTS, ".zattrs", ".zarray", ".zmetadata")
"""Files that zarr may write anew: they are copied, never linked."""
HEAD_BYTES = 4096


def check_result(out: str | Path) -> Path:
    """Refuse a result that cannot be written into, before any work.

    Returns
    -------
    Path
        Of the zarr or h5ad, absolute.

    Raises
    ------
    InputError
        If there is nothing, or no zarr or h5ad.
    OutputError
        If it lies in a bucket, is a link, or cannot be written.
    """
    if is_url(out):
        raise OutputError(
            f"{out} lies in object storage, where nothing can be added to a result in one step; copy it to a disk, and put it back "
            "afterwards."
        )
    check_suffix(out)
    path = absolute(out)
    if not path.exists():
        raise InputError(f"there is no result {path}; name one that predict has written.")
    if path.is_symlink():
        raise OutputError(f"{path} is a link, and would be replaced; name what it leads to.")
    if path.is_dir() != (path.suffix == ".zarr"):
        raise InputError(f"{path} is not what its name says; a .zarr is a folder, a .h5ad a file.")
    check_output(path, overwrite=True, marker=_root(path)) if path.is_dir() else check_output(_beside(path))
    return path


def _root(path: Path) -> str:
    return next((name for name in ROOTS if (path / name).is_file()), ROOTS[0])


def _beside(path: Path) -> Path:
    """Make up a name in the same folder that nobody has."""
    return path.with_name(f".{path.name}.probe")


@contextmanager
def into_result(path: Path) -> Iterator[Write]:
    """Be the only writer of a result, and add a part of uns to it at the end.

    Parameters
    ----------
    path
        From `check_result`.

    Yields
    ------
    Callable
        ``write(key, elements)``: sets ``uns[key]``, once; it is in the result when the block has ended without an error.

    Raises
    ------
    OutputError
        If another job is writing it, or it cannot be written: then it is as it was.
    """
    with _into_zarr(path) if path.is_dir() else _into_h5ad(path) as write:
        yield write


@contextmanager
def _into_zarr(path: Path) -> Iterator[Write]:
    with atomic_folder(path, overwrite=True, marker=_root(path), rename_point="markers.rename") as folder:

        def write(key: str, elements: Iterable[tuple[str, Any]]) -> None:
            with writing(path):
                _mirror(path, folder, f"uns/{key}")
                _add(folder, f"uns/{key}", elements)

        yield write


def _mirror(source: Path, target: Path, without: str) -> None:
    """Make the same folder: arrays by links to their files, which nobody changes, all else by copies."""
    for parent, folders, files in os.walk(source):
        place = Path(parent).relative_to(source)
        folders[:] = [name for name in folders if (place / name).as_posix() != without]
        (target / place).mkdir(exist_ok=True)
        is_copied = place.parts[:1] == ("uns",)
        for name in files:
            one, other = Path(parent) / name, target / place / name
            if is_copied or name in METADATA or not _linked(one, other):
                shutil.copyfile(one, other)


def _linked(one: Path, other: Path) -> bool:
    """Give a file a second name; False where the file system has no such names."""
    try:
        os.link(one, other)
    except OSError:
        return False
    return True


def _add(folder: Path, place: str, elements: Iterable[tuple[str, Any]]) -> None:
    """Write a group of a zarr, part by part."""
    import zarr
    from anndata.io import write_elem

    is_consolidated = _is_consolidated(folder)
    group: Any = zarr.open_group(folder, mode="r+", use_consolidated=False)  # Any: zarr's members are not typed
    for name in (place.split("/")[0], place):
        if name not in group:
            write_elem(group, name, {})
    for name, value in elements:
        write_part(group[place], name, value, {"shards": None})
    if is_consolidated:
        with unstable_types():
            zarr.consolidate_metadata(str(folder))


def _is_consolidated(folder: Path) -> bool:
    if (folder / ".zmetadata").is_file():
        return True
    try:
        return bool(json.loads((folder / "zarr.json").read_text()).get("consolidated_metadata"))
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def _into_h5ad(path: Path) -> Iterator[Write]:
    """By way of a zarr of the table, which a child process writes into a new file, with all else copied as it is."""
    with scratch_folder(path) as folder:

        def write(key: str, elements: Iterable[tuple[str, Any]]) -> None:
            import zarr

            with writing(path):
                zarr.open_group(folder / "table.zarr", mode="w", zarr_format=3)
                _add(folder / "table.zarr", "table", elements)
                check_room(path, path.stat().st_size + 2 * bytes_below(folder))
                _convert(path, folder, key)

        yield write
        with writing(path):
            flush(folder / path.name)
            flush(path.parent)
            shutil.copymode(path, folder / path.name)
            reach("markers.rename")
            (folder / path.name).replace(path)
            flush_name(path)


def _convert(path: Path, folder: Path, key: str) -> None:
    """Have a child make the new h5ad: HDF5 on a full disk ends its process with a segmentation fault."""
    command = [
        sys.executable,
        "-P",
        "-m",
        into_h5ad.__name__,
        str(path),
        str(folder / "table.zarr"),
        str(folder / path.name),
        key,
    ]
    paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the child finds what this process finds
    log = folder / "convert.log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "PYTHONPATH": paths}
        )
    try:
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code != 0:
        reason = log.read_text(errors="replace").strip().splitlines()[-1:] or [f"code {code}"]
        raise OutputError(f"{path} cannot be written: {reason[0]}; make room, or write .zarr. It is as it was.")


# ------------------------------------------------------------------ CSV


def check_csv(csv: str | Path, header: str) -> Path:
    """Refuse a CSV that cannot be written, before any work; one with the same header is a table of ours, and replaced.

    Raises
    ------
    OutputError
        If there is another file of that name, or it cannot be written.
    """
    if is_url(csv):
        raise OutputError(f"{csv} lies in object storage; write the table to a disk, and put it there.")
    path = absolute(csv)
    if not os.path.lexists(path):
        return check_output(path)
    is_ours = path.is_file() and not path.is_symlink()
    if is_ours:
        with writing(path), path.open("rb") as file:
            is_ours = file.read(HEAD_BYTES).startswith(f"{header}\n".encode())
    if not is_ours:
        raise OutputError(
            f"{path} is already there, and no table of markers; remove it or choose another name with --csv."
        )
    check_output(_beside(path))
    return path


def write_csv(path: Path, table: MarkerTable) -> None:
    """Write the table, whole or not at all."""
    with (
        writing(path),
        atomic_file(path, is_result=True) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        table.write_csv(file)
