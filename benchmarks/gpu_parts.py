"""Five of the six questions of benchmarks/gpu.py, each a function that gives its cases one by one; the sixth is in gpu_parity.py.

A case is a name and a function that gives rows; what it raises becomes a row, too.
"""

from __future__ import annotations

import copy
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from gpu_setup import JOINT, Bench, Row, peak_memory, summary, timed

from scamac_scale.infer.attention import KEY_BLOCK
from scamac_scale.infer.attention import atlas_attention as attention_from_disk
from scamac_scale.loader.device import LAYOUTS, DeviceCells, on_device
from scamac_scale.loader.feed import Batch, Feed
from scamac_scale.loader.plan import EpochPlan, window_sizes
from scamac_scale.losses.similarity import atlas_similarity, direct_similarity, gram_similarity
from scamac_scale.nn.embed import EMBED_CELLS
from scamac_scale.ops.attention import SPATIAL_FORMS, attention_parts
from scamac_scale.ops.harmony import Layer, cluster_sums, corrected, soft_clusters
from scamac_scale.ops.similarity import Codes, PairMeans, gram_matrices, pair_means, unit_rows
from scamac_scale.randomness import torch_generator
from scamac_scale.ranks.world import ALONE
from scamac_scale.sweep import SWEEP_CELLS
from scamac_scale.train.clusters.landmarks import find_landmarks
from scamac_scale.train.clusters.selection import read_cells, sample_rows
from scamac_scale.train.correction.points import PIECE_CELLS
from scamac_scale.train.run.watch import Watch
from scamac_scale.train.start import fit_input_scale
from scamac_scale.train.state import PRETRAINING, FitState
from scamac_scale.train.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gpu_setup import Atlas, TimedStepper

    from scamac_scale.loader.plan import Plan
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.clusters.targets import ConsensusTarget

    Case = tuple[str, Callable[[], list[Row]]]

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Way:
    """How batches get onto the device.

    Attributes
    ----------
    cache
        Where all cells are kept: none, host, device.
    layout
        Of a batch on the host.
    is_ahead
        Whether it is page-locked and copied while the device computes; else copied when it is asked for, as sweeps do.
    """

    cache: str
    layout: str = "dense"
    is_ahead: bool = True


WAYS = {
    "store, copied as sweeps do": Way("none", is_ahead=False),
    "store, host densify, pinned": Way("none", LAYOUTS["host"]),
    "store, device densify, pinned": Way("none", LAYOUTS["device"]),
    "memory, host densify, pinned": Way("host", LAYOUTS["host"]),
    "memory, device densify, pinned": Way("host", LAYOUTS["device"]),
    "device cache": Way("device"),
}
CACHES = {"the store": "none", "memory": "host", "the device": "device"}


def plan_of(source: OpenSource, batch_cells: int) -> EpochPlan:
    """Order the cells as a fit does."""
    sizes: dict[str, Any] = window_sizes(source.n_cells, source.csr_bytes)
    return EpochPlan(source.n_cells, min(batch_cells, source.n_cells), 0, **sizes)


@contextmanager
def delivery(bench: Bench, source: OpenSource, way: Way) -> Iterator[Callable[[Plan, int], Iterator[Batch]]]:
    """Give a function of a plan and a number of steps that delivers batches on the device."""
    if way.cache == "device":
        cells = DeviceCells(source.resident, len(source.gene_names), bench.device)
        yield lambda plan, n_steps: cells.run(plan, 0, n_steps)
        return
    is_pinned = way.is_ahead and bench.device.type == "cuda"
    deliver = on_device if way.is_ahead else _copied
    with Feed(source, layout=way.layout, is_pinned=is_pinned) as feed:
        yield lambda plan, n_steps: deliver(feed.run(plan, 0, n_steps), bench.device)


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield Batch(batch.rows, batch.values.to(device))


# 1. The feed


def feed(bench: Bench) -> Iterator[Case]:
    """Cells/s onto the device, nothing being computed there but what makes batches dense."""
    for name, way in WAYS.items():
        yield name, partial(_feed_rows, bench, way)


def _feed_rows(bench: Bench, way: Way) -> list[Row]:
    batch_cells = bench.sizes.store.batch_cells[0]
    with bench.open(bench.store, bench.config(batch_cells, cache=way.cache)) as source:
        plan = plan_of(source, batch_cells)

        def drain() -> None:
            for _ in run(plan, bench.sizes.epochs * plan.n_batches):
                pass

        with peak_memory(bench.device) as peak, delivery(bench, source, way) as run:
            seconds = bench.repeat(lambda: timed(drain, bench.device))
        n_cells = bench.sizes.epochs * source.n_cells
    return [summary("rate", "cells/s", [n_cells / each for each in seconds], **peak.as_row())]


# 2. The step


def train(bench: Bench) -> Iterator[Case]:
    """Steps of the default network: how long they take, and how much of it the device waits for data."""
    config = bench.config(bench.sizes.store.batch_cells[0])
    with bench.open(bench.store, config) as source:
        start = bench.network(source, config)
    for is_joint in (True, False):
        for precision in PRECISIONS[::-1]:
            for where in CACHES if is_joint else ("the store",):
                name = f"{'joint' if is_joint else 'pretraining'}, {precision}, from {where}"
                yield name, partial(_train_rows, bench, start, is_joint, precision, CACHES[where])


def _train_rows(bench: Bench, start: ScamacNetwork, is_joint: bool, precision: str, cache: str) -> list[Row]:
    config = bench.config(bench.sizes.store.batch_cells[0], precision, cache)
    with bench.open(bench.store, config) as source:
        stepper = bench.stepper(copy.deepcopy(start), source, config)
        state = bench.joint_state(stepper) if is_joint else FitState(stepper.network)
        with peak_memory(bench.device) as peak:
            rows = _step_rows(bench, stepper, state, JOINT if is_joint else PRETRAINING)
    return [{**row, **peak.as_row()} for row in rows]


def _step_rows(bench: Bench, stepper: TimedStepper, state: FitState, key: str) -> list[Row]:
    """Epochs from the source, and as many steps on one batch that is there, in turns."""
    n_steps = bench.sizes.epochs * stepper.plan.n_batches
    kept = stepper.largest_batch()

    def both() -> tuple[float, float, float]:
        stepper.fixed = None
        stepper.take_waits()
        fed = stepper.seconds(state, key, n_steps)
        waited = stepper.take_waits()
        stepper.fixed = kept
        return fed, stepper.seconds(state, key, n_steps), waited

    rounds = bench.repeat(both)
    per_step = 1000 / n_steps
    n_cells = bench.sizes.epochs * stepper.source.n_cells
    rows = [
        summary("step, fed", "ms", [per_step * fed for fed, _, _ in rounds]),
        summary("step, batch there", "ms", [per_step * alone for _, alone, _ in rounds]),
        summary("rate, fed", "cells/s", [n_cells / fed for fed, _, _ in rounds]),
        summary("waiting, by comparison", "%", [100 * (1 - alone / fed) for fed, alone, _ in rounds]),
    ]
    if bench.device.type == "cuda":
        rows.append(summary("waiting, by events", "%", [100 * waited / fed for fed, _, waited in rounds]))
    return rows


# 3. The sweep


def sweep(bench: Bench) -> Iterator[Case]:
    """One exact update of the centers, with the sums of Eq. (15) for the consensus target."""
    for where in ("the store", "memory"):
        yield f"fuzzy, from {where}", partial(_sweep_rows, bench, CACHES[where])


def _sweep_rows(bench: Bench, cache: str) -> list[Row]:
    config = bench.config(bench.sizes.store.batch_cells[0], cache=cache)
    with bench.open(bench.store, config) as source:
        network = bench.network(source, config)
        clusters, target, _ = bench.clusters(network, source, config)
        sweeps = Sweeps(network, source)
        with peak_memory(bench.device) as peak:
            run = partial(sweeps.fuzzy, clusters, label="sweep", target=target)
            seconds = bench.repeat(lambda: timed(run, bench.device))
        return [summary("rate", "cells/s", [source.n_cells / each for each in seconds], **peak.as_row())]


# 4. Attention, and the similarity of Eq. (15)


def operations(bench: Bench) -> Iterator[Case]:
    """Forms of Eqs. (10) and (15) at the default sizes; forward and backward, but for attention over the atlas."""
    for precision in PRECISIONS:
        for form in ATTENTIONS:
            yield f"{form} attention, {precision}", partial(_attention_rows, bench, form, precision)
        for name in SIMILARITIES:
            yield f"similarity, {name}, {precision}", partial(_similarity_rows, bench, name, precision)
    yield "correction of technical batches", partial(_correction_rows, bench)
    yield "atlas attention from disk", partial(_disk_rows, bench)


def _correction_rows(bench: Bench) -> list[Row]:
    """Harmony: the sums of a pass over a piece of cells, and the layers that correct a block of them."""
    width, n_clusters, n_levels = 50, 100, 20
    z, centers = (_normal(bench, key, n, width).detach() for key, n in enumerate((PIECE_CELLS, n_clusters)))
    levels = (torch.arange(PIECE_CELLS, device=bench.device) % n_levels)[:, None]
    penalty = torch.zeros(n_levels, n_clusters, device=bench.device)
    beta = _normal(bench, 2, n_levels, n_clusters, width).detach()
    layers = [Layer(unit_rows(centers), penalty, beta)] * 10

    def sums() -> None:
        cluster_sums(z, levels, soft_clusters(z, levels, layers[0].centers, penalty, 0.1), n_levels)

    about = {"n_cells": PIECE_CELLS, "clusters": n_clusters, "levels": n_levels}
    calls = {"sums of a pass": sums, "ten layers": lambda: corrected(z, levels, layers, 0.1)}
    return [
        {**_call_ms(bench, call, bench.sizes.inner_calls), "measure": name, **about} for name, call in calls.items()
    ]


def _normal(bench: Bench, key: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers that ask for their gradient."""
    generator = torch_generator(0, "benchmark operations", key, device=bench.device)
    return torch.randn(shape, generator=generator, device=bench.device).requires_grad_()


def _call_ms(bench: Bench, call: Callable[[], object], n_calls: int) -> Row:
    def calls() -> None:
        for _ in range(n_calls):
            call()

    with peak_memory(bench.device) as peak:
        seconds = bench.repeat(lambda: timed(calls, bench.device))
    return summary("call", "ms", [1000 * each / n_calls for each in seconds], calls_per_run=n_calls, **peak.as_row())


def _over_atlas(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Eq. (10) over all keys, block by block, as predict adds them up."""
    blocks = zip(k.split(KEY_BLOCK, dim=1), v.split(KEY_BLOCK, dim=1), strict=True)
    return reduce(add, (attention_parts(q, *block) for block in blocks)).value()


ATTENTIONS: dict[str, Callable[..., torch.Tensor]] = {**SPATIAL_FORMS, "atlas": _over_atlas}


def _attention_rows(bench: Bench, form: str, precision: str) -> list[Row]:
    model = bench.config(1).model
    n_scales, width, n_cells = len(model.scales), model.latent_width, bench.sizes.store.batch_cells[0]
    n_keys = {"batch": n_cells, "landmark": model.bank_cells, "atlas": bench.sizes.keys}[form]
    q, k, v = (_normal(bench, key, n_scales, n, width) for key, n in enumerate((n_cells, n_keys, n_keys)))
    own = [_normal(bench, key, n_scales, n_cells, width) for key in (3, 4)] if form == "landmark" else []

    def call(is_backward: bool) -> None:
        with torch.set_grad_enabled(is_backward), torch.autocast(bench.device.type, torch.bfloat16, enabled=is_half):
            found = ATTENTIONS[form](q, k, v, *own)
        if is_backward:
            torch.autograd.grad(found.float().sum(), (q, k, v, *own))

    is_half, is_streamed = precision != "32-true", form == "atlas"
    n_calls = 1 if is_streamed else bench.sizes.inner_calls
    about = {"n_cells": n_cells, "n_keys": n_keys}
    rows = [{**_call_ms(bench, partial(call, False), n_calls), "measure": "forward", **about}]
    if not is_streamed:
        rows.append({**_call_ms(bench, partial(call, True), n_calls), "measure": "forward, backward", **about})
    return rows


SIMILARITIES: dict[str, tuple[str, bool]] = {
    "all pairs, membership": ("direct", False),
    "Gram, membership": ("gram", False),
    "Gram, codes": ("gram", True),
    "atlas, membership": ("atlas", False),
    "atlas, codes": ("atlas", True),
}
"""Name to the form, and whether U comes as the codes of the consensus members; all pairs are the baseline."""


def _similarity_rows(bench: Bench, name: str, precision: str) -> list[Row]:
    form, is_coded = SIMILARITIES[name]
    sizes, width = bench.sizes, bench.config(1).model.latent_width
    n_cells = sizes.store.batch_cells[0]
    z = _normal(bench, 0, n_cells, width)
    u: torch.Tensor | Codes = torch.softmax(3 * _normal(bench, 1, n_cells, sizes.n_types).detach(), dim=1)
    if is_coded:
        generator = torch_generator(0, "benchmark codes", device=bench.device)
        drawn = torch.rand(n_cells, sizes.n_members, generator=generator, device=bench.device)
        columns = (drawn * sizes.n_types).long() + torch.arange(sizes.n_members, device=bench.device) * sizes.n_types
        values = torch.full((sizes.n_members,), sizes.n_members**-0.5, device=bench.device)
        u = Codes(columns, values, sizes.n_members * sizes.n_types)
    u_hat = u if isinstance(u, Codes) else unit_rows(u)
    square = torch.ones((), dtype=torch.float64, device=bench.device)
    means = pair_means(gram_matrices(u_hat, unit_rows(z.detach())), square)
    losses = {"direct": direct_similarity, "gram": gram_similarity, "atlas": partial(atlas_similarity, atlas=means)}

    def call() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision != "32-true"):
            loss = losses[form](u, z)
        torch.autograd.grad(loss, z)

    row = _call_ms(bench, call, sizes.inner_calls)
    return [{**row, "measure": "forward, backward", "n_cells": n_cells}]


def _disk_rows(bench: Bench) -> list[Row]:
    """Eq. (10) over all cells as predict does it: keys and values of all cells go to disk and come back block by block."""
    atlas = bench.sizes.attending
    path = bench.write(atlas)
    config = bench.config(EMBED_CELLS)
    with bench.open(path, config) as source:
        network = bench.network(source, config).eval()
        folder = bench.folder / "attention"
        folder.mkdir(exist_ok=True)

        def run() -> None:
            with attention_from_disk(network, source, folder):
                pass

        with peak_memory(bench.device) as peak:
            seconds = bench.repeat(lambda: timed(run, bench.device), need_s=40.0)
    rates = [atlas.n_cells / each for each in seconds]
    return [summary("rate", "cells/s", rates, n_cells=atlas.n_cells, **peak.as_row())]


# 5. Memory


def memory(bench: Bench) -> Iterator[Case]:
    """Highest device memory of each part of a fit, at the sizes of two sets before gene selection and of a large atlas."""
    for atlas in bench.sizes.papers:
        yield from _memory_cases(bench, atlas, bench.write(atlas))
    path, seconds = bench.large_store()
    yield from _memory_cases(bench, bench.sizes.large, path, written_s=seconds)


def _memory_cases(bench: Bench, atlas: Atlas, path: Path, **about: Any) -> Iterator[Case]:
    """The network has random weights and leaves the input as it is; it is on the device only while a case runs."""
    config = bench.config(SWEEP_CELLS, cache="auto")
    with bench.open(path, config) as source:
        network = bench.network(source, config, is_wide=True).cpu()
        clusters, target, landmarks = bench.clusters(network, source, config)
        stages: dict[str, Callable[[ScamacNetwork], object]] = {
            "gene moments": lambda on: fit_input_scale(on, source, config.input),
            "PCA start, product of a block": lambda on: _block_product(on, source),
            "sweep": lambda on: Sweeps(on, source).fuzzy(clusters, label="sweep", target=target),
        }
        stages["landmarks"] = lambda on: find_landmarks(source, on, config, ALONE, Watch(config.train)).table.close()
        for batch_cells in atlas.batch_cells:
            for precision in PRECISIONS:
                steps = partial(_some_steps, bench, source, (clusters, target), batch_cells, precision)
                stages[f"steps of {batch_cells:,}, {precision}"] = steps
        stages["weight of Eq. (15) on a sample"] = lambda on: bench.stepper(on, source, config).similarity_weight(
            FitState(on, landmarks=landmarks, clusters=clusters.to(bench.device), target=target)
        )
        about |= {"n_cells": source.n_cells, "n_genes": len(source.gene_names)}
        name = atlas.name if atlas in bench.sizes.papers else f"{source.n_cells:,} cells"
        with closing(target):
            for stage, run in stages.items():
                yield f"{name}, {stage}", partial(_memory_rows, bench, network, run, about)


def _memory_rows(
    bench: Bench, network: ScamacNetwork, run: Callable[[ScamacNetwork], object], about: dict[str, Any]
) -> list[Row]:
    bench.clock.require(15.0)
    with peak_memory(bench.device) as peak:
        seconds = timed(lambda: run(copy.deepcopy(network).to(bench.device)), bench.device)
    return [summary("one run, for its memory", "s", [seconds], **about, **peak.as_row())]


def _block_product(network: ScamacNetwork, source: OpenSource) -> None:
    """Multiply one block as `train.start.principal_components` does: its (G, G) product is made on the device."""
    rows = sample_rows(source.n_cells, SWEEP_CELLS, 0, "pca")
    x = read_cells(source, rows, network).to(network.gene_mean.device)
    (x.T @ x).cpu()


def _some_steps(
    bench: Bench,
    source: OpenSource,
    found: tuple[Clusters, ConsensusTarget],
    batch_cells: int,
    precision: str,
    network: ScamacNetwork,
) -> None:
    """Steps of all four terms through the feed, as a fit has it; only the values of the sums over all cells are made up."""
    stepper = bench.stepper(network, source, bench.config(batch_cells, precision, cache="auto"))
    clusters, target = found
    state = FitState(network, clusters=clusters.to(bench.device), target=target)
    state.weights |= {"similarity": 1.0, "clustering": 0.01}
    width, device = clusters.centers.shape[1], bench.device
    double: dict[str, Any] = {"dtype": torch.float64, "device": device}
    means = torch.eye(width, **double) / width, torch.zeros(target.width, width, **double), torch.ones((), **double)
    state.pairs = PairMeans(*means)
    stepper.seconds(state, JOINT, bench.sizes.memory_steps)
