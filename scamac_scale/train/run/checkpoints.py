"""Checkpoints of a fit: complete or absent, checked when read, the last two kept.

A checkpoint is one file of tensors and plain data, named by its number, its step and the hash of its content; `torch.load` reads it
with ``weights_only=True``, so that it runs no code, and what comes from it is looked through before anybody uses it: the hash tells
damage, not who wrote the file. What a model needs for inference is another matter: see `scamac_scale.fitted`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.faults import reach
from scamac_scale.durable.plain import MAX_DEPTH, MAX_VALUES, MAX_WHOLE, digest_of_file, read_plain, size_of_plain
from scamac_scale.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT = 2
VERSION = 3
"""Of what a checkpoint holds and what a stage means; raised when either changes. There was none at first."""
_NAME = re.compile(r"(\d{6,})-step-(\d+)-([0-9a-f]{16})\.pt")
_PARTIAL = ".partial"
"""One name for all: what a kill has left is written over."""

_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8)
) | {torch.uint8, torch.uint16, torch.uint32, torch.bool}
_ODD = (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, LookupError)
"""What reading a damaged or crafted file may end with; with `TypeError` and the like, see `newest`."""

State = dict[str, Any]
"""Tensors, numbers, strings, None, and lists and dicts of them."""


def number_of(name: str) -> int | None:
    """Tell the number of a checkpoint by the name of its file; None where that is none of ours."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_whole(path: Path) -> bool:
    """Tell whether the bytes of a checkpoint are those that its name stands for."""
    match = _NAME.fullmatch(path.name)
    return match is not None and digest_of_file(path)[:16] == match[3]


class _File(NamedTuple):
    number: int
    path: Path
    digest: str


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder
        Made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest_path: Path | None = None
        """Of the one that `newest` has read."""
        self._damaged: list[Path] = []

    def _files(self) -> list[_File]:
        """All of them, the oldest first."""
        if not self.folder.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(_File(int(match[1]), path, match[3]) for match, path in matches if match)

    def save(self, state: State, step: int) -> Path:
        """Write one, and remove all but the last two.

        Parameters
        ----------
        state
            Tensors and plain data.
        step
            For the name.

        Returns
        -------
        Path
            The file: on the disk, not only in the cache of the system, when this returns.

        Raises
        ------
        OutputError
            If it cannot be written. Those before are untouched.
        """
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **state}, buffer)
        content = buffer.getbuffer()
        files = self._files()
        number = files[-1].number + 1 if files else 0
        path = self.folder / f"{number:06d}-step-{step}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        half = len(content) // 2
        with writing(path):
            self.folder.mkdir(exist_ok=True)
            place = atomic_file(path, partial=self.folder / _PARTIAL, rename_point="checkpoint.rename")
            with place as partial, partial.open("wb") as file:
                file.write(content[:half])
                reach("checkpoint.write")
                file.write(content[half:])
        reach("checkpoint.prune")
        for old in (*self._damaged, *(file.path for file in self._files()[:-KEPT])):
            if not old.is_dir():  # which is nobody's checkpoint, and may hold anything
                old.unlink(missing_ok=True)
        return path

    def has_progress(self) -> bool:
        """Tell by the names alone whether more than the first one, of before the steps, was ever written."""
        return any(file.number > 0 for file in self._files())

    def newest(self) -> State | None:
        """Read the last one; where it is damaged, say so and take the one before. Changes nothing.

        Returns
        -------
        State or None
            None where there is none.

        Raises
        ------
        StoreError
            If there are some, and all are damaged, or the last one is of another version.
        OSError
            If one cannot be read now: that is no damage.
        """
        files = self._files()
        for file in reversed(files):
            try:
                if file.path.is_dir():
                    raise ValueError("it is a folder")
                state = _read(file)
            except (*_ODD, TypeError, AttributeError, OverflowError, AssertionError, MemoryError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                logger.warning("the checkpoint %s cannot be used (%s)", file.path, reason)
                self._damaged.append(file.path)
                continue
            if state.get("version") != VERSION:
                raise StoreError(
                    f"the checkpoint {file.path} was written by another version of this program (its format is {str(state.get('version', 0))[:40]}, this "
                    f"one reads {VERSION}); go on with the version that wrote it, or start a new run."
                )
            self.newest_path = file.path
            return state
        if files:
            named = ", ".join(str(file.path) for file in files)
            raise StoreError(
                f"all checkpoints are damaged ({named}); put a copy back, or remove the folder and start anew."
            )
        return None

    def verify(self) -> int:
        """Read the bytes of all back, and compare them with their names; how many there are.

        Raises
        ------
        StoreError
            Naming the first that is not what was written.
        """
        files = self._files()
        for file in files:
            try:
                if digest_of_file(file.path)[:16] != file.digest:
                    raise ValueError("its content is not what was written")
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"the checkpoint {file.path} is damaged: {error}; put a copy back, or remove it."
                ) from error
        return len(files)


def _read(file: _File) -> State:
    """Read one; what is damaged or crafted is an error of one kind or another."""
    if digest_of_file(file.path)[:16] != file.digest:
        raise ValueError("its content is not what was written")
    content = read_plain(file.path, size_of_plain(file.path))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch unpacks what is packed, whatever its size
        entries = archive.infolist()
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("it is not written as we write it")
    state: State = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    _check(state, len(content))
    return state


def _check(state: State, n_bytes: int) -> None:
    """Refuse what is no plain data: other classes, also of tensors, circles, views that are larger than the file."""
    left: list[tuple[Any, int]] = [(state, 1)]
    n_values = 0
    while left:
        value, depth = left.pop()
        n_values += 1
        if depth > MAX_DEPTH or n_values > MAX_VALUES:
            raise ValueError("it is nested too deeply, or without end")
        if isinstance(value, dict):
            left += ((item, depth + 1) for pair in value.items() for item in pair)
        elif type(value) in (list, tuple):
            left += ((item, depth + 1) for item in value)
        elif isinstance(value, torch.Tensor):
            is_plain = type(value) is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu"
            if not is_plain or value.dtype not in _DTYPES or value.numel() * value.element_size() > n_bytes:
                raise ValueError("it holds a tensor of a kind that no fit has")
        elif type(value) is int:
            if abs(value) >= MAX_WHOLE:
                raise ValueError("it holds a number that is too large")
        elif value is not None and type(value) not in (str, float, bool):
            raise ValueError(f"it holds a {type(value).__name__}")
