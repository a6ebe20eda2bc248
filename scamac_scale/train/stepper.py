"""Gradient steps: one phase after another over an endless, seeded order of batches."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING

import torch

from scamac_scale.config.choices import COUNT_LOSSES
from scamac_scale.durable.faults import reach
from scamac_scale.errors import ConfigError, NumericalError
from scamac_scale.loader.device import DeviceCells, densify_layout, on_device
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan, window_sizes
from scamac_scale.loader.source import levels_of
from scamac_scale.loader.weighted import WeightedPlan, balanced_weights
from scamac_scale.losses.total import balanced_weight, gradient_norm, weighted_total
from scamac_scale.nn.model import CHANNEL_MOMENTUM, NetworkOutput
from scamac_scale.ops.corruption import corrupt
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.progress import track
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.blocks import Blocks, count_blocks
from scamac_scale.train.clusters.selection import read_cells, sample_batches, sample_rows
from scamac_scale.train.health import Health, nonfinite_error
from scamac_scale.train.noise import Noise
from scamac_scale.train.objective import CLUSTER_TERMS, Objective, Scene
from scamac_scale.train.schedule import SCHEDULES, batch_cells_for, learning_rate_for, phase_steps
from scamac_scale.train.state import PRETRAINING, phase_of
from scamac_scale.train.thinning import Thinning

if TYPE_CHECKING:
    from collections.abc import Generator

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.config import LoaderConfig, PhaseConfig, ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.placement import Placement
    from scamac_scale.train.run.folder import RunFolder
    from scamac_scale.train.state import FitState
    from scamac_scale.train.sweeps import Sweeps

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 10
WEIGHED_CELLS = 1000
"""Cells on which the gradients of two terms are compared."""


def _plan(source: OpenSource, batch_cells: int, loader: LoaderConfig, seed: int, world: World) -> EpochPlan:
    """Order the cells in training: each once per epoch, or every class of a column equally often."""
    sizes = window_sizes(source.n_cells, source.csr_bytes, loader.window_bytes)
    column = loader.balance_by
    if column is None:
        return EpochPlan(source.n_cells, batch_cells, seed, world, **sizes)
    import pandas as pd

    obs = source.obs
    if column not in obs:
        raise ConfigError(
            f"loader.balance_by={column!r} is no column of obs; known are {', '.join(map(str, obs.columns))}."
        )
    return WeightedPlan(balanced_weights(pd.factorize(obs[column])[0]), batch_cells, seed, world, **sizes)


def _log_nothing(values: dict[str, float], step: int) -> None:
    pass


class Stepper:
    """Takes gradient steps on the state of a fit; knows the order of the cells and how they come.

    Parameters
    ----------
    fabric
        From `placement.launch`.
    network
        On the device of `fabric`.
    source
        N cells.
    config
        Of the run.
    world
        This rank, and how many there are.
    run
        Where metrics go; None keeps nothing.

    Attributes
    ----------
    batch_cells
        Cells of a global batch.
    plan
        Which cells are in which batch.
    """

    def __init__(
        self,
        fabric: Placement,
        network: ScamacNetwork,
        source: OpenSource,
        config: ScamacConfig,
        *,
        world: World = ALONE,
        run: RunFolder | None = None,
    ) -> None:
        self.fabric, self.network, self.source, self.config, self.world = fabric, network, source, config, world
        self._folder = run.path if run else None
        self.log = run.log if run else _log_nothing
        self.batch_cells = min(config.train.batch_cells or batch_cells_for(source.n_cells), source.n_cells)
        self.plan = _plan(source, self.batch_cells, config.loader, config.seed, world)
        self.objective = Objective(config.loss)
        # Batches of evened classes are no sample of the atlas: its sums then stay as the sweeps leave them.
        self._is_sample = config.loader.balance_by is None
        network.channel_momentum = CHANNEL_MOMENTUM if self._is_sample else 0.0
        self.blocks = Blocks(network, count_blocks(self.batch_cells, world, config.train.sums), world)
        n_noise_blocks = count_blocks(self.batch_cells, world, "blocks")  # whatever the sums
        self._noise = Noise(config.input, config.seed, self.plan, n_noise_blocks, world)
        self._thinning: Thinning | None = None
        if config.loss.reconstruction in COUNT_LOSSES:
            share = config.input.target_share
            self._thinning = Thinning(source, share, config.seed, self.plan, n_noise_blocks, world)
        self._health = Health(self.blocks.n_blocks, fabric.device)
        self._device_cells: DeviceCells | None = None
        loader, device = config.loader, fabric.device
        resident = source.resident
        if loader.cache == "device" and resident is not None:
            self._device_cells = DeviceCells(resident, len(source.gene_names), device)
        else:
            # one for all rounds: its memory is used again
            self._feed = Feed(
                source,
                threads=loader.threads,
                ahead=loader.ahead,
                layout=densify_layout(loader, source, self.plan, device),
                is_pinned=device.type == "cuda",
            )

    def take(self, state: FitState, key: str, sweeps: Sweeps, *, label: str) -> None:
        """Take the steps of a phase that are left in this round.

        Parameters
        ----------
        state
            Moved on; `state.phase_step` tells which are left, and is 0 at the end.
        key
            Of the phase and its optimizer, which lives on from round to round; see `train.state`.
        sweeps
            For the sums over all cells of Eq. (15); its watch looks around after every step.
        label
            Shown beside the progress bar.
        """
        phase = phase_of(key, self.config.train)
        n_steps = phase_steps(phase, self.plan.n_batches)
        if n_steps > state.phase_step:
            self._take_left(state, phase, key, sweeps, n_steps, label)
        state.phase_step = 0

    def _take_left(
        self, state: FitState, phase: PhaseConfig, key: str, sweeps: Sweeps, n_steps: int, label: str
    ) -> None:
        optimizer, done = state.optimizer(key, self.config.train)
        total = n_steps * (1 if key == PRETRAINING else self.config.train.rounds)
        rate = phase.learning_rate or learning_rate_for(self.batch_cells)
        schedule, n_cells, n_left = SCHEDULES[phase.schedule], 0, n_steps - state.phase_step
        start_s = time.perf_counter()
        with (
            closing(self._batches(state.step, n_left, is_noisy=phase.is_noisy)) as batches,
            track(label, n_steps, "steps") as progress,
        ):
            progress.advance(state.phase_step)
            for index, batch in enumerate(batches):
                # the first step compiles, and reads the first cells
                world = self.world.brisk() if index else self.world
                if "similarity" in phase.terms:
                    self._renew_pairs(state, sweeps)
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(done, total)
                values = self._step(state, phase, batch, optimizer, world)
                if state.step % LOG_EVERY_STEPS == 0 or index == n_left - 1:
                    self.check(state.step)
                    found = {name: float(value) for name, value in values.items()}
                    self.log({**found, "learning_rate": rate * schedule(done, total)}, state.step)
                done += 1
                state.step, state.phase_step = state.step + 1, state.phase_step + 1
                state.optimizers[key] = (optimizer, done)
                n_cells += len(batch.rows)
                progress.advance(1)
                reach("train.step")
                sweeps.watch.step(world)
        self.log({"cells_per_s": self.world.size * n_cells / (time.perf_counter() - start_s)}, state.step - 1)

    def similarity_weight(self, state: FitState) -> float:
        """Measure the weight of Eq. (15) that gives its gradient the configured ratio to that of the reconstruction."""
        rows = sample_rows(self.source.n_cells, WEIGHED_CELLS, self.config.seed, "similarity weight")
        x = read_cells(self.source, rows, self.network).to(self.fabric.device)
        with torch.enable_grad(), self.fabric.autocast():
            levels = levels_of(self.source, rows)
            found = self.network(x, levels=None if levels is None else levels.to(x.device))
            layers, share = (
                NetworkOutput(*(part[None] for part in found)),
                torch.full((1, len(x)), 1 / len(x), device=x.device),
            )
            wanted = x if self._thinning is None else self._expected(rows).to(x.device)
            scene = Scene(wanted[None], rows[None], layers, found.latent[None], share, state.clusters, state.target)
            norms = {
                name: gradient_norm(self.objective.term(name, scene).sum(), found.hidden)
                for name in ("reconstruction", "similarity")
            }
        # The printed scaling grows with the number of cells that are paired, here those of the sample.
        n_paired = self.source.n_cells if self.config.loss.similarity == "atlas" else self.batch_cells
        norms["similarity"] *= self.objective.similarity_scale(n_paired) / self.objective.similarity_scale(len(x))
        if norms["reconstruction"] == 0.0:
            logger.warning(
                "the reconstruction has no gradient yet, so Eq. (15) has no weight: take steps before (train.pretrain), or set "
                "loss.similarity_weight"
            )
        return balanced_weight(norms["reconstruction"], norms["similarity"], self.config.loss.similarity_gradient_ratio)

    def _expected(self, rows: IntArray) -> torch.Tensor:
        """(n, G) counts that are held out of some cells in the mean, on the CPU."""
        assert self._thinning is not None
        batches = sample_batches(self.source, rows)
        return torch.cat([self._thinning.expected(batch.values, batch.rows) for batch in batches])

    def _batches(self, step: int, n_steps: int, *, is_noisy: bool = False) -> Generator[Batch]:
        """Give the batches of the next steps, on the device; on a CPU with their noise beside them, where they shall have some."""
        steps, device = (step, step + n_steps), self.fabric.device
        if self._device_cells is not None:
            return self._device_cells.run(self.plan, *steps)
        is_added = is_noisy and self._thinning is None
        beside = self._noise.fill if is_added and device.type == "cpu" else None
        return on_device(self._feed.run(self.plan, *steps, beside=beside), device)

    def _step(
        self, state: FitState, phase: PhaseConfig, batch: Batch, optimizer: torch.optim.Optimizer, world: World
    ) -> dict[str, torch.Tensor]:
        sizes, blocks = self.plan.block_sizes(state.step, self.blocks.n_blocks), self.blocks
        x, noisy, counts = self._corrupted(state.step, batch, is_noisy=phase.is_noisy)
        names: list[str] = [name for name in phase.terms if _is_ready(name, state)]
        counted = blocks.cut(torch.ones(len(x), device=x.device), sizes)
        rows = blocks.cut(torch.from_numpy(batch.rows), sizes).numpy()
        clean, noisy = blocks.cut(x, sizes), blocks.cut(noisy, sizes)
        levels = levels_of(self.source, batch.rows)
        levels = None if levels is None else blocks.cut(levels.to(x.device), sizes)
        if self.network.correction is not None and levels is not None:
            added = self.network.correction.offset(clean, levels)
            clean, noisy = clean - added, noisy - added
        with self.fabric.autocast():
            has_latent = not CLUSTER_TERMS.isdisjoint(names)
            layers, z, product = blocks.forward(noisy, counted, sizes, world, levels=levels, has_latent=has_latent)
        share, n_cells = counted / sum(sizes), self.source.n_cells
        wanted = clean if counts is None else blocks.cut(counts, sizes)
        scene = Scene(wanted, rows, layers, z, share, state.clusters, state.target, state.pairs, n_cells)
        terms = {name: self.objective.of_batch(name, scene, sizes, world) for name in names}
        losses = weighted_total(terms, state.weights)
        if reach("train.loss") == "nan":
            losses = losses * losses.new_tensor([torch.nan] + [1.0] * (len(losses) - 1))
        report = blocks.backward(losses, self._health.report(blocks.own, [*terms.values(), losses]), world)
        self._health.note(state.step, report)
        optimizer.step()
        self.network.follow_product(product)
        if "similarity" in names and self._is_sample:
            state.pairs = self.objective.followed(scene, sizes, world)
        return dict(zip([*names, "total"], report, strict=False))

    def _corrupted(
        self, step: int, batch: Batch, *, is_noisy: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Clean and noisy scaled input, and counts as the target where it is not the clean input."""
        x = self.network.scale_input(batch.values)
        if self._thinning is not None:
            if not is_noisy:
                return x, x, self._thinning.expected(batch.values, batch.rows)
            seen, held_out = self._thinning.split(step, batch.values, batch.rows)
            return x, self.network.scale_input(seen), held_out
        if not is_noisy:
            return x, x, None
        noise = self._noise.fill(step, torch.empty_like(x)) if batch.beside is None else batch.beside
        return x, corrupt(x, noise), None

    def _renew_pairs(self, state: FitState, sweeps: Sweeps) -> None:
        """Sum over all cells for Eq. (15), where no sweep has done it or the steps since then are too many."""
        loss = self.config.loss
        if loss.similarity != "atlas" or state.target is None or state.clusters is None:
            return
        every = loss.similarity_refresh_steps
        is_old = every is not None and state.step - state.pairs_step >= every
        if state.pairs is None or is_old:
            label = f"similarity at step {state.step}"
            state.pairs = sweeps.similarity(state.clusters, state.target, label)
            state.pairs_step = state.step
            self.log({"similarity_atlas": float(similarity_from_means(state.pairs))}, state.step)

    def check(self, step: int) -> None:
        """Refuse to go on after a loss that was not finite.

        Parameters
        ----------
        step
            Gradient steps that were taken.

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
                lambda world: _plan(source, self.batch_cells, config.loader, config.seed, world),
                self.blocks.n_blocks,
                source.source_rows,
                self._folder,
            )
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise NumericalError(
                f"the weights are not finite after step {step - 1}; lower the learning rate. Checkpoints from before stay."
            )


def _is_ready(term: str, state: FitState) -> bool:
    if term == "similarity":
        return state.target is not None
    return term not in CLUSTER_TERMS or state.clusters is not None
