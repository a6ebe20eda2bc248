"""What the parts of benchmarks/gpu.py share: sizes, the clock, how time and memory are taken, stores and networks."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import feed_memory
import numpy as np
import torch
from record import measure
from scaling_stores import limited

from scamac_scale.config import IngestConfig, ScamacConfig
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.loader.feed import Batch
from scamac_scale.randomness import numpy_generator
from scamac_scale.simulation.drawn import simulate
from scamac_scale.sources import open_source
from scamac_scale.train.clusters.centers import landmark_clusters
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.landmarks import Landmarks, landmark_count
from scamac_scale.train.clusters.selection import choose_bank, read_cells, sample_rows
from scamac_scale.train.clusters.targets import ConsensusTarget
from scamac_scale.train.fit import build_network
from scamac_scale.train.placement import launch
from scamac_scale.train.start import fit_input_scale, start_from_pca
from scamac_scale.train.state import PHASE, FitState
from scamac_scale.train.stepper import Stepper
from scamac_scale.train.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.sources import OpenSource

Row = dict[str, Any]
Result = TypeVar("Result")
TYPE_COLUMN = "cell_type"
JOINT = f"{PHASE}0"
"""Key of the phase of all four terms; that of the other is `PRETRAINING`."""
WRITTEN_PER_S = 20_000
"""Cells of 300 values that a slow machine writes in a second."""


@dataclass(frozen=True)
class Atlas:
    """Cells whose values are random; only their size counts."""

    name: str
    n_cells: int
    n_genes: int
    n_values: int
    batch_cells: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    store: Atlas = Atlas("store", 200_000, 2000, 300, (4096,))
    epochs: int = 2
    rounds: int = 5
    inner_calls: int = 20
    n_types: int = 20
    n_members: int = 48
    parity_cells: int = 8192
    parity_genes: int = 2500
    keys: int = 100_000
    attending: Atlas = Atlas("attending", 65_536, 2000, 300, ())
    memory_steps: int = 10
    papers: tuple[Atlas, ...] = (
        Atlas("Chen", 14_437, 23_284, 1500, (256, 4096)),
        Atlas("Bhattacharjee", 24_822, 21_000, 1500, (256, 4096)),
    )
    large: Atlas = Atlas("large", 1_000_000, 2000, 300, (4096,))


SMALL = Sizes(
    store=Atlas("store", 430, 60, 20, (128,)),  # batches of 107 and of 108
    epochs=1,
    rounds=2,
    inner_calls=1,
    n_types=3,
    n_members=4,
    parity_cells=400,
    parity_genes=80,
    keys=1500,
    attending=Atlas("attending", 300, 60, 20, ()),
    memory_steps=2,
    papers=(Atlas("Chen", 200, 150, 20, (64, 128)),),
    large=Atlas("large", 900, 60, 20, (128,)),
)


class OutOfTimeError(Exception):
    """There is too little left of the budget for what comes next."""


class Clock:
    """What is left of the budget, and of the share of the part under way."""

    def __init__(self, budget_s: float, began_s: float) -> None:
        self._budget_s = budget_s
        self._end_s = self._part_end_s = began_s + budget_s

    def start_part(self, share: float) -> None:
        """Give the part that begins a share of the whole budget, of what is left at most."""
        self._part_end_s = min(self._end_s, time.perf_counter() + share * self._budget_s)

    def left_s(self) -> float:
        """Seconds left to the part."""
        return self._part_end_s - time.perf_counter()

    def require(self, need_s: float) -> None:
        """Raise `OutOfTimeError` unless so many seconds are left."""
        if self.left_s() < need_s:
            raise OutOfTimeError(f"may need {need_s:.0f} s, {max(self.left_s(), 0.0):.0f} s of this part are left")


@dataclass
class Peak:
    """Highest memory while a block ran; None for the device where that is the CPU."""

    device_bytes: int | None = None
    held_bytes: int | None = None
    reserved_bytes: int | None = None
    host_bytes: int = 0

    def as_row(self) -> Row:
        """Fields of a row."""
        names = ("device_bytes", "held_bytes", "reserved_bytes", "host_bytes")
        return {f"peak_{name}" if name != "held_bytes" else name: getattr(self, name) for name in names}


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Fill in a `Peak` when the block ends: what torch has allocated, `held_bytes` of it since before the block."""
    peak = Peak()
    is_cuda = device.type == "cuda"
    if is_cuda:
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        peak.held_bytes = torch.cuda.memory_allocated(device)
    try:
        with measure() as cost:
            yield peak
    finally:
        peak.host_bytes = cost.peak_bytes
        if is_cuda:
            torch.cuda.synchronize(device)
            peak.device_bytes = torch.cuda.max_memory_allocated(device)
            peak.reserved_bytes = torch.cuda.max_memory_reserved(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, until the device is done with it."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for all that the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Any:  # Any: a CUDA event
    """Note the moment at which the device gets here."""
    event: Any = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def summary(measure: str, unit: str, values: Sequence[float], **more: object) -> Row:
    """One row of the table: median and spread of some runs."""
    spread = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {"measure": measure, "unit": unit, **spread, "runs": len(values), **more}


@contextmanager
def full_float32() -> Iterator[None]:
    """TensorFloat-32 off; torch has it off in products of matrices and on in convolutions unless told."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = kept


class TimedStepper(Stepper):
    """A `Stepper` that knows how long the device waited for each batch, and can take one batch again and again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fixed: Batch | None = None
        self.waits: list[tuple[Any, Any]] = []

    def _batches(self, step: int, n_steps: int, *, is_noisy: bool = False) -> Generator[Batch]:
        if self.fixed is not None:
            return self._repeated(self.fixed, range(step, step + n_steps))
        batches = super()._batches(step, n_steps, is_noisy=is_noisy)
        return self._watched(batches) if self.fabric.device.type == "cuda" else batches

    def _repeated(self, batch: Batch, steps: range) -> Generator[Batch]:
        """Give as much of a batch as each step takes: batches differ by a cell where they do not divide the cells."""
        for size in map(self._size, steps):
            yield Batch(batch.rows[:size], batch.values[:size])

    def _size(self, step: int) -> int:
        low, high = self.plan.bounds(step % self.plan.n_batches)
        return high - low

    def _watched(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Note when the device is done with a step, and when it has the next batch: both marks lie in its own queue."""
        with closing(batches):
            while True:
                before = mark(self.fabric.device)
                batch = next(batches, None)
                if batch is None:
                    return
                self.waits.append((before, mark(self.fabric.device)))
                yield batch

    def take_waits(self) -> float:
        """Seconds that the device has waited since the last call."""
        synchronise(self.fabric.device)
        waits, self.waits = self.waits, []
        return sum(before.elapsed_time(after) for before, after in waits) / 1000

    def largest_batch(self) -> Batch:
        """Give a copy of the largest batch, on the device."""
        with closing(super()._batches(max(range(self.plan.n_batches), key=self._size), 1)) as batches:
            largest = next(batches)
            return Batch(largest.rows, largest.values.clone())

    def seconds(self, state: FitState, key: str, n_steps: int) -> float:
        """Take steps of a phase; gives the seconds until the device has done them."""
        self.config = limited(self.config, n_steps)
        sweeps = Sweeps(self.network, self.source)
        return timed(lambda: self.take(state, key, sweeps, label="steps"), self.fabric.device)


@dataclass
class Bench:
    """Where everything runs, and what several parts need."""

    device: torch.device
    sizes: Sizes
    clock: Clock
    folder: Path
    given_store: Path | None = None

    @cached_property
    def store(self) -> Path:
        """Random counts, for all that is about time."""
        return self.write(self.sizes.store)

    @cached_property
    def clear_store(self) -> Path:
        """Simulated cells of clear types, for comparing numbers."""
        sizes = self.sizes
        self.clock.require(30.0)
        types = {"n_genes": sizes.parity_genes, "n_types": sizes.n_types, "counts_per_gene": 0.3}
        raw = simulate(self.folder / "clear.zarr", sizes.parity_cells, **types)
        return ingest(raw, self.folder / "clear.store.zarr", IngestConfig(min_cell_fraction=0.0))

    def write(self, atlas: Atlas) -> Path:
        """Write random counts."""
        self.clock.require(10.0 + atlas.n_cells * atlas.n_values / (300 * WRITTEN_PER_S))
        path = self.folder / f"{atlas.name}.store.zarr"
        feed_memory.write(path, atlas.n_cells, atlas.n_genes, atlas.n_values)
        return path

    def large_store(self) -> tuple[Path, float]:
        """The store that was given, or as many cells of the large atlas as half of the time left to the part can write.

        Returns
        -------
        tuple of Path and float
            The store, and the seconds that it took to write.
        """
        if self.given_store is not None:
            return self.given_store, 0.0
        wanted = self.sizes.large
        n_cells = min(wanted.n_cells, int(0.5 * max(self.clock.left_s() - 10.0, 0.0) * WRITTEN_PER_S))
        began = time.perf_counter()
        path = self.write(replace(wanted, n_cells=max(n_cells, self.sizes.store.n_cells)))
        return path, time.perf_counter() - began

    def config(self, batch_cells: int, precision: str = "32-true", cache: str = "none", **loader: Any) -> ScamacConfig:
        """Default settings on this device, but for a constant rate."""
        config = ScamacConfig()
        phases = tuple(replace(phase, schedule="constant") for phase in config.train.phases)
        where: dict[str, Any] = {"precision": precision, "accelerator": self.device.type}
        train = replace(config.train, batch_cells=batch_cells, phases=phases, **where)
        return replace(config, train=train, loader=replace(config.loader, cache=cache, **loader))

    def network(self, source: OpenSource, config: ScamacConfig, *, is_wide: bool = False) -> ScamacNetwork:
        """Make a network on the device as a fit begins with it; a wide one keeps its random weights and scale."""
        network = build_network(source, config).to(self.device)
        if not is_wide:
            fit_input_scale(network, source, config.input)
            start_from_pca(network, source, config.start.pca_cells, config.seed)
        network.start_attention(choose_bank(source, network, "random", config.seed).to(self.device))
        return network

    def stepper(self, network: ScamacNetwork, source: OpenSource, config: ScamacConfig) -> TimedStepper:
        """Make a stepper of a network on this device."""
        return TimedStepper(launch(config.train), network, source, config)

    def joint_state(self, stepper: TimedStepper) -> FitState:
        """All that the joint phase needs: clusters, the target of Eq. (15), its weight and the sums over all cells."""
        network, source, config = stepper.network, stepper.source, stepper.config
        clusters, target, landmarks = self.clusters(network, source, config)
        state = FitState(network, landmarks=landmarks, clusters=clusters, target=target)
        state.weights["clustering"] = config.loss.clustering_weight
        state.weights["similarity"] = stepper.similarity_weight(state)
        state.pairs = Sweeps(network, source).similarity(clusters, target)
        return state

    def clusters(
        self, network: ScamacNetwork, source: OpenSource, config: ScamacConfig
    ) -> tuple[Clusters, ConsensusTarget, Landmarks]:
        """Centers at the means of the cell types, or of random groups, and members that agree with them in four of five landmarks."""
        labels = self._labels(source)
        rows = sample_rows(source.n_cells, config.start.landmark_cells, config.seed, "landmarks")
        found = np.unique(labels[rows], return_inverse=True)[1]
        landmarks = Landmarks(read_cells(source, rows, network), np.ones(len(rows), dtype=np.int64), found)
        n_landmarks = landmark_count(source.n_cells, config.start, config.n_clusters)
        return landmark_clusters(landmarks, network, config.loss), self._target(labels, n_landmarks), landmarks

    def _labels(self, source: OpenSource) -> NDArray[np.int64]:
        known = source.obs.get(TYPE_COLUMN)
        if known is not None and known.nunique() <= self.sizes.n_types:
            return np.unique(known.to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)
        return numpy_generator(0, "benchmark types").integers(0, self.sizes.n_types, source.n_cells)

    def _target(self, labels: NDArray[np.int64], n_landmarks: int) -> ConsensusTarget:
        """As many members as the default recipe has; every fourth counts three times, as Leiden's do."""
        n_members, n_types, block = self.sizes.n_members, self.sizes.n_types, 65536
        n_each = max(1, n_landmarks // n_types)
        table, counts = CodeTable(len(labels), n_each * n_types), np.zeros(n_each * n_types, dtype=np.int64)
        for start in range(0, len(labels), block):
            rng = numpy_generator(0, "benchmark landmarks", start)
            rows = np.arange(start, min(start + block, len(labels)))
            of_cells = labels[rows] * n_each + rng.integers(0, n_each, len(rows))
            table.write(rows, of_cells)
            counts += np.bincount(of_cells, minlength=len(counts))
        rng = numpy_generator(0, "benchmark members")
        other = rng.integers(0, n_types, (len(counts), n_members))
        own = np.repeat(np.arange(n_types), n_each)[:, None]
        codes = np.where(rng.random(other.shape) < 0.8, own, other)
        codes[0] = n_types - 1  # every member has all its clusters
        return ConsensusTarget(table, codes, np.where(np.arange(n_members) % 4 == 0, 3.0, 1.0), counts)

    def repeat(self, run: Callable[[], Result], need_s: float = 15.0) -> list[Result]:
        """Run twice to warm up, then the rounds, if the budget allows; `need_s` is what a first run may take at worst."""
        self.clock.require(need_s)
        run()
        began = time.perf_counter()
        run()
        self.clock.require(self.sizes.rounds * (time.perf_counter() - began))
        return [run() for _ in range(self.sizes.rounds)]

    def open(self, path: Path, config: ScamacConfig) -> OpenSource:
        """Open a store as a fit does."""
        return open_source(path, loader=config.loader)
