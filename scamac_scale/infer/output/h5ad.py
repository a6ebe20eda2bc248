"""From an AnnData zarr to an h5ad, in a child process: HDF5 on a full disk ends its process with a segmentation fault."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from scamac_scale.durable.atomic import bytes_below, check_output, check_room, flush, flush_name, writing
from scamac_scale.durable.faults import reach
from scamac_scale.errors import OutputError
from scamac_scale.infer.output import convert

if TYPE_CHECKING:
    from pathlib import Path

LOOK_S = 1.0
"""Seconds between two looks at whether the child has ended."""


class Conversion:
    """The child process that converts; started on one rank, and never running on the others.

    Parameters
    ----------
    source
        The zarr.
    new
        The h5ad, in a hidden folder; what the child says lies beside it.
    target
        Its name in the end.
    """

    def __init__(self, source: Path, new: Path, target: Path) -> None:
        self._source, self._new, self._target = source, new, target
        self._log = new.with_name("convert.log")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child, if there is room."""
        check_room(self._target, 2 * bytes_below(self._source))
        command = [sys.executable, "-P", "-m", convert.__name__, str(self._source), str(self._new)]
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the child finds what this process finds
        environment = {**os.environ, "PYTHONPATH": paths}
        with writing(self._target), self._log.open("wb") as file:
            self._child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)

    def is_running(self) -> bool:
        """Wait for the end of the child for `LOOK_S`, and tell whether it has not come."""
        if self._child is None:
            return False
        try:
            self._child.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            return True
        return False

    def finish(self) -> None:
        """Give the h5ad its name, on the rank whose child has ended."""
        assert self._child is not None
        with writing(self._target):
            if self._child.returncode != 0:
                reason = self._log.read_text().strip().splitlines()[-1:] or [f"code {self._child.returncode}"]
                raise OutputError(f"{self._target} cannot be written: {reason[0]}; make room, or write .zarr.")
            flush(self._new)
            flush(self._target.parent)  # whether the disk takes names is found out before there is one
            check_output(self._target)  # it may have appeared in the meantime
            reach("predict.rename")
            self._new.rename(self._target)
            flush_name(self._target)

    def end(self) -> None:
        """End a child that still runs."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
