"""Blocks of cells by threads of this process: reading, checking and what the caller does with the results overlap."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.ingestion.engine.blocks import blocks_of, reported, run_block

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from scamac_scale.ingestion.engine.blocks import Block, BlockFunction
    from scamac_scale.ingestion.raw import RawMatrix

MOST_THREADS = 4
"""More do not help: HDF5 is read by one thread at a time, and the caller writes."""


def default_threads() -> int:
    """Count the cores that this process may use, at most `MOST_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


class LocalEngine:
    """Maps functions over blocks by threads, see `Engine`.

    Parameters
    ----------
    block_cells
        Cells of a block.
    threads
        Number of threads; None takes `default_threads`.

    Notes
    -----
    HDF5 and the kernels release the interpreter's lock. Memory is one block for each thread, and the results of as many.
    """

    def __init__(self, block_cells: int, threads: int | None = None) -> None:
        self.block_cells = block_cells
        self._threads = threads or default_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the blocks that are being read, and drop those that wait."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    # Any: as of `Engine.map`
    def map(
        self, raw: RawMatrix, function: BlockFunction, common: Any, label: str, first: int = 0
    ) -> Generator[tuple[int, Any], None, None]:
        """Read all blocks, and give what a function makes of each, in their order; see `Engine.map`."""
        blocks = blocks_of(raw.n_cells, self.block_cells, first)
        yield from reported(raw, blocks, label, self._results(raw, function, common, blocks))

    def _results(
        self, raw: RawMatrix, function: BlockFunction, common: Any, blocks: list[Block]
    ) -> Generator[Any, None, None]:
        if len(blocks) < 2:
            yield from (run_block(raw, function, common, block) for block in blocks)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="blocks")
        waiting: deque[Future[Any]] = deque()
        try:
            for block in blocks:
                waiting.append(self._pool.submit(run_block, raw, function, common, block))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)
