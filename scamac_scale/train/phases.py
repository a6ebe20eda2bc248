"""Gradient steps: one phase after another over an endless, seeded order of batches."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.errors import ConfigError, NumericalError, choose
from scamac_scale.loader.device import DeviceCells, densify_layout, on_device
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan, window_sizes
from scamac_scale.loader.weighted import WeightedPlan, balanced_weights
from scamac_scale.losses.total import balanced_weight, gradient_norm, weighted_total
from scamac_scale.nn.model import CHANNEL_MOMENTUM
from scamac_scale.ops.corruption import uniform_noise
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.progress import track
from scamac_scale.randomness import torch_generator
from scamac_scale.train.objective import CLUSTER_TERMS, Clusters, Objective, Scene, Target
from scamac_scale.train.schedule import SCHEDULES, batch_cells_for, learning_rate_for, phase_steps
from scamac_scale.train.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lightning.fabric import Fabric

    from scamac_scale.config import InputConfig, PhaseConfig, ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.similarity import PairMeans
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.landmarks import Landmarks

NOISE_BLOCKS = 8
LOG_EVERY_STEPS = 10

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def batch_noise(
    shape: tuple[int, int], config: InputConfig, seed: int, step: int, device: torch.device
) -> torch.Tensor:
    """Uniform noise of one global batch, keyed by (seed, step, block), never by rank.

    Parameters
    ----------
    shape
        (B, G) of the global batch, which is cut into 8 fixed blocks of cells.
    config
        Bounds of the noise.
    seed, step
        Of the run, and of the gradient step.
    device
        Where it is drawn; each kind of device has its own stream.

    Returns
    -------
    Tensor
        (B, G) float32.
    """
    n_cells, n_genes = shape
    edges = [n_cells * block // NOISE_BLOCKS for block in range(NOISE_BLOCKS + 1)]
    pieces = []
    for block in range(NOISE_BLOCKS):
        generator = torch_generator(seed, "noise", step, block, device=device)
        block_shape = (edges[block + 1] - edges[block], n_genes)
        pieces.append(uniform_noise(block_shape, config.noise_low, config.noise_high, generator))
    return torch.cat(pieces)


def _plan(source: OpenSource, batch_cells: int, config: ScamacConfig) -> EpochPlan:
    """Order the cells in training: each once per epoch, or every class of a column equally often."""
    sizes: dict[str, Any] = window_sizes(source.n_cells, source.csr_bytes, config.loader.window_bytes)
    column = config.loader.balance_by
    if column is None:
        return EpochPlan(source.n_cells, batch_cells, config.seed, **sizes)
    import pandas as pd

    obs = source.obs
    if column not in obs:
        raise ConfigError(
            f"loader.balance_by={column!r} is no column of obs; known are {', '.join(map(str, obs.columns))}."
        )
    return WeightedPlan(balanced_weights(pd.factorize(obs[column])[0]), batch_cells, config.seed, **sizes)


class Stepper:
    """Takes gradient steps; knows the order of the cells, the step counter and the state of the clusters.

    Parameters
    ----------
    fabric
        Launched.
    network
        On the device of `fabric`.
    source
        N cells.
    config
        Of the run.
    """

    def __init__(self, fabric: Fabric, network: ScamacNetwork, source: OpenSource, config: ScamacConfig) -> None:
        self.fabric = fabric
        self.network = network
        self.source = source
        self.config = config
        self.batch_cells = min(config.train.batch_cells or batch_cells_for(source.n_cells), source.n_cells)
        self.plan = _plan(source, self.batch_cells, config)
        self.objective = Objective(config.loss)
        # Batches of evened classes are no sample of the atlas: its sums then stay as the sweeps leave them.
        self._is_sample = config.loader.balance_by is None
        network.channel_momentum = CHANNEL_MOMENTUM if self._is_sample else 0.0
        self.sweeps = Sweeps(network, source)
        self.step = 0
        self.clusters: Clusters | None = None
        self.target: Target | None = None
        self.atlas: PairMeans | None = None
        self.weights: dict[str, float] = {"reconstruction": 1.0, "layers": 1.0}
        self._module = fabric.setup_module(network)
        self._device_cells: DeviceCells | None = None
        resident = getattr(source, "resident", None)
        if config.loader.cache == "device" and resident is not None:
            self._device_cells = DeviceCells(resident, len(source.gene_names), fabric.device)
        else:
            loader, device = config.loader, fabric.device
            options: dict[str, Any] = {
                "layout": densify_layout(loader, source, self.plan, device),
                "is_pinned": device.type == "cuda",
            }
            # one for all rounds: its memory is used again
            self._feed = Feed(source, threads=loader.threads, ahead=loader.ahead, **options)
        self._optimizers: dict[str, tuple[Any, int]] = {}

    def pretrain(self) -> None:
        """Take the steps before the centers are found."""
        phase = self.config.train.pretrain
        n_steps = phase_steps(phase, self.plan.n_batches)
        self._run(phase, "pretraining", n_steps, n_steps, label="pretraining")

    def take_round(self, index: int) -> None:
        """Take the steps of one round, phase after phase.

        Parameters
        ----------
        index
            Of the round, from 0.
        """
        n_rounds = self.config.train.rounds
        self._atlas_step = self.step
        for number, phase in enumerate(self.config.train.phases):
            n_steps = phase_steps(phase, self.plan.n_batches)
            self._run(phase, f"phase {number}", n_steps, n_steps * n_rounds, label=f"round {index + 1}/{n_rounds}")

    def sweep(self, start: Clusters, label: str) -> Clusters:
        """End a round: renew the bank, the centers and what Eq. (15) needs of all cells.

        Parameters
        ----------
        start
            Centers and temperature of the memberships.
        label
            Shown beside the progress bar.

        Returns
        -------
        Clusters
            The new ones, which are those of the next round.
        """
        target = self.target if self.config.loss.similarity == "atlas" else None
        self.clusters, self.atlas = self.sweeps.fuzzy(start, self.config.loss.epsilon, label=label, target=target)
        if self.atlas is not None:
            self.fabric.log("similarity_atlas", float(similarity_from_means(self.atlas)), self.step)
        return self.clusters

    def cluster(self, clusters: Clusters, target: Target | None, landmarks: Landmarks) -> None:
        """Take the clusters in, and measure the weight of Eq. (15) where the config leaves it open."""
        self.clusters, self.target = clusters, target
        loss = self.config.loss
        self.weights["clustering"] = loss.clustering_weight
        if target is None:
            return
        self.weights["similarity"] = (
            self._measure_similarity_weight(landmarks) if loss.similarity_weight is None else loss.similarity_weight
        )

    def _measure_similarity_weight(self, landmarks: Landmarks) -> float:
        x = landmarks.x.to(self.fabric.device)
        with torch.enable_grad(), self.fabric.autocast():
            # the bare network: Fabric's wrapper lets only its own backward through
            scene = Scene(x, landmarks.rows, self.network(x, frozen=False), self.clusters, self.target)
            norms = {
                name: gradient_norm(self.objective.term(name, scene), scene.out.hidden)
                for name in ("reconstruction", "similarity")
            }
        # The printed scaling grows with the number of cells that are paired, here the landmarks.
        n_paired = self.source.n_cells if self.config.loss.similarity == "atlas" else self.batch_cells
        norms["similarity"] *= self.objective.similarity_scale(n_paired) / self.objective.similarity_scale(len(x))
        return balanced_weight(norms["reconstruction"], norms["similarity"], self.config.loss.similarity_gradient_ratio)

    def _run(self, phase: PhaseConfig, key: str, n_steps: int, total: int, *, label: str) -> None:
        """Take `n_steps` of the `total` steps of a phase; its optimizer lives on, under `key`, from round to round."""
        if n_steps == 0:
            return
        optimizer, done = self._optimizer(phase, key)
        schedule = choose(SCHEDULES, phase.schedule, "schedule")
        rate = phase.learning_rate or learning_rate_for(self.batch_cells)
        n_cells = 0
        self.network.train()
        start_s = time.perf_counter()
        with closing(self._batches(n_steps)) as batches, track(label, n_steps, "steps") as progress:
            for index, batch in enumerate(batches):
                if "similarity" in phase.terms:
                    self._renew_atlas()
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(done + index, total)
                values = self._take_step(phase, batch, optimizer)
                if self.step % LOG_EVERY_STEPS == 0 or index == n_steps - 1:
                    self._report(values, batch, rate * schedule(done + index, total))
                self.step += 1
                n_cells += len(batch.rows)
                progress.advance(1)
        self._optimizers[key] = (optimizer, done + n_steps)
        self.fabric.log("cells_per_s", n_cells / (time.perf_counter() - start_s), self.step - 1)
        self.network.eval()

    def _optimizer(self, phase: PhaseConfig, key: str) -> tuple[Any, int]:
        if key not in self._optimizers:
            make = choose(OPTIMIZERS, phase.optimizer, "optimizer")
            self._optimizers[key] = (self.fabric.setup_optimizers(make(self.network.parameters(), lr=1.0)), 0)
        return self._optimizers[key]

    def _batches(self, n_steps: int) -> Generator[Batch]:
        """Give the batches of the next steps, on the device."""
        steps = self.step, self.step + n_steps
        if self._device_cells is not None:
            return self._device_cells.run(self.plan, *steps)
        return on_device(self._feed.run(self.plan, *steps), self.fabric.device)

    def _take_step(self, phase: PhaseConfig, batch: Batch, optimizer: Any) -> dict[str, torch.Tensor]:
        device = self.fabric.device
        x = self.network.scale_input(batch.values)
        shape = (len(batch.rows), x.shape[1])
        noisy = x + batch_noise(shape, self.config.input, self.config.seed, self.step, device) if phase.is_noisy else x
        out = self._module(noisy, frozen=False)
        scene = Scene(x, batch.rows, out, self.clusters, self.target, self.atlas, self.source.n_cells)
        terms = {name: self.objective.term(name, scene) for name in phase.terms if self._is_ready(name)}
        total = weighted_total(terms, self.weights)
        optimizer.zero_grad()
        self.fabric.backward(total)
        optimizer.step()
        if "similarity" in terms and self._is_sample:
            self.atlas = self.objective.followed(scene)
        return {**{name: term.detach() for name, term in terms.items()}, "total": total.detach()}

    def _renew_atlas(self) -> None:
        """Sum over all cells for Eq. (15), where no sweep has done it or the steps since then are too many."""
        loss = self.config.loss
        if loss.similarity != "atlas" or self.target is None or self.clusters is None:
            return
        every = loss.similarity_refresh_steps
        is_old = every is not None and self.step - self._atlas_step >= every
        if self.atlas is None or is_old:
            self.atlas = self.sweeps.similarity(self.clusters, self.target)
            self._atlas_step = self.step
            self.fabric.log("similarity_atlas", float(similarity_from_means(self.atlas)), self.step)

    def _is_ready(self, term: str) -> bool:
        if term == "similarity":
            return self.target is not None
        return term not in CLUSTER_TERMS or self.clusters is not None

    def _report(self, values: dict[str, torch.Tensor], batch: Batch, rate: float) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise NumericalError(
                f"the loss is not finite at step {self.step} or before (terms: {', '.join(bad)}; cells {batch.rows[:5].tolist()} "
                "and the rest of their batch). Lower the learning rate, or look at the values of these cells."
            )
        self.fabric.log_dict({**numbers, "learning_rate": rate}, self.step)
