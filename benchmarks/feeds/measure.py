"""What one feed costs and whether its batches are right, inside the process that runs it.

NumPy and the standard library only, for this runs in the interpreter of a peer as well.
"""

from __future__ import annotations

import importlib
import os
import resource
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TOLERANCE = 1e-6
"""Of the sum of |value * weight| of a cell. Values are float32, off by up to 2**-24 of themselves where they were rounded
once and by a few times that where log1p was taken in float32; a wrong or missing value is off by far more."""
CHECKED_ROWS = 256
"""Rows of a dense batch that are turned into float64 at a time."""


class Feed(ABC):
    """One way to get shuffled batches; each case derives from it.

    Attributes
    ----------
    modules
        What must be importable; a case that lacks one is reported as not installed.
    in_peer
        Whether the interpreter of the peers, if there is one, runs it.
    layouts
        What it can give: "dense" is (B, G) float32, NumPy or torch; "csr" is (indptr, indices, data).
    candidates
        Settings worth trying, the first one is the documented; the parent picks the fastest.
    is_exact
        Whether it promises each cell once an epoch.
    burst_batches
        Batches that one read brings; the clock starts and stops between reads only.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    in_peer: ClassVar[bool] = False
    layouts: ClassVar[tuple[str, ...]] = ("dense", "csr")
    candidates: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    is_exact: ClassVar[bool] = True
    burst_batches: int = 1

    def __init__(self, folder: Path, batch_cells: int, layout: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.batch_cells = batch_cells
        self.layout = layout
        self.settings = settings

    @classmethod  # noqa: B027  most cases need nothing more
    def prepare(cls, folder: Path) -> None:
        """Write what this feed needs beside the shared files, once."""

    @classmethod
    @abstractmethod
    def files(cls, folder: Path) -> list[Path]:
        """List the files and folders that the feed reads."""

    def imports(self) -> None:
        """Import what `open` and `epochs` need; timed apart."""
        for module in self.modules:
            importlib.import_module(module)

    @abstractmethod
    def open(self) -> None:
        """Open the data and set `n_cells`."""

    n_cells: int = 0

    @abstractmethod
    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Give endless epochs, each an iterable of (ids (B,) int64, values)."""

    def close(self) -> None:  # noqa: B027  most cases hold nothing open
        """Let go of files and workers."""


class Stream:
    """The batches of a feed without end, counted."""

    def __init__(self, feed: Feed, seed: int) -> None:
        self._feed = feed
        self._epochs = iter(feed.epochs(seed))
        self._batches: Iterator[tuple[np.ndarray, Any]] = iter(())
        self._batches_of_epoch = 0
        self._cells_of_epoch = 0
        self.epoch = -1

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[np.ndarray, Any]:
        """Give the next batch, of the next epoch if one has ended."""
        for _ in range(2):
            for ids, values in self._batches:
                self._batches_of_epoch += 1
                self._cells_of_epoch += len(ids)
                return ids, values
            self._batches = iter(next(self._epochs))
            self._batches_of_epoch = self._cells_of_epoch = 0
            self.epoch += 1
        raise RuntimeError("an epoch without a batch")

    @property
    def is_between_reads(self) -> bool:
        """Whether the feed holds no batch that it has read already."""
        at_end = self._cells_of_epoch >= self._feed.n_cells
        return at_end or self._batches_of_epoch % self._feed.burst_batches == 0

    def close(self) -> None:
        """End the generators."""
        for generator in (self._batches, self._epochs):
            close = getattr(generator, "close", None)
            if close is not None:
                close()


@dataclass(frozen=True)
class Clock:
    """Wall clock, processor time of this process with all its children, and of the calling thread; seconds."""

    wall: float
    cpu: float
    thread: float

    @classmethod
    def now(cls) -> Clock:
        """Read all three."""
        cpu = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            used = resource.getrusage(who)
            cpu += used.ru_utime + used.ru_stime
        cpu += sum(map(_cpu_of, children()))
        return cls(time.perf_counter(), cpu, time.thread_time())


def children() -> list[int]:
    """Find the living processes that descend from this one."""
    found, parents = [], [os.getpid()]
    while parents:
        for path in Path(f"/proc/{parents.pop()}/task").glob("*/children"):
            young = [int(pid) for pid in _text(path).split()]
            found += young
            parents += young
    return found


def peak_bytes() -> int:
    """Highest memory so far: of this process, plus what each living child does not share with it.

    Notes
    -----
    Peaks of different moments add up, so this is an upper bound where there are children.
    """
    own = _status(os.getpid(), "VmHWM")
    return own + sum(max(0, _status(pid, "VmHWM") - _shared(pid)) for pid in children())


def resident_bytes() -> int:
    """Memory of this process now."""
    return _status(os.getpid(), "VmRSS")


def first_batch(feed: Feed, seed: int) -> tuple[Stream, dict[str, Any]]:
    """Import, open, and wait for one batch."""
    began = time.perf_counter()
    feed.imports()
    imported = time.perf_counter()
    baseline = resident_bytes()
    feed.open()
    stream = Stream(feed, seed)
    next(stream)
    return stream, {
        "import_s": imported - began,
        "first_batch_s": time.perf_counter() - imported,
        "baseline_bytes": baseline,
    }


def timed(stream: Stream, seconds: float, step_s: float, warm_batches: int = 4) -> dict[str, Any]:
    """Take batches for some seconds, as a trainer that sleeps `step_s` a batch; whole reads only, after a warm-up."""
    warmed = 1
    while warmed < warm_batches or not stream.is_between_reads:
        next(stream)
        warmed += 1
    n_cells = n_batches = 0
    waited, start = 0.0, Clock.now()
    while True:
        asked = time.perf_counter()
        ids, values = next(stream)
        got = time.perf_counter()
        waited += got - asked
        n_cells += len(ids)
        n_batches += 1
        if step_s:
            time.sleep(step_s)
        del values
        if time.perf_counter() - start.wall >= seconds and stream.is_between_reads:
            break
    end = Clock.now()
    return {
        "timed_cells": n_cells,
        "timed_batches": n_batches,
        "timed_s": end.wall - start.wall,
        "cells_per_s": n_cells / (end.wall - start.wall),
        "cpu_us_per_cell": 1e6 * (end.cpu - start.cpu) / n_cells,
        "main_cpu_us_per_cell": 1e6 * (end.thread - start.thread) / n_cells,
        "wait_ms_per_batch": 1e3 * waited / n_batches,
        "peak_bytes": peak_bytes(),
    }


class Truth:
    """What every cell must be, from ``truth.npz``."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as held:
            self.weights = held["weights"]  # (G,) float64
            self.checksum = held["checksum"]  # (N,)
            self.magnitude = held["magnitude"]  # (N,) sum of |value * weight|
            self.nnz = held["nnz"]  # (N,)
            self.dataset = held["dataset"]  # (N,)

    def wrong_rows(self, ids: np.ndarray, values: Any) -> int:
        """Count the cells of a batch that are not what their id says."""
        checksum, nnz = self._of_csr(*values) if isinstance(values, tuple) else self._of_dense(np.asarray(values))
        off = np.abs(checksum - self.checksum[ids]) > TOLERANCE * self.magnitude[ids]
        return int((off | (nnz != self.nnz[ids])).sum())

    def _of_dense(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks = [values[row : row + CHECKED_ROWS] for row in range(0, len(values), CHECKED_ROWS)]
        checksum = np.concatenate([block.astype(np.float64) @ self.weights for block in blocks])
        return checksum, np.concatenate([np.count_nonzero(block, axis=1) for block in blocks])

    def _of_csr(self, indptr: Any, indices: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
        indptr, indices, data = np.asarray(indptr), np.asarray(indices), np.asarray(data)
        row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        checksum = np.bincount(row, weights=data * self.weights[indices], minlength=len(indptr) - 1)
        return checksum, np.bincount(row[data != 0], minlength=len(indptr) - 1)


def check(feed: Feed, truth: Truth, seed: int, limit_s: float) -> dict[str, Any]:
    """Check every row of two epochs, and how well they are shuffled.

    Parameters
    ----------
    feed
        An open feed.
    truth
        What every cell must be.
    seed
        Of the two epochs.
    limit_s
        Stop after this long, between two batches.
    """
    n_cells = len(truth.checksum)
    batch_of = np.full((2, n_cells), -1, dtype=np.int64)
    seen = np.zeros((2, n_cells), dtype=np.int64)
    wrong = n_rows = 0
    mixing = np.zeros(2)  # sum of cells * entropy, cells
    stream, began, is_whole = Stream(feed, seed), time.perf_counter(), False
    for batch, (ids, values) in enumerate(stream):
        if stream.epoch > 1:
            is_whole = True
            break
        wrong += truth.wrong_rows(ids, values)
        batch_of[stream.epoch, ids] = batch
        seen[stream.epoch] += np.bincount(ids, minlength=n_cells)
        mixing += len(ids) * np.array([entropy(truth.dataset[ids]), 1.0])
        n_rows += len(ids)
        if time.perf_counter() - began > limit_s:
            break
    epochs = seen[: 2 if is_whole else stream.epoch]
    stream.close()
    return {
        "checked_rows": n_rows,
        "wrong_rows": wrong,
        "checked_epochs": len(epochs),
        "missed_cells": int((epochs == 0).sum()),
        "repeated_cells": int((epochs > 1).sum()),
        "pair_recurrence": recurrence(batch_of[0], batch_of[1]),
        "dataset_mixing": mixing[0] / mixing[1] / entropy(truth.dataset),
    }


def entropy(labels: np.ndarray) -> float:
    """Entropy of the shares of labels, in nats."""
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def recurrence(first: np.ndarray, second: np.ndarray) -> float | None:
    """How many times more often than by chance two cells that share a batch share one again.

    Parameters
    ----------
    first, second
        (N,) batch of each cell in two epochs, -1 where it did not come. Only cells that came in both count.

    Returns
    -------
    float or None
        1 for independent shuffles; chance is sum of b (b - 1) over the batches of the second, over M (M - 1). None where
        too little came for more than one batch.
    """
    both = (first >= 0) & (second >= 0)
    first, second = first[both], second[both]
    n = len(first)
    together = _pairs(first)
    again = _pairs(second)
    if n < 2 or together in (0, n * (n - 1)) or again in (0, n * (n - 1)):
        return None
    kept = _pairs(first * (int(second.max()) + 1) + second)
    return (kept / together) / (again / (n * (n - 1)))


def _pairs(labels: np.ndarray) -> int:
    size = np.unique(labels, return_counts=True)[1]
    return int((size * (size - 1)).sum())


def _cpu_of(pid: int) -> float:
    text = _text(Path(f"/proc/{pid}/stat"))
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _status(pid: int, name: str) -> int:
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _shared(pid: int) -> int:
    lines = _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Shared_Clean:", "Shared_Dirty:")))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""
