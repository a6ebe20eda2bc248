"""Gradient steps: one phase after another over an endless, seeded order of batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.errors import NumericalError, choose
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.losses.total import balanced_weight, gradient_norm, weighted_total
from scamac_scale.ops.corruption import uniform_noise
from scamac_scale.progress import track
from scamac_scale.randomness import torch_generator
from scamac_scale.train.objective import CLUSTER_TERMS, Clusters, Objective, Scene, Target
from scamac_scale.train.schedule import SCHEDULES, batch_cells_for, learning_rate_for, phase_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.fabric import Fabric

    from scamac_scale.arrays import IntArray
    from scamac_scale.config import InputConfig, PhaseConfig, ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.train.loop import Landmarks

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

    def __init__(self, fabric: Fabric, network: ScamacNetwork, source: CellSource, config: ScamacConfig) -> None:
        self.fabric = fabric
        self.network = network
        self.source = source
        self.config = config
        self.batch_cells = min(config.train.batch_cells or batch_cells_for(source.n_cells), source.n_cells)
        self.plan = EpochPlan(source.n_cells, self.batch_cells, config.seed)
        self.objective = Objective(config.loss)
        self.step = 0
        self.clusters: Clusters | None = None
        self.target: Target | None = None
        self.weights: dict[str, float] = {"reconstruction": 1.0, "layers": 1.0}
        self._module = fabric.setup_module(network)
        self._optimizers: dict[int, tuple[Any, int]] = {}

    def steps(self, phase: PhaseConfig) -> int:
        """Count the steps of a phase in one round."""
        return phase_steps(phase, self.plan.n_batches)

    def cluster(self, objective: Objective, clusters: Clusters, target: Target | None, landmarks: Landmarks) -> None:
        """Take the clusters in, and measure the weight of Eq. (15) once where the config leaves it open."""
        self.clusters, self.target = clusters, target
        loss = self.config.loss
        self.weights["clustering"] = loss.clustering_weight
        if not any("similarity" in phase.terms for phase in self.config.train.phases):
            return
        self.weights["similarity"] = (
            self._measure_similarity_weight(landmarks) if loss.similarity_weight is None else loss.similarity_weight
        )

    def _measure_similarity_weight(self, landmarks: Landmarks) -> float:
        x = landmarks.x.to(self.fabric.device)
        with torch.enable_grad():
            scene = self._scene(x, x, landmarks.rows)
            norms = {
                name: gradient_norm(self.objective.term(name, scene), scene.out.hidden)
                for name in ("reconstruction", "similarity")
            }
        return balanced_weight(norms["reconstruction"], norms["similarity"], self.config.loss.similarity_gradient_ratio)

    def run(self, phase: PhaseConfig, n_steps: int, *, label: str) -> None:
        """Take the steps of one phase.

        Parameters
        ----------
        phase
            Terms, optimizer and step size. Its optimizer lives on from round to round.
        n_steps
            How many.
        label
            Shown beside the progress bar.

        Raises
        ------
        NumericalError
            If a term is not finite; names the step.
        """
        if n_steps == 0:
            return
        optimizer, done = self._optimizer(phase)
        total = n_steps if phase is self.config.train.pretrain else n_steps * self.config.train.rounds
        schedule = choose(SCHEDULES, phase.schedule, "schedule")
        rate = phase.learning_rate or learning_rate_for(self.batch_cells)
        self.network.train()
        start_s = time.perf_counter()
        feed = Feed(self.source, pin_memory=self.fabric.device.type == "cuda")
        with feed, track(label, n_steps, "steps") as progress:
            for index, batch in enumerate(feed.run(self._requests(n_steps))):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(done + index, total)
                values = self._take_step(phase, batch, optimizer)
                if self.step % LOG_EVERY_STEPS == 0 or index == n_steps - 1:
                    self._report(values, batch, rate * schedule(done + index, total))
                self.step += 1
                progress.advance(1)
        self._optimizers[id(phase)] = (optimizer, done + n_steps)
        self.fabric.log("cells_per_s", n_steps * self.batch_cells / (time.perf_counter() - start_s), self.step - 1)
        self.network.eval()

    def _optimizer(self, phase: PhaseConfig) -> tuple[Any, int]:
        if id(phase) not in self._optimizers:
            make = choose(OPTIMIZERS, phase.optimizer, "optimizer")
            made = self.fabric.setup_optimizers(make(self.network.parameters(), lr=1.0))
            self._optimizers[id(phase)] = (made, 0)
        return self._optimizers[id(phase)]

    def _requests(self, n_steps: int) -> Iterator[IntArray]:
        n_batches = self.plan.n_batches
        for step in range(self.step, self.step + n_steps):
            yield self.plan.rows(step // n_batches, step % n_batches)

    def _scene(self, x: torch.Tensor, noisy: torch.Tensor, rows: IntArray) -> Scene:
        return Scene(x, rows, self._module(noisy, frozen=False), self.clusters, self.target)

    def _take_step(self, phase: PhaseConfig, batch: Batch, optimizer: Any) -> dict[str, torch.Tensor]:
        device = self.fabric.device
        x = self.network.scale_input(batch.values.to(device, non_blocking=True))
        shape = (len(batch.rows), x.shape[1])
        noisy = x + batch_noise(shape, self.config.input, self.config.seed, self.step, device) if phase.is_noisy else x
        scene = self._scene(x, noisy, batch.rows)
        terms = {name: self.objective.term(name, scene) for name in phase.terms if self._is_ready(name)}
        total = weighted_total(terms, self.weights)
        optimizer.zero_grad()
        self.fabric.backward(total)
        optimizer.step()
        return {**{name: term.detach() for name, term in terms.items()}, "total": total.detach()}

    def _is_ready(self, term: str) -> bool:
        return term not in CLUSTER_TERMS or self.clusters is not None

    def _report(self, values: dict[str, torch.Tensor], batch: Batch, rate: float) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise NumericalError(
                f"the loss is not finite at step {self.step} (terms: {', '.join(bad)}; cells {batch.rows[:5].tolist()} "
                "and the rest of their batch). Lower the learning rate, or look at the values of these cells."
            )
        self.fabric.log_dict({**numbers, "learning_rate": rate}, self.step)
