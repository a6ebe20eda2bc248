"""Batches on the device that trains: copied ahead of their use, made dense there, or kept there altogether.

Written for CUDA; on the CPU the same functions run, which is how they are tested without a GPU.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scamac_scale.errors import ConfigError
from scamac_scale.loader.collate import SparseBatch
from scamac_scale.loader.feed import Batch, Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from scamac_scale.cells.buffer import RowBuffer
    from scamac_scale.config import LoaderConfig
    from scamac_scale.loader.plan import Plan
    from scamac_scale.loader.source import CellSource

_PIECE_ROWS = 65536
_TRIAL_BATCHES = 20


class _Staged(NamedTuple):
    batch: Batch
    copied: Any  # a CUDA event, or None on the CPU


def on_device(batches: Iterator[Batch], device: torch.device) -> Generator[Batch]:
    """Copy batches to a device, one ahead of the one in use, and make sparse ones dense there.

    Parameters
    ----------
    batches
        From a feed, page-locked where `device` is CUDA.
    device
        Where they are wanted.

    Yields
    ------
    Batch
        The same cells, (B, G) float32 on `device`.

    Notes
    -----
    On CUDA the copy runs on a stream of its own while the step before it computes; three batches are on the device. On the
    CPU a dense batch passes as it is, in the memory of the feed.
    """
    if device.type != "cuda":
        for batch in batches:
            is_sparse = isinstance(batch.values, SparseBatch)
            yield batch._replace(values=batch.values.to_dense()) if is_sparse else batch
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch.cuda is not typed
    staged: _Staged | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            is_sparse = isinstance(batch.values, SparseBatch)
            values = batch.values.to(device) if is_sparse else batch.values.to(device, non_blocking=True)
            copied = stream.record_event()
            dense = values.to_dense() if is_sparse else values
            following = _Staged(Batch(batch.rows, dense), stream.record_event())
        if staged is not None:
            yield _ready(staged, device)
        copied.synchronize()  # the memory of the feed is filled again as soon as the next batch is taken
        staged = following
    if staged is not None:
        yield _ready(staged, device)


def _ready(staged: _Staged, device: torch.device) -> Batch:
    """Let the current stream wait for a batch, and own its memory."""
    current = torch.cuda.current_stream(device)
    current.wait_event(staged.copied)
    staged.batch.values.record_stream(current)
    return staged.batch


class DeviceCells:
    """All cells on a device, log-normalised: batches are gathered there, and nothing is copied any more.

    Parameters
    ----------
    resident
        All cells, in memory.
    n_genes
        G.
    device
        Where they go: 4 + 2 bytes per value (4 + 4 beyond 65,535 genes) and 8 per cell.

    Raises
    ------
    ConfigError
        If a GPU has not that much free.

    Notes
    -----
    The values are finished on the host by the kernel of the feed, so they have the same bits.
    """

    def __init__(self, resident: RowBuffer, n_genes: int, device: torch.device) -> None:
        _check_room(8 * resident.indptr.size + (4 + resident.genes.itemsize) * resident.genes.size, device)
        self._n_genes = n_genes
        self._host_indptr = resident.indptr
        self._indptr = torch.from_numpy(resident.indptr).to(device)
        self._genes = torch.from_numpy(resident.genes).to(device)
        self._values = torch.empty(len(resident.genes), dtype=torch.float32, device=device)
        for start in range(0, resident.n_rows, _PIECE_ROWS):
            places = np.arange(start, min(start + _PIECE_ROWS, resident.n_rows))
            low, high = resident.indptr[places[0]], resident.indptr[places[-1] + 1]
            genes, values = np.empty(high - low, resident.genes.dtype), np.empty(high - low, np.float32)
            targets = resident.indptr[places[0] : places[-1] + 2] - low
            resident.to_sparse(places, targets, genes, values)
            self._values[int(low) : int(high)] = torch.from_numpy(values).to(device)

    def run(self, plan: Plan, start: int, stop: int) -> Generator[Batch]:
        """Gather the batches of a plan; as `Feed.run`, but each batch has memory of its own."""
        for step in range(start, stop):
            rows = plan.share(step).rows
            yield Batch(rows, self.gather(rows).to_dense())

    def gather(self, rows: NDArray[np.int64]) -> SparseBatch:
        """Gather the sparse rows of some cells."""
        n_values = int(
            (self._host_indptr[rows + 1] - self._host_indptr[rows]).sum()
        )  # known here: no wait for the device
        wanted = torch.from_numpy(rows).to(self._indptr.device)
        starts = self._indptr[wanted]
        lengths = self._indptr[wanted + 1] - starts
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        entries = torch.arange(n_values, device=starts.device)
        entries += torch.repeat_interleave(starts - indptr[:-1], lengths, output_size=n_values)
        return SparseBatch(indptr, _picked(self._genes, entries), self._values[entries], self._n_genes)


def _check_room(n_bytes: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if n_bytes > free:
        raise ConfigError(
            f"loader.cache='device' needs {n_bytes:,} bytes on {device}, {free:,} are free; set loader.cache to host or none."
        )


def _picked(genes: Tensor, entries: Tensor) -> Tensor:
    """Index unsigned integers, for which torch has no indexing on CUDA, by way of the signed type of the same width."""
    signed = torch.int16 if genes.dtype == torch.uint16 else torch.int32
    return genes.view(signed)[entries].view(genes.dtype)


def _measured(config: LoaderConfig, source: CellSource, plan: Plan, device: torch.device) -> str:
    """Time both ways over the same batches, twice in turns, and name the faster."""
    if device.type != "cuda":
        return "host"
    seconds: dict[str, list[float]] = {way: [] for way in LAYOUTS}
    for _ in range(2):
        for way, layout in LAYOUTS.items():
            with Feed(source, threads=config.threads, ahead=config.ahead, layout=layout, is_pinned=True) as feed:
                _drain(feed, plan, 2, device)  # compiles, pins, warms up
                start_s = time.perf_counter()
                _drain(feed, plan, _TRIAL_BATCHES, device)
                seconds[way].append(time.perf_counter() - start_s)
    return min(seconds, key=lambda way: min(seconds[way]))


def _drain(feed: Feed, plan: Plan, n_batches: int, device: torch.device) -> None:
    for _ in on_device(feed.run(plan, 0, min(plan.n_batches, n_batches)), device):
        pass
    torch.cuda.synchronize(device)


LAYOUTS = {"host": "dense", "device": "csr"}
"""Where batches become dense, to what the feed hands out for it."""
DENSIFY: dict[str, Callable[[LoaderConfig, CellSource, Plan, torch.device], str]] = {
    "host": lambda config, source, plan, device: "host",
    "device": lambda config, source, plan, device: "device",
    "auto": _measured,
}
"""Key of the config, to a function that tells where batches become dense; the values are the same, bit for bit."""


def densify_layout(config: LoaderConfig, source: CellSource, plan: Plan, device: torch.device) -> str:
    """Choose the layout that a feed needs for a setting of ``loader.densify``."""
    return LAYOUTS[DENSIFY[config.densify](config, source, plan, device)]
