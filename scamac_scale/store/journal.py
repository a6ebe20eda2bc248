"""How far the writing of a store has come: notes beside it, each whole or absent, from which a later run goes on.

The notes lie in the partial folder, never in the store. A note is made after what it tells of is on the disk, and before what
it makes superfluous is removed. So at any moment the notes tell of a state that can be gone back to exactly, and going on from
there gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import atomic_file, flush, partial_folder, scratch_folder, writing
from scamac_scale.durable.differences import differences, told
from scamac_scale.durable.plain import open_plain
from scamac_scale.durable.plain import read_json as plain_json
from scamac_scale.errors import ResumeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

_PLAN = "plan.json"
_COMPLETE = "complete"
_ANEW = "run again without resume, which begins anew"


class Journal:
    """Notes on one store that is being written.

    Parameters
    ----------
    folder
        Of the notes.
    out
        The store, for messages.

    Notes
    -----
    Every method that writes is durable when it returns: file and folder are flushed.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = folder
        self._out = out

    @classmethod
    def open(cls, store: Path, plan: Mapping[str, Any], out: Path) -> Journal:
        """Go on with what lies in a partial folder, or begin.

        Parameters
        ----------
        store
            Folder that becomes the store; the notes lie beside it.
        plan
            What is being done: plain values that JSON can hold.
        out
            The store, for messages.

        Returns
        -------
        Journal
            Without notes, and everything beside it gone, where nothing was noted.

        Raises
        ------
        ResumeError
            If something else was being done here; the message says what differs.
        """
        journal = cls(store.parent, out)
        with writing(out):
            if not (journal.folder / _PLAN).exists() or (journal._notes(_COMPLETE) and not journal.is_complete(store)):
                # the latter: it has got its name, and something else lies in its place now
                journal._clear()
                store.mkdir()
                with journal._put(_PLAN) as partial:
                    partial.write_bytes(json.dumps(plan, indent=1).encode())
                flush(journal.folder.parent)
        found = read_plan(store.parent)
        if found is None:
            raise journal.damaged(store.parent / _PLAN)
        if different := list(differences(found, plan)):
            raise ResumeError(
                f"What was left of {out} is of another ingest: {told(different)}. Ask for the same again, or run without resume, "
                "which begins anew."
            )
        return journal

    def note(self, name: str, **arrays: Any) -> None:  # Any: arrays and numbers
        """Make a note, in place of the one of that name."""
        with writing(self._out), self._put(f"{name}.npz") as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def read(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Read a note; None if it was not made."""
        path = self.folder / f"{name}.npz"
        try:
            with os.fdopen(open_plain(path), "rb") as file:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()):
                    raise ValueError("it is not written as we write it")  # what is packed may be of any size
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    return dict(arrays)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, LookupError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
            raise ResumeError(f"{path} is damaged ({error}); {_ANEW}.") from error

    def complete(self, store: Path) -> None:
        """Note that a store lacks nothing but its name; the caller has flushed it."""
        with writing(self._out), self._put(f"{_COMPLETE}.json") as partial:
            partial.write_bytes(json.dumps({"folder": store.stat().st_ino}).encode())

    def is_complete(self, store: Path) -> bool:
        """Whether `complete` was called, and it is this very folder, and not one that it has changed names with."""
        noted = self._notes(_COMPLETE)
        return bool(noted) and store.is_dir() and store.stat().st_ino == noted.get("folder")

    def damaged(self, what: Path) -> ResumeError:
        """Make the error for a file that is not as the notes say."""
        return ResumeError(f"{what} is not as it was left; {_ANEW}.")

    def _clear(self) -> None:
        (self.folder / _PLAN).unlink(missing_ok=True)  # first: without it, nobody believes the rest
        flush(self.folder)
        for path in list(self.folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _notes(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            return {}
        found = read_json(path)
        if found is None:
            raise self.damaged(path)
        return found

    def _put(self, name: str) -> AbstractContextManager[Path]:
        return atomic_file(self.folder / name, rename_point="ingest.note")


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Read what was being done in a partial folder; None where nothing can be read."""
    return read_json(folder / _PLAN)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file of named values; None where there is none, or it is damaged."""
    try:
        return plain_json(path)
    except (OSError, ValueError):
        return None


def discard(out: Path, *, if_plan: Mapping[str, Any]) -> None:
    """Remove what the writer of a store left, that was killed when the store had its name already."""
    found = read_plan(partial_folder(out))
    if found is not None and not list(differences(found, if_plan)):
        with scratch_folder(out):
            pass


def cut(path: Path, n_bytes: int) -> bool:
    """Shorten a file to what is known to be right; False where it is shorter than that."""
    if not path.is_file() or path.stat().st_size < n_bytes:
        return False
    os.truncate(path, n_bytes)
    return True
