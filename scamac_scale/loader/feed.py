"""Runs a plan: one reader thread fills a small ring of dense batches ahead of the consumer.

Nothing here decides which rows are read (`plan`) or where they come from (`source`).
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from scamac_scale.errors import ConfigError
from scamac_scale.loader.collate import densify

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from scamac_scale.arrays import IntArray
    from scamac_scale.loader.source import CellSource


class Batch(NamedTuple):
    """Some cells, ready for the network.

    Attributes
    ----------
    rows
        (B,) int64 rows of the source, as requested.
    values
        (B, G) float32 log-normalised values on the host. The memory is reused: it is valid until the next batch of the
        same run is taken; ``clone`` what must live longer.
    """

    rows: NDArray[np.int64]
    values: Tensor


class Feed:
    """Dense batches from a source, read ahead by one thread.

    Parameters
    ----------
    source
        Where the cells come from; the feed does not close it.
    prefetch
        Batches read ahead of the one in use; memory is ``prefetch + 1`` dense batches.
    pin_memory
        Whether the batches lie in page-locked memory, for asynchronous copies to a CUDA device.

    Raises
    ------
    ConfigError
        If `prefetch` is below 1.

    Examples
    --------
    >>> with Feed(source) as feed:
    ...     for batch in feed.run(plan.rows(0, i) for i in range(plan.n_batches)):
    ...         step(batch.values)
    """

    def __init__(self, source: CellSource, *, prefetch: int = 2, pin_memory: bool = False) -> None:
        if prefetch < 1:
            raise ConfigError(f"prefetch={prefetch}; at least one batch must be read ahead.")
        self._source = source
        self._n_genes = len(source.gene_names)
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._runs: set[_Run] = set()
        self._spare: list[_Slot] = []
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
        """Stop every thread of this feed and let its buffers go; a feed that was closed runs nothing more."""
        self._is_open = False
        for run in list(self._runs):
            run.stop()
        self._runs.clear()
        self._spare.clear()

    def run(self, requests: Iterable[IntArray]) -> Iterator[Batch]:
        """Read batches.

        Parameters
        ----------
        requests
            Rows of each batch, as a plan gives them; consumed in the reader thread, ahead of the batches.

        Yields
        ------
        Batch
            One per request, in their order. Its memory is reused when the next one is taken; the last one stays.

        Raises
        ------
        RuntimeError
            If the feed was closed.
        BaseException
            Whatever reading raised, in the place of the batch that failed.

        Notes
        -----
        The thread starts with the first batch asked for, and has ended when the iterator ends, is closed or is dropped.
        """
        if not self._is_open:
            raise RuntimeError("This feed was closed; make another one.")
        run = _Run(self, requests)
        self._runs.add(run)
        held: _Slot | None = None
        try:
            for held, rows in run.batches():
                yield Batch(rows, held.values(rows.size))
        finally:
            run.stop()
            self._runs.discard(run)
            # the consumer may still look at the batch that it holds: its buffer is not reused
            self._spare.extend(slot for slot in run.slots if slot is not held)

    def _take_slots(self) -> list[_Slot]:
        n_slots = self._prefetch + 1
        slots, self._spare = self._spare[:n_slots], self._spare[n_slots:]
        return slots + [_Slot(self._n_genes, self._pin_memory) for _ in range(n_slots - len(slots))]

    def _fill(self, slot: _Slot, rows: IntArray) -> None:
        densify(self._source.read(rows), slot.values(rows.size).numpy())


class _Slot:
    """One reused buffer; grows to the largest batch seen."""

    def __init__(self, n_genes: int, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._buffer = torch.empty((0, n_genes), dtype=torch.float32)

    def values(self, n_cells: int) -> Tensor:
        if self._buffer.shape[0] < n_cells:
            shape = (n_cells, self._buffer.shape[1])
            self._buffer = torch.empty(shape, dtype=torch.float32, pin_memory=self._pin_memory)
        return self._buffer[:n_cells]


class _Run:
    """One thread, the slots it fills, and the two queues between it and the consumer."""

    def __init__(self, feed: Feed, requests: Iterable[IntArray]) -> None:
        self.slots = feed._take_slots()
        self._feed = feed
        self._requests = requests
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[_Slot, NDArray[np.int64]] | BaseException | None] = queue.SimpleQueue()
        self._is_stopped = threading.Event()
        # daemon: a consumer that dies while it holds the iterator must not keep the interpreter alive
        self._thread = threading.Thread(target=self._read, name="scamac-feed", daemon=True)
        for slot in self.slots:
            self._free.put(slot)

    def batches(self) -> Iterator[tuple[_Slot, NDArray[np.int64]]]:
        self._thread.start()
        while True:
            item = self._ready.get()
            if self._is_stopped.is_set():
                raise RuntimeError("This feed was closed while it was being read; make another one.")
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            self._free.put(item[0])

    def stop(self) -> None:
        self._is_stopped.set()
        self._free.put(None)
        self._ready.put(None)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _read(self) -> None:
        try:
            for request in self._requests:
                rows = np.asarray(request, dtype=np.int64)
                slot = self._free.get()
                if slot is None or self._is_stopped.is_set():
                    return
                self._feed._fill(slot, rows)
                self._ready.put((slot, rows))
        except BaseException as error:  # noqa: BLE001  raised again in the consumer, by `batches`
            self._ready.put(error)
        else:
            self._ready.put(None)
