"""The state of a fit: all that the stages still to come depend on, and its one way into a checkpoint and back.

What does not change while a fit goes on (settings, cells, ranks) is not here: see `train.recipe.Tools`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.nn.correction import correction_for
from scamac_scale.ops.fuzzy import Clusters
from scamac_scale.ops.similarity import PairMeans
from scamac_scale.train.clusters.landmarks import Landmarks
from scamac_scale.train.clusters.targets import target_from_plain
from scamac_scale.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.config import PhaseConfig, ScamacConfig, TrainConfig
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.clusters.targets import Target

Plain = dict[str, Any]
"""Tensors, numbers, strings, None, and lists and dicts of them."""

PRETRAINING, PHASE = "pretraining", "phase "
"""Keys of the optimizers: that of the pretraining, and one for each phase of a round, by its number."""


class Times:
    """Wall time by part of the fit, in all processes that worked on it.

    Attributes
    ----------
    parts
        Name of the part to its seconds.
    """

    def __init__(self, parts: dict[str, float] | None = None) -> None:
        self.parts = dict(parts or {})
        self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        """Count the time since the last mark for a part."""
        now = time.perf_counter()
        self.parts[part] = round(self.parts.get(part, 0.0) + now - self._last_s, 3)
        self._last_s = now


@dataclass
class FitState:
    """A fit in the making.

    Attributes
    ----------
    network
        With its input scale, bank and channel product.
    stage
        Name of the stage that comes next; empty at the start.
    step
        Gradient steps that were taken.
    phase, phase_step
        Of the round, or the pretraining, that was begun: the phase, and the steps of it that were taken.
    optimizers
        Key to an optimizer, and the steps it has taken in all rounds; see `optimizer`.
    weights
        Factor of each term of the objective.
    landmarks, clusters, target
        None before they are found; the target also where no step has Eq. (15).
    pairs
        What Eq. (15) needs of all cells, in the present round; None before it is summed.
    pairs_step
        Gradient step at which it was summed.
    last_pairs
        The same at the end of the fit, to report.
    times
        Where the time went.
    """

    network: ScamacNetwork
    stage: str = ""
    step: int = 0
    phase: int = 0
    phase_step: int = 0
    optimizers: dict[str, tuple[torch.optim.Optimizer, int]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=lambda: {"reconstruction": 1.0, "layers": 1.0})
    landmarks: Landmarks | None = None
    clusters: Clusters | None = None
    target: Target | None = None
    pairs: PairMeans | None = None
    pairs_step: int = 0
    last_pairs: PairMeans | None = None
    times: Times = field(default_factory=Times)

    def optimizer(self, key: str, train: TrainConfig) -> tuple[torch.optim.Optimizer, int]:
        """Give the optimizer of a phase, made when it is first asked for, and the steps that it has taken."""
        if key not in self.optimizers:
            make = OPTIMIZERS[phase_of(key, train).optimizer]
            self.optimizers[key] = (make(self.network.parameters(), lr=1.0), 0)
        return self.optimizers[key]

    def to_plain(self) -> Plain:
        """Give tensors and plain data, from which `from_plain` makes the same state."""
        clusters = self.clusters
        return {
            "network": self.network.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "phase": self.phase,
            "phase_step": self.phase_step,
            "optimizers": {key: [optimizer.state_dict(), done] for key, (optimizer, done) in self.optimizers.items()},
            "weights": dict(self.weights),
            "landmarks": None if self.landmarks is None else self.landmarks.to_plain(),
            "clusters": None if clusters is None else [clusters.centers, clusters.temperature, clusters.weight],
            "target": None if self.target is None else self.target.to_plain(),
            "pairs": None if self.pairs is None else list(self.pairs),
            "pairs_step": self.pairs_step,
            "last_pairs": None if self.last_pairs is None else list(self.last_pairs),
            "times": dict(self.times.parts),
        }

    @classmethod
    def from_plain(
        cls,
        plain: Plain,
        network: ScamacNetwork,
        config: ScamacConfig,
        source: OpenSource,
        code_path: Path,
        world: World,
    ) -> FitState:
        """Make the state that `to_plain` gave.

        Parameters
        ----------
        plain
            From `to_plain`, perhaps of another process on another device.
        network
            On its device; its weights and buffers are written.
        config, source
            Of the fit.
        code_path
            Where the landmarks of all cells lie.
        world
            This rank, and how many there are.

        Raises
        ------
        StoreError
            If the file of the codes is missing, or is not what was written.
        LookupError, TypeError, ValueError, AttributeError, RuntimeError
            If `plain` is not what `to_plain` gave, of a fit of these settings.
        """
        _check_counts(plain)
        device = network.gene_mean.device
        correction = correction_for(plain["network"], config.correction.sigma)
        network.correction = None if correction is None else correction.to(device)
        network.load_state_dict(plain["network"])
        state = cls(network, plain["stage"], plain["step"], plain["phase"], plain["phase_step"])
        try:
            for key, (optimizer_state, done) in plain["optimizers"].items():
                optimizer, _ = state.optimizer(key, config.train)
                optimizer.load_state_dict(optimizer_state)
                _check_moments(optimizer)
                state.optimizers[key] = optimizer, done
            state.weights = dict(plain["weights"])
            if plain["landmarks"] is not None:
                state.landmarks = Landmarks.from_plain(plain["landmarks"], source.n_cells, len(source.gene_names))
            if plain["clusters"] is not None:
                centers, temperature, weight = plain["clusters"]
                clusters = Clusters(centers, temperature, config.loss.epsilon, weight)
                state.clusters = clusters.to(device)
            if plain["target"] is not None:
                state.target = target_from_plain(plain["target"], source.n_cells, code_path, world)
            state.pairs, state.last_pairs = (_pairs_on(device, plain[name]) for name in ("pairs", "last_pairs"))
            state.pairs_step = plain["pairs_step"]
            state.times = Times(plain["times"])
        except BaseException:
            state.close()
            raise
        return state

    def close(self) -> None:
        """Close files."""
        if self.target is not None:
            self.target.close()


def _check_counts(plain: Plain) -> None:
    """Refuse counts that no fit has; what else cannot be is an error where it is used."""
    counts = [plain[name] for name in ("step", "phase", "phase_step", "pairs_step")]
    counts += [done for _, done in plain["optimizers"].values()]
    if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(plain["stage"], str):
        raise ValueError("its steps are no counts")
    numbers = [*plain["weights"].values(), *plain["times"].values()]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("its weights and times are no numbers")


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Refuse what an optimizer keeps of weights of other shapes; it would not look before a step."""
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            is_tensor = isinstance(value, torch.Tensor)
            if value is not None and not (is_tensor and value.shape in (weight.shape, torch.Size([]))):
                raise ValueError(f"an optimizer has {name} of another shape than its weights")


def phase_of(key: str, train: TrainConfig) -> PhaseConfig:
    """Find the phase of an optimizer by its key."""
    return train.pretrain if key == PRETRAINING else train.phases[int(key.removeprefix(PHASE))]


def _pairs_on(device: torch.device, parts: list[torch.Tensor] | None) -> PairMeans | None:
    return None if parts is None else PairMeans(*(part.to(device) for part in parts))
