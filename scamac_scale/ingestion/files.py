"""Opening an HDF5 file or a zarr folder of a stranger: nothing that waits for ever, nothing that leads out of it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.foreign import at_home, foreign_entry, odd_kind
from scamac_scale.errors import InputError
from scamac_scale.ingestion.objects import open_object
from scamac_scale.ingestion.raw import blamed, nothing, reason
from scamac_scale.ingestion.strangers import EXPECTED, say_of_file, say_of_folder, say_of_hdf5
from scamac_scale.remote.place import BucketPlace, is_url, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
"""One of them lies in every zarr."""

CACHE_BYTES = 2**20
"""Chunks that HDF5 keeps of each array: runs of cells are read once each. HDF5 2 would keep eight times as much, of each of many files."""
Group = Any
"""An h5py or zarr group: looked up by name, with ``attrs``."""


@contextlib.contextmanager
def open_file(path: Path | BucketPlace, *, is_kept: bool = False) -> Iterator[Group]:
    """Open an HDF5 file or a zarr folder, on a disk or in a bucket.

    Parameters
    ----------
    path
        The file or folder.
    is_kept
        Whether it stays open at the end if nothing went wrong.

    Yields
    ------
    Group
        Its root.

    Raises
    ------
    InputError
        If there is nothing, or something else, it is damaged, or links lead out of it; whatever a library raises while it is open
        becomes one.
    """
    if isinstance(path, BucketPlace):
        group = _open_object(path)
        close = getattr(group, "close", nothing)
    elif odd := odd_kind(path):
        raise InputError(f"{path} is {odd}, which is not opened; {EXPECTED}.")
    elif _is(os.path.isdir, path):
        group, close = _open_zarr(path), nothing
    elif _is(os.path.isfile, path):
        group = _open_hdf5(path)
        close = group.close
    else:
        raise InputError(f"there is no file or folder {path}; {EXPECTED}.")
    try:
        with blamed(str(path), "it"):
            yield group
    except BaseException:
        close()
        raise
    if not is_kept:
        close()


def place_of(data: str | os.PathLike[str] | BucketPlace) -> Path | BucketPlace:
    """Take a path, or a URL of object storage; raises ConfigError for a URL of another kind."""
    return parse(data) if is_url(data) else at_home(data)  # type: ignore[arg-type]  # no path is a BucketPlace


def absolute_name(path: Path | BucketPlace) -> str:
    """Name a place so that a process elsewhere finds it."""
    return str(path) if isinstance(path, BucketPlace) else os.path.abspath(path)


def is_hdf5(group: Group) -> bool:
    """Whether what was opened is an HDF5 file; otherwise it is a zarr."""
    return type(group).__module__.startswith("h5py")


def _open_object(place: BucketPlace) -> Group:
    group = open_object(place)
    try:
        if is_hdf5(group):
            check_hdf5(group, str(place))
        else:
            with blamed(str(place), "it"):
                refuse_others(group, str(place))
    except BaseException:
        getattr(group, "close", nothing)()
        raise
    return group


def _is(kind: Any, path: Path) -> bool:  # Any: one of os.path's
    try:
        return bool(kind(path))
    except ValueError:  # a path with a zero byte
        return False


def _open_hdf5(path: Path) -> Group:
    import h5py

    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
    except OSError as error:
        raise InputError(say_of_file(path, error)) from error
    try:
        check_hdf5(file, str(path))
    except BaseException:
        file.close()
        raise
    return file


def check_hdf5(file: Group, name: str) -> None:
    """Refuse an HDF5 file with links that lead out of it, or of another kind, with an InputError; `name` is for the message."""
    with blamed(name, "it"):
        _refuse_links(file, name)
        refuse_others(file, name)


def _refuse_links(file: Group, name: str) -> None:
    """Refuse what makes an HDF5 file read other files."""
    import h5py

    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for key in group:
            if isinstance(group.get(key, getlink=True), h5py.SoftLink):
                continue  # leads to a place inside this file, which is looked at by itself
            where = f"{group.name.rstrip('/')}/{key}"
            if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                raise InputError(f"{name}: {where} is a link to another file, which is not followed; copy the data in.")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise InputError(
                        f"{name}: {where} keeps its values in other files, which are not read; copy the data in."
                    )
            elif isinstance(item, h5py.Group) and address not in seen:
                groups.append(item)
            seen.add(address)


def _open_zarr(path: Path) -> Group:
    import zarr

    if any(os.path.lexists(path / name) for name in ROOT_FILES):  # else there is no zarr, and the folder may be any
        refuse_foreign(path)
    try:
        group = zarr.open_group(str(path), mode="r")
    except Exception as error:  # zarr raises whatever its metadata lead to
        said = f"{path} is a folder, but not an AnnData zarr ({reason(error)})."
        raise InputError(f"{said}{say_of_folder(path)}") from error
    with blamed(str(path), "it"):
        refuse_others(group, str(path))
    return group


def refuse_foreign(path: Path) -> None:
    """Refuse a folder with links that lead out of it, pipes, sockets or devices, before a file in it is opened.

    Raises
    ------
    InputError
        Names the first.
    """
    try:
        found = foreign_entry(path)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be listed: {error.strerror}.") from error
    if found:
        name, what = found
        raise InputError(
            f"{path}: {name} is {what}, which is not followed; copy the data itself in (cp -rL, if you trust it)."
        )


def refuse_others(group: Group, name: str) -> None:
    """Refuse an HDF5 or zarr that holds something else, with an InputError."""
    if kind := say_of_hdf5(group):
        raise InputError(f"{name} is {kind}.")
