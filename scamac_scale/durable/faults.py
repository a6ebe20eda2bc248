"""Faults on demand, for tests: ``SCAMAC_FAULT=point:nth:action`` makes the nth passage of a point go wrong.

Several are separated by commas. A point may name one rank (``train.step@1:20:kill``). Without the variable a passage is the look-up
of an empty dict. Every fault that fires says so on standard error and, where ``SCAMAC_FAULT_LOG`` names a file, in a line of that
file; what stands there already does not fire again, so that a run which is started anew gets past it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.errors import ConfigError, choose

if TYPE_CHECKING:
    from collections.abc import Callable

FAULT = "SCAMAC_FAULT"
LOG = "SCAMAC_FAULT_LOG"
EXIT_CODE = 70
"""What the action ``exit`` ends with: no code of ours."""
SLEEP_S = 600.0
_ENTRY = re.compile(r"([^:@]*)(?:@(\d+))?:(\d+):([^:]*)")

POINTS = dict.fromkeys(
    (
        "ingest.read",  # a block of the input was read
        "ingest.deal",  # a part of the rows was dealt to the buckets of the shuffle
        "ingest.shard",  # a shard of the store is complete
        "ingest.note",  # it is written how far the ingest has come, but not yet in its place
        "ingest.commit",  # all is written, but for the commit record
        "ingest.rename",  # the store is about to get its name
        "cluster.task",  # a worker of a cluster has done a task
        "train.step",  # a gradient step was taken
        "train.loss",  # the loss of a block of cells is known (nan)
        "train.sweep",  # a batch of a sweep was added
        "train.correction",  # a pass of the correction of technical batches is done
        "train.consensus",  # the landmarks are labelled
        "train.landmarks",  # a batch of cells got its landmarks
        "checkpoint.write",  # a checkpoint is half written
        "checkpoint.rename",  # it is written, and about to get its name
        "checkpoint.prune",  # it has its name, and older ones are about to go
        "train.model",  # the model is about to be written
        "bucket.store",  # all of a store is in the bucket, but for its commit record
        "bucket.checkpoint",  # a checkpoint is in the bucket, and nothing names it yet
        "bucket.latest",  # all is there, and latest.json is about to name it
        "bucket.run",  # the model is in the bucket, and the run not sealed yet
        "predict.block",  # a block of cells was written
        "predict.rename",  # the result is about to get its name
        "markers.rename",  # a result with its markers is about to take the place of the one without
        "report.rename",  # a page and its pictures are about to get their name
        "refine.sums",  # the genes of all clusters are chosen
        "refine.cells",  # a block of cells was written for their clusters
        "refine.cluster",  # what came of a cluster is kept
        "refine.rename",  # all is written, and about to get its name
        "bucket.result",  # all of the result is in the bucket, but for the object by which it is found
    )
)
"""Every point, in the order of a run."""


class _Fault(NamedTuple):
    point: str
    nth: int
    action: str
    text: str


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


ACTIONS: dict[str, Callable[[], object]] = {
    "kill": _kill,
    "exit": lambda: os._exit(EXIT_CODE),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "enospc": _fail(errno.ENOSPC),
    "eio": _fail(errno.EIO),
    "eacces": _fail(errno.EACCES),
    "sleep": lambda: time.sleep(SLEEP_S),
    "nan": lambda: None,  # the caller spoils its numbers
}


def _parse(text: str, rank: int) -> dict[str, list[_Fault]]:
    found: dict[str, list[_Fault]] = {}
    for entry in filter(None, text.split(",")):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ConfigError(
                f"{FAULT}={text!r}; expected point:nth:action, such as train.step:20:kill or train.step@1:20:kill."
            )
        name, wanted_rank, nth, action = match.groups()
        choose(POINTS, name, FAULT)
        choose(ACTIONS, action, FAULT)
        if wanted_rank is None or int(wanted_rank) == rank:
            found.setdefault(name, []).append(_Fault(name, int(nth), action, entry))
    return found


@cache
def _faults() -> dict[str, list[_Fault]]:
    """Read the variable once, when the first point is passed."""
    return _parse(os.environ.get(FAULT, ""), int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))


_COUNTS: dict[str, int] = {}


def reach(point: str) -> str | None:
    """Pass a point; the fault that is meant for this passage, if any, happens here.

    Parameters
    ----------
    point
        Of `POINTS`.

    Returns
    -------
    str or None
        The action, where the caller has a part in it (``nan``).
    """
    if not (faults := _faults()):
        return None
    _COUNTS[point] = _COUNTS.get(point, 0) + 1
    for fault in faults.get(point, ()):
        if fault.nth == _COUNTS[point] and not _has_fired(fault):
            _tell(fault)
            ACTIONS[fault.action]()
            return fault.action
    return None


def _has_fired(fault: _Fault) -> bool:
    log = os.environ.get(LOG)
    return log is not None and Path(log).exists() and fault.text in Path(log).read_text().splitlines()


def _tell(fault: _Fault) -> None:
    sys.stderr.write(f"fault: {fault.text}\n")
    sys.stderr.flush()
    log = os.environ.get(LOG)
    if log is not None:
        with Path(log).open("a") as file:
            file.write(f"{fault.text}\n")
            file.flush()
            os.fsync(file.fileno())
