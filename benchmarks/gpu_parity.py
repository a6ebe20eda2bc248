"""The last question of benchmarks/gpu.py: does the device give the numbers of the CPU?"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_parts import WAYS, delivery, plan_of
from gpu_setup import Bench, Row, full_float32, summary

from scamac_scale.loader.feed import Feed
from scamac_scale.losses.total import weighted_total
from scamac_scale.ops.corruption import corrupt, uniform_noise
from scamac_scale.ops.similarity import PairMeans
from scamac_scale.randomness import torch_generator
from scamac_scale.ranks.world import ALONE
from scamac_scale.train.blocks import Blocks
from scamac_scale.train.objective import TERMS, Objective, Scene
from scamac_scale.train.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpu_parts import Case, Way
    from numpy.typing import NDArray

    from scamac_scale.config import ScamacConfig
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.clusters.targets import ConsensusTarget

    Numbers = dict[str, torch.Tensor]

TOLERANCES = {"float32": 1e-4, "bf16": 0.03}
"""Largest relative error, length of the difference over length. float32: sums of thousands of products in another
order, each off by 6e-8, with TF32 off. bf16: 8 bits of mantissa, 0.4 % per product of the wide layers."""
WEIGHTS = {"reconstruction": 1.0, "layers": 1.0, "similarity": 1.0, "clustering": 0.01}
ALPHA = 0.5
"""Share of the attention in the latent, which begins at 0: so its errors count."""
BATCHES = 20
N_BLOCKS = 4
BUSY = 4096
"""Rows of the product that keeps the device busy between two batches."""


@dataclass(frozen=True)
class Given:
    """What both sides start from, on the CPU."""

    source: OpenSource
    config: ScamacConfig
    network: ScamacNetwork
    rows: NDArray[Any]
    values: torch.Tensor
    noise: torch.Tensor
    clusters: Clusters
    target: ConsensusTarget
    pairs: PairMeans


def parity(bench: Bench) -> Iterator[Case]:
    """Batches bit for bit, then a step and a sweep within stated tolerances."""
    path = bench.clear_store
    for name, way in WAYS.items():
        yield f"batches, {name}", partial(_batch_rows, bench, path, way)
    with bench.open(path, bench.config(bench.sizes.store.batch_cells[0])) as source:
        given = _given(bench, source)
        expected = step_numbers(given, torch.device("cpu"), is_half=False)
        for name in TOLERANCES:
            yield f"step, {name}", partial(_step_rows, bench, given, expected, name)
        if bench.device.type == "cuda":
            yield "step, float32 with TF32 as torch has it", partial(_step_rows, bench, given, expected, None)
        yield "sweep, float32", partial(_sweep_rows, bench, given)


def verdict(measure: str, error: float, tolerance: float | None) -> Row:
    """One row: the error beside what it may be."""
    row = summary(measure, "relative error", [error], tolerance=tolerance)
    return row if tolerance is None else {**row, "verdict": "PASS" if error <= tolerance else "FAIL"}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the length of what is expected; in float64."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def _batch_rows(bench: Bench, path: Path, way: Way) -> list[Row]:
    """Every value of some batches, asked for while the device is busy, against those that the host made dense."""
    batch_cells = bench.sizes.store.batch_cells[0]
    is_cuda = bench.device.type == "cuda"
    busy = torch.ones(BUSY if is_cuda else 1, BUSY if is_cuda else 1, device=bench.device)
    with bench.open(path, bench.config(batch_cells, cache=way.cache)) as source:
        plan, kept = plan_of(source, batch_cells), []
        with delivery(bench, source, way) as run:
            for batch in run(plan, BATCHES):
                kept.append((batch.rows, batch.values.clone()))  # no wait: a copy that comes too early or late shows
                busy = busy @ busy / len(busy)
        differing = 0
        with Feed(source) as feed:
            for (rows, values), expected in zip(kept, feed.run(plan, 0, BATCHES), strict=True):
                differing += int((values.cpu() != expected.values).sum()) + int((rows != expected.rows).sum())
    row = summary("values that differ", "values", [differing], tolerance=0)
    return [{**row, "verdict": "FAIL" if differing else "PASS"}]


def _given(bench: Bench, source: OpenSource) -> Given:
    host = replace(bench, device=torch.device("cpu"))
    config = host.config(bench.sizes.store.batch_cells[0])
    network = host.network(source, config)
    with torch.no_grad():
        network.fusion.alpha.fill_(ALPHA)
    clusters, target, _ = host.clusters(network, source, config)
    with Feed(source) as feed:
        first = next(feed.run(plan_of(source, config.train.batch_cells or 1)))
        rows, values = first.rows, first.values.clone()
    generator = torch_generator(config.seed, "benchmark noise")
    noise = uniform_noise(torch.empty_like(values), config.input.noise_low, config.input.noise_high, generator)
    pairs = Sweeps(network, source).similarity(clusters, target)
    return Given(source, config, network, rows, values, noise, clusters, target, pairs)


def step_numbers(given: Given, device: torch.device, *, is_half: bool) -> Numbers:
    """Latent, terms and gradients of one step of all four terms, the noise included."""
    network = copy.deepcopy(given.network).to(device).train()
    x = network.scale_input(given.values.to(device))
    blocks = Blocks(network, N_BLOCKS, ALONE)
    sizes = [len(part) for part in torch.arange(len(x)).tensor_split(N_BLOCKS)]
    counted = blocks.cut(torch.ones(len(x), device=device), sizes)
    noisy = blocks.cut(corrupt(x, given.noise.to(device, copy=True)), sizes)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
        layers, latent, _ = blocks.forward(noisy, counted, sizes, ALONE)
    assert latent is not None
    pairs = PairMeans(*(part.to(device) for part in given.pairs))
    clusters = given.clusters.to(device)
    rows, share = blocks.cut(torch.from_numpy(given.rows), sizes).numpy(), counted / len(x)
    n_cells = given.source.n_cells
    scene = Scene(blocks.cut(x, sizes), rows, layers, latent, share, clusters, given.target, pairs, n_cells)
    objective = Objective(given.config.loss)
    terms = {name: objective.term(name, scene) for name in TERMS}
    losses = weighted_total(terms, WEIGHTS)
    blocks.backward(losses, losses.detach().float()[:, None], ALONE)
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return {"scaled input": x, "latent": latent.detach(), **terms, "gradient": torch.cat(gradients)}


def _step_rows(bench: Bench, given: Given, expected: Numbers, kind: str | None) -> list[Row]:
    with nullcontext() if kind is None else full_float32():
        found = step_numbers(given, bench.device, is_half=kind == "bf16")
    limit = None if kind is None else TOLERANCES[kind]
    return [verdict(name, relative_error(found[name].detach(), expected[name].detach()), limit) for name in expected]


def _sweep_rows(bench: Bench, given: Given) -> list[Row]:
    """Centers and sums of Eq. (15) of one sweep over all cells, and Eq. (11)'s mean product."""

    def run(device: torch.device) -> Numbers:
        network = copy.deepcopy(given.network).to(device)
        clusters = given.clusters.to(device)
        found, pairs = Sweeps(network, given.source).fuzzy(clusters, label="sweep", target=given.target)
        assert pairs is not None
        return {"centers": found.centers, "latent Gram": pairs.zz, "product": network.mean_product, "cross": pairs.uz}

    with full_float32():
        expected, ours = run(torch.device("cpu")), run(bench.device)
    return [verdict(name, relative_error(ours[name], expected[name]), TOLERANCES["float32"]) for name in expected]
