"""Runs a plan: a few reader threads load windows ahead of the consumer and fill a ring of batches.

Nothing here decides which rows are read (`plan`), where they come from (`source`), or what a batch looks like (`collate`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torch import Tensor

from scamac_scale.cells.buffer import RowBuffer
from scamac_scale.errors import ConfigError, PlanError, choose
from scamac_scale.loader.collate import SLOTS, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from scamac_scale.loader.plan import Plan, Share
    from scamac_scale.loader.source import CellSource

MAX_THREADS = 4
"""Reader threads unless told: more do not help one consumer."""
AHEAD = 2
"""Windows that are loaded beyond the one in use."""


Beside = Callable[[int, Tensor], object]
"""Writes something of a step into the (B, G) memory beside its batch."""


class Batch(NamedTuple):
    """Some cells, ready for the network.

    Attributes
    ----------
    rows
        (B,) int64 rows of the source.
    values
        (B, G) float32 log-normalised values on the host, or a `SparseBatch`. The memory is reused: it is valid until the
        next batch of the same run is taken; ``clone`` what must live longer.
    beside
        (B, G) float32 on the host, what `Feed.run` was told to write beside the values; its memory may be written over.
    """

    rows: NDArray[np.int64]
    values: Any  # a Tensor, or a SparseBatch where the layout is csr
    beside: Tensor | None = None


def default_threads() -> int:
    """Reader threads of a feed: the cores that this process may use, at most `MAX_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def refuse_fork(pid: int) -> None:
    """Raise PlanError in another process than that which made a feed."""
    if os.getpid() != pid:
        raise PlanError(
            f"This feed was made by process {pid} and is used by {os.getpid()}, which was forked off: threads and the locks "
            "they held do not survive that. Open the source and the feed in the process that reads; the feed reads ahead with "
            "threads and needs no worker processes (a DataLoader around it must have num_workers=0)."
        )


class Feed:
    """Batches from a source, read ahead by a few threads; a context manager.

    Parameters
    ----------
    source
        Where the cells come from; the feed does not close it.
    threads
        Reader threads; None for `default_threads`.
    ahead
        Windows that are loaded beyond the one in use.
    layout
        ``dense`` or ``csr``, see `collate.SLOTS`.
    is_pinned
        Whether the batches lie in page-locked memory, for asynchronous copies to a CUDA device.

    Raises
    ------
    ConfigError
        If a number is below 1, or the layout is unknown.

    Notes
    -----
    Memory is ``(ahead + 1)`` windows as the source loads them, more where a batch spans more, and ``threads + 2`` batches
    (`memory_bytes`), beside what the source needs while it loads. Windows are not needed where the source holds all its cells in memory (``source.resident``). A process that was forked off must make
    a feed of its own.

    Examples
    --------
    >>> with Feed(source) as feed:
    ...     for batch in feed.run(plan):
    ...         step(batch.values)
    """

    def __init__(
        self,
        source: CellSource,
        *,
        threads: int | None = None,
        ahead: int = AHEAD,
        layout: str = "dense",
        is_pinned: bool = False,
    ) -> None:
        self.n_threads = default_threads() if threads is None else threads
        for name, value in (("threads", self.n_threads), ("ahead", ahead)):
            if value < 1:
                raise ConfigError(f"loader.{name}={value}; it must be at least 1.")
        self.source = source
        self.ahead = ahead
        self._slot_type = choose(SLOTS, layout, "layout")
        self._is_pinned = is_pinned
        self._pid = os.getpid()
        self._runs: set[_Run] = set()
        self._spare_slots: list[Slot] = []
        self._spare_buffers: list[RowBuffer] = []
        self._is_open = True

    def __enter__(self) -> Self:
        """Nothing starts before `run`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every thread of this feed."""
        self.close()

    def close(self) -> None:
        """Stop every thread of this feed and let its memory go; a feed that was closed runs nothing more."""
        self._is_open = False
        for run in list(self._runs):
            run.stop()
        self._runs.clear()
        self._spare_slots.clear()
        self._spare_buffers.clear()

    def memory_bytes(self) -> int:
        """Bytes of the windows and batches that this feed holds, in use or spare."""
        runs = list(self._runs)
        slots = [*self._spare_slots, *(slot for run in runs for slot in run.slots)]
        buffers = [*self._spare_buffers, *(buffer for run in runs for buffer in run.buffers)]
        return sum(slot.nbytes for slot in slots) + sum(buffer.nbytes for buffer in buffers)

    def run(
        self, plan: Plan, start: int = 0, stop: int | None = None, *, beside: Beside | None = None
    ) -> Iterator[Batch]:
        """Read batches.

        Parameters
        ----------
        plan
            Which cells; its methods are called in the reader threads.
        start, stop
            First step, and the one after the last; the default is one pass. Steps may go on through any number of epochs.
        beside
            ``beside(step, out)`` writes something of each batch into (B, G) float32 memory, in a reader thread, ahead of its use.

        Yields
        ------
        Batch
            One per step, in their order. Its memory is reused when the next one is taken; the last one stays.

        Raises
        ------
        RuntimeError
            If the feed was closed.
        PlanError
            In a process that was forked off after the feed was made.
        BaseException
            Whatever reading raised, in the place of the batch that failed.

        Notes
        -----
        The threads start with the first batch asked for, and have ended when the iterator ends, is closed or is dropped.
        """
        if not self._is_open:
            raise RuntimeError("This feed was closed; make another one.")
        refuse_fork(self._pid)
        run = _Run(self, plan, start, plan.n_batches if stop is None else stop, beside)
        self._runs.add(run)
        held: Slot | None = None
        try:
            for held, rows in run.batches():
                yield Batch(rows, held.batch(), None if beside is None else held.beside())
        finally:
            run.stop()
            self._runs.discard(run)
            if self._is_open:
                self._spare_buffers = run.buffers
                # the consumer may still look at the batch that it holds: its memory is not used again
                self._spare_slots.extend(slot for slot in run.slots if slot is not held)

    def _take_slots(self) -> list[Slot]:
        n_slots = self.n_threads + 2
        slots, self._spare_slots = self._spare_slots[:n_slots], self._spare_slots[n_slots:]
        n_genes = len(self.source.gene_names)
        return slots + [self._slot_type(n_genes, is_pinned=self._is_pinned) for _ in range(n_slots - len(slots))]

    def _take_buffers(self) -> list[RowBuffer]:
        taken, self._spare_buffers = self._spare_buffers, []
        return taken


@dataclass
class _Loading:
    """A window that is being loaded, or is loaded when nothing is left."""

    n_left: int
    buffers: dict[int, RowBuffer] = field(default_factory=dict)
    error: BaseException | None = None


class _Load(NamedTuple):
    window: int
    part: int
    buffer: RowBuffer


class _Fill(NamedTuple):
    step: int
    slot: Slot


class _Run:
    """The threads of one run, and what they share, all of it behind one lock."""

    def __init__(self, feed: Feed, plan: Plan, start: int, stop: int, beside: Beside | None) -> None:
        self._source, self._plan, self._ahead, self._beside = feed.source, plan, feed.ahead, beside
        self._resident = feed.source.resident
        self.slots = feed._take_slots()
        self.buffers = feed._take_buffers()
        self._free_slots = list(self.slots)
        self._free_buffers = list(self.buffers)
        self._start, self._stop = start, stop
        self._next_step = start
        self._next_windows = plan.windows(start) if start < stop else (0, 0)
        self._next_load = (self._next_windows[0], 0)
        self._end_window = plan.windows(stop - 1)[1] if start < stop and self._resident is None else 0
        self._loading: dict[int, _Loading] = {}
        self._filling: dict[int, int] = {}  # step to its first window
        self._ready: dict[int, tuple[Slot, Share] | BaseException] = {}
        self._is_stopped = False
        self._error: BaseException | None = None  # of the plan, where no step can be named
        self._pid = feed._pid
        self._changed = threading.Condition()
        # daemons: a consumer that dies while it holds the iterator must not keep the interpreter alive
        self._threads = [
            threading.Thread(
                target=self._work, args=(number == 0 and feed.n_threads > 1,), name="scamac-feed", daemon=True
            )
            for number in range(feed.n_threads)
        ]

    def batches(self) -> Iterator[tuple[Slot, NDArray[np.int64]]]:
        if self._start < self._stop:
            for thread in self._threads:
                thread.start()
        for step in range(self._start, self._stop):
            refuse_fork(self._pid)  # before the lock, which a thread of the parent may have held
            with self._changed:
                while step not in self._ready and not self._is_stopped and self._error is None:
                    self._changed.wait()
                if self._is_stopped:
                    raise RuntimeError("This feed was closed while it was being read; make another one.")
                found = self._ready.pop(step, self._error)
            if isinstance(found, BaseException):
                raise found
            assert found is not None
            slot, share = found
            yield slot, share.rows
            with self._changed:
                self._free_slots.append(slot)
                self._changed.notify_all()

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return  # the threads are in the parent
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def _work(self, prefers_loads: bool) -> None:
        try:
            while (task := self._next_task(prefers_loads)) is not None:
                if isinstance(task, _Load):
                    self._load(task)
                else:
                    self._fill(task)
        except BaseException as error:  # noqa: BLE001  raised again in the consumer, by `batches`
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_task(self, prefers_loads: bool) -> _Load | _Fill | None:
        """Wait for something to do. One thread reads ahead first, the others fill first: so disk and kernel overlap."""
        with self._changed:
            while not self._is_stopped and (self._next_step < self._stop):
                choices = (self._choose_load, self._choose_fill)
                for choose_task in choices if prefers_loads else choices[::-1]:
                    task = choose_task()
                    if task is not None:
                        return task
                self._changed.wait()
        return None

    def _oldest_window(self) -> int:
        return min([self._next_windows[0], *self._filling.values()])

    def _choose_load(self) -> _Load | None:
        window, part = self._next_load
        # a batch that spans more windows than are read ahead needs all of them
        last = max(self._oldest_window() + self._ahead, self._next_windows[1] - 1)
        if window >= self._end_window or window > last:
            return None
        if part == 0:
            self._loading[window] = _Loading(self._plan.n_parts)
        self._next_load = (window, part + 1) if part + 1 < self._plan.n_parts else (window + 1, 0)
        if not self._free_buffers:
            self._free_buffers.append(RowBuffer())
            self.buffers.append(self._free_buffers[-1])
        return _Load(window, part, self._free_buffers.pop())

    def _choose_fill(self) -> _Fill | None:
        if not self._free_slots:
            return None
        if self._resident is None:
            for window in range(*self._next_windows):
                if window not in self._loading or self._loading[window].n_left:
                    return None
        step = self._next_step
        self._filling[step] = self._next_windows[0]
        self._next_step += 1
        if self._next_step < self._stop:
            self._next_windows = self._plan.windows(self._next_step)
        return _Fill(step, self._free_slots.pop())

    def _load(self, task: _Load) -> None:
        error: BaseException | None = None
        try:
            starts, stops = self._plan.runs(task.window, task.part)
            self._source.load(starts, stops, task.buffer)
        except BaseException as raised:  # noqa: BLE001  raised again in the consumer, by `batches`
            error = raised
        with self._changed:
            loading = self._loading[task.window]
            loading.buffers[task.part] = task.buffer
            loading.error = loading.error or error
            loading.n_left -= 1
            self._changed.notify_all()

    def _fill(self, task: _Fill) -> None:
        found: tuple[Slot, Share] | BaseException
        try:
            share = self._plan.share(task.step)
            if self._resident is not None:
                task.slot.fill([(self._resident, share.rows)])
            else:
                task.slot.fill([(self._buffer(piece.window, piece.part), piece.places) for piece in share.pieces])
            if self._beside is not None:
                self._beside(task.step, task.slot.beside())
            found = task.slot, share
        except BaseException as raised:  # noqa: BLE001  raised again in the consumer, by `batches`
            found = raised
        with self._changed:
            self._ready[task.step] = found
            del self._filling[task.step]
            if isinstance(found, BaseException):
                self._next_step = self._stop  # nothing comes after it
            oldest = self._oldest_window()
            for window in [number for number in self._loading if number < oldest]:
                self._free_buffers.extend(self._loading.pop(window).buffers.values())
            self._changed.notify_all()

    def _buffer(self, window: int, part: int) -> RowBuffer:
        loading = self._loading[window]
        if loading.error is not None:
            raise loading.error
        return loading.buffers[part]
