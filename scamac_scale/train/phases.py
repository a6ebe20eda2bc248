"""Gradient steps: one phase after another over an endless, seeded order of batches."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.durable.faults import reach
from scamac_scale.errors import ConfigError, NumericalError, choose
from scamac_scale.loader.device import DeviceCells, densify_layout, on_device
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan, window_sizes
from scamac_scale.loader.weighted import WeightedPlan, balanced_weights
from scamac_scale.losses.total import balanced_weight, gradient_norm, weighted_total
from scamac_scale.nn.model import CHANNEL_MOMENTUM
from scamac_scale.ops.corruption import uniform_noise
from scamac_scale.ops.similarity import PairMeans, similarity_from_means
from scamac_scale.progress import track
from scamac_scale.randomness import torch_generator
from scamac_scale.train.blocks import Blocks, count_blocks
from scamac_scale.train.health import Health, nonfinite_error
from scamac_scale.train.objective import CLUSTER_TERMS, Clusters, Objective, Scene, Target
from scamac_scale.train.schedule import SCHEDULES, batch_cells_for, learning_rate_for, phase_steps
from scamac_scale.train.sweeps import Sweeps
from scamac_scale.train.watch import Watch
from scamac_scale.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lightning.fabric import Fabric

    from scamac_scale.config import InputConfig, PhaseConfig, ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.landmarks import Landmarks
    from scamac_scale.train.logs import RunFolder

LOG_EVERY_STEPS = 10
PRETRAINING, PHASE = "pretraining", "phase "

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def block_noise(
    shape: tuple[int, int], config: InputConfig, generator: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Uniform noise of one block of a global batch, keyed by what it is, never by rank.

    Parameters
    ----------
    shape
        (b, G) of the block.
    config
        Bounds of the noise.
    generator
        Seed of the run, gradient step, number of the block.
    device
        Where it is drawn; each kind of device has its own stream.

    Returns
    -------
    Tensor
        (b, G) float32.
    """
    seed, step, block = generator
    return uniform_noise(
        shape, config.noise_low, config.noise_high, torch_generator(seed, "noise", step, block, device=device)
    )


def _plan(source: OpenSource, batch_cells: int, config: ScamacConfig, world: World) -> EpochPlan:
    """Order the cells in training: each once per epoch, or every class of a column equally often."""
    sizes: dict[str, Any] = window_sizes(source.n_cells, source.csr_bytes, config.loader.window_bytes)
    column = config.loader.balance_by
    if column is None:
        return EpochPlan(source.n_cells, batch_cells, config.seed, world, **sizes)
    import pandas as pd

    obs = source.obs
    if column not in obs:
        raise ConfigError(
            f"loader.balance_by={column!r} is no column of obs; known are {', '.join(map(str, obs.columns))}."
        )
    return WeightedPlan(balanced_weights(pd.factorize(obs[column])[0]), batch_cells, config.seed, world, **sizes)


def _log_nothing(values: dict[str, float], step: int) -> None:
    pass


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
    world
        This rank, and how many there are.
    watch
        Asked after every step and now and then in a sweep; None goes on.
    run
        Where metrics go; None keeps nothing.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: ScamacNetwork,
        source: OpenSource,
        config: ScamacConfig,
        *,
        world: World = ALONE,
        watch: Watch | None = None,
        run: RunFolder | None = None,
    ) -> None:
        self.fabric = fabric
        self.network = network
        self.source = source
        self.config = config
        self.world = world
        self.watch = watch or Watch(config.train, world)
        self.folder = run.path if run else None
        self._log = run.log if run else _log_nothing
        self.batch_cells = min(config.train.batch_cells or batch_cells_for(source.n_cells), source.n_cells)
        self.plan = _plan(source, self.batch_cells, config, world)
        self.objective = Objective(config.loss)
        # Batches of evened classes are no sample of the atlas: its sums then stay as the sweeps leave them.
        self._is_sample = config.loader.balance_by is None
        network.channel_momentum = CHANNEL_MOMENTUM if self._is_sample else 0.0
        self.blocks = Blocks(network, count_blocks(self.batch_cells, world, config.train.sums), world)
        self._n_noise_blocks = count_blocks(self.batch_cells, world, "blocks")
        self.sweeps = Sweeps(network, source, world, self.watch)
        self.step = 0
        self.phase = self.phase_step = 0
        self.clusters: Clusters | None = None
        self.target: Target | None = None
        self.atlas: PairMeans | None = None
        self.weights: dict[str, float] = {"reconstruction": 1.0, "layers": 1.0}
        self._atlas_step = 0
        self._health = Health(self.blocks.n_blocks, fabric.device)
        self._device_cells: DeviceCells | None = None
        resident = source.resident
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
        self._optimizers: dict[str, tuple[torch.optim.Optimizer, int]] = {}

    def state(self) -> dict[str, Any]:
        """Give all that a step depends on beside the weights; tensors and plain data."""
        clusters, atlas = self.clusters, self.atlas
        return {
            "step": self.step,
            "phase": self.phase,
            "phase_step": self.phase_step,
            "atlas_step": self._atlas_step,
            "weights": dict(self.weights),
            "optimizers": {key: [optimizer.state_dict(), done] for key, (optimizer, done) in self._optimizers.items()},
            "clusters": None if clusters is None else [clusters.centers, clusters.temperature, clusters.weight],
            "atlas": None if atlas is None else list(atlas),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; the target is for the caller."""
        device = self.fabric.device
        self.step, self.phase, self.phase_step = state["step"], state["phase"], state["phase_step"]
        self._atlas_step, self.weights = state["atlas_step"], dict(state["weights"])
        for key, (optimizer_state, done) in state["optimizers"].items():
            optimizer, _ = self._optimizer(self._phase_of(key), key)
            optimizer.load_state_dict(optimizer_state)
            self._optimizers[key] = optimizer, done
        if state["clusters"] is not None:
            centers, temperature, weight = state["clusters"]
            self.clusters = Clusters(centers.to(device), temperature, None if weight is None else weight.to(device))
        if state["atlas"] is not None:
            self.atlas = PairMeans(*(part.to(device) for part in state["atlas"]))

    def _phase_of(self, key: str) -> PhaseConfig:
        train = self.config.train
        return train.pretrain if key == PRETRAINING else train.phases[int(key.removeprefix(PHASE))]

    def pretrain(self) -> None:
        """Take the steps before the centers are found, or those that are left of them."""
        phase = self.config.train.pretrain
        n_steps = phase_steps(phase, self.plan.n_batches)
        self._run(phase, PRETRAINING, n_steps, n_steps, label="pretraining")
        self.phase_step = 0

    def take_round(self, index: int) -> None:
        """Take the steps of one round, phase after phase, or those that are left of them.

        Parameters
        ----------
        index
            Of the round, from 0.
        """
        n_rounds = self.config.train.rounds
        if self.phase == self.phase_step == 0:
            self._atlas_step = self.step
        for number in range(self.phase, len(self.config.train.phases)):
            self.phase, phase = number, self.config.train.phases[number]
            n_steps = phase_steps(phase, self.plan.n_batches)
            self._run(phase, f"{PHASE}{number}", n_steps, n_steps * n_rounds, label=f"round {index + 1}/{n_rounds}")
            self.phase_step = 0
        self.phase = 0

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
            self._log({"similarity_atlas": float(similarity_from_means(self.atlas))}, self.step)
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
            scene = Scene(x, landmarks.rows, self.network(x), self.clusters, self.target)
            norms = {
                name: gradient_norm(self.objective.term(name, scene), scene.out.hidden)
                for name in ("reconstruction", "similarity")
            }
        # The printed scaling grows with the number of cells that are paired, here the landmarks.
        n_paired = self.source.n_cells if self.config.loss.similarity == "atlas" else self.batch_cells
        norms["similarity"] *= self.objective.similarity_scale(n_paired) / self.objective.similarity_scale(len(x))
        return balanced_weight(norms["reconstruction"], norms["similarity"], self.config.loss.similarity_gradient_ratio)

    def _run(self, phase: PhaseConfig, key: str, n_steps: int, total: int, *, label: str) -> None:
        """Take the steps of a phase that are left, of `total` in all rounds; its optimizer lives on, under `key`."""
        if n_steps == self.phase_step:
            return
        optimizer, done = self._optimizer(phase, key)
        schedule = choose(SCHEDULES, phase.schedule, "schedule")
        rate = phase.learning_rate or learning_rate_for(self.batch_cells)
        n_cells, n_left = 0, n_steps - self.phase_step
        start_s = time.perf_counter()
        with ExitStack() as stack:
            batches = stack.enter_context(closing(self._batches(n_left)))
            progress = stack.enter_context(track(label, n_steps, "steps"))
            progress.advance(self.phase_step)
            for index, batch in enumerate(batches):
                # the first step compiles, and reads the first cells
                world = self.world.brisk() if index else self.world
                if "similarity" in phase.terms:
                    self._renew_atlas()
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(done, total)
                values = self._take_step(phase, batch, optimizer, world)
                if self.step % LOG_EVERY_STEPS == 0 or index == n_left - 1:
                    self._report(values, rate * schedule(done, total))
                done += 1
                self.step, self.phase_step = self.step + 1, self.phase_step + 1
                self._optimizers[key] = (optimizer, done)
                n_cells += len(batch.rows)
                progress.advance(1)
                reach("train.step")
                self.watch.step()
        self._log({"cells_per_s": self.world.size * n_cells / (time.perf_counter() - start_s)}, self.step - 1)

    def _optimizer(self, phase: PhaseConfig, key: str) -> tuple[torch.optim.Optimizer, int]:
        if key not in self._optimizers:
            make = choose(OPTIMIZERS, phase.optimizer, "optimizer")
            self._optimizers[key] = (make(self.network.parameters(), lr=1.0), 0)
        return self._optimizers[key]

    def _batches(self, n_steps: int) -> Generator[Batch]:
        """Give the batches of the next steps, on the device."""
        steps = self.step, self.step + n_steps
        if self._device_cells is not None:
            return self._device_cells.run(self.plan, *steps)
        return on_device(self._feed.run(self.plan, *steps), self.fabric.device)

    def _noise(self, sizes: list[int], n_genes: int) -> torch.Tensor:
        """(b, G) noise of the cells of this rank."""
        pieces = [
            block_noise(
                (sizes[block], n_genes), self.config.input, (self.config.seed, self.step, block), self.fabric.device
            )
            for block in self.world.own(self._n_noise_blocks)
        ]
        return torch.cat(pieces)

    def _take_step(
        self, phase: PhaseConfig, batch: Batch, optimizer: torch.optim.Optimizer, world: World
    ) -> dict[str, torch.Tensor]:
        sizes = self.plan.block_sizes(self.step, self.blocks.n_blocks)
        x = self.network.scale_input(batch.values)
        noisy = x
        if phase.is_noisy:
            noisy = x + self._noise(self.plan.block_sizes(self.step, self._n_noise_blocks), x.shape[1])
        own = [sizes[block] for block in self.blocks.own]
        with self.fabric.autocast():
            outputs, product = self.blocks.forward(torch.split(noisy, own), sizes, world)
        rows_of_blocks = np.split(batch.rows, np.cumsum(own)[:-1])
        scenes = [
            Scene(clean, rows, out, self.clusters, self.target, self.atlas, self.source.n_cells, sum(sizes))
            for clean, rows, out in zip(torch.split(x, own), rows_of_blocks, outputs, strict=True)
        ]
        names = [name for name in phase.terms if self._is_ready(name)]
        of_blocks = {name: self.objective.of_blocks(name, scenes, sizes, world) for name in names}
        terms = [{name: of_blocks[name][index] for name in names} for index in range(len(own))]
        losses = [weighted_total(of_block, self.weights) for of_block in terms]
        if reach("train.loss") == "nan":
            losses[0] = losses[0] * torch.nan
        reports = [
            self._health.report(block, [*of_block.values(), loss], size)
            for block, of_block, loss, size in zip(self.blocks.own, terms, losses, own, strict=True)
        ]
        report = self.blocks.backward(losses, reports, world)
        self._health.note(self.step, report)
        optimizer.step()
        self.network.follow_product(product)
        if "similarity" in names and self._is_sample:
            self.atlas = self.objective.followed(scenes, world)
        return dict(zip([*names, "total"], report, strict=False))

    def _renew_atlas(self) -> None:
        """Sum over all cells for Eq. (15), where no sweep has done it or the steps since then are too many."""
        loss = self.config.loss
        if loss.similarity != "atlas" or self.target is None or self.clusters is None:
            return
        every = loss.similarity_refresh_steps
        is_old = every is not None and self.step - self._atlas_step >= every
        if self.atlas is None or is_old:
            label = f"similarity at step {self.step}"
            self.atlas = self.sweeps.similarity(self.clusters, self.target, label)
            self._atlas_step = self.step
            self._log({"similarity_atlas": float(similarity_from_means(self.atlas))}, self.step)

    def _is_ready(self, term: str) -> bool:
        if term == "similarity":
            return self.target is not None
        return term not in CLUSTER_TERMS or self.clusters is not None

    def _report(self, values: dict[str, torch.Tensor], rate: float) -> None:
        self.check()
        self._log({**{name: float(value) for name, value in values.items()}, "learning_rate": rate}, self.step)

    def check(self) -> None:
        """Refuse to go on after a loss that was not finite.

        Raises
        ------
        NumericalError
            On all ranks alike; names the step, the ranks and some of their cells.
        """
        bad = self._health.first_bad()
        if bad is not None:
            source, config = self.source, self.config
            raise nonfinite_error(
                bad,
                self.world,
                lambda world: _plan(source, self.batch_cells, config, world),
                self.blocks.n_blocks,
                source.source_rows,
                self.folder,
            )
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise NumericalError(
                f"the weights are not finite after step {self.step - 1}; lower the learning rate. Checkpoints from before stay."
            )
