"""Checkpoints of a fit: complete or absent, checked when read, the last two kept.

A checkpoint is one file of tensors and plain data, named by its number, its step and the hash of its content; `torch.load` reads it
with ``weights_only=True``, so that it runs no code. What a model needs for inference is another matter: see `scamac_scale.fitted`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.faults import reach
from scamac_scale.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT = 2
VERSION = 2
"""Of what a checkpoint holds and what a stage means; raised when either changes. There was none at first."""
_NAME = re.compile(r"(\d{6,})-step-(\d+)-([0-9a-f]{16})\.pt")
_PARTIAL = ".partial"
"""One name for all: what a kill has left is written over."""

State = dict[str, Any]
"""Tensors, numbers, strings, None, and lists and dicts of them."""


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
        for damaged in self._damaged:
            damaged.unlink(missing_ok=True)
        for old in self._files()[:-KEPT]:
            old.path.unlink(missing_ok=True)
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
            content = file.path.read_bytes()
            try:
                if hashlib.sha256(content).hexdigest()[:16] != file.digest:
                    raise ValueError("its content is not what was written")
                state: State = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("the checkpoint %s cannot be used (%s)", file.path, error)
                self._damaged.append(file.path)
                continue
            if state.get("version") != VERSION:
                raise StoreError(
                    f"the checkpoint {file.path} was written by another version of this program (its format is {state.get('version', 0)}, this "
                    f"one reads {VERSION}); go on with the version that wrote it, or start a new run."
                )
            return state
        if files:
            named = ", ".join(str(file.path) for file in files)
            raise StoreError(
                f"all checkpoints are damaged ({named}); put a copy back, or remove the folder and start anew."
            )
        return None
