"""The passes of Harmony over components that lie in a file: every sum over cells is taken block by block and segment by segment.

What is not kept is r, N x Q numbers: it enters later steps through sums over blocks only, and is found again where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scamac_scale.durable.faults import reach
from scamac_scale.ops.harmony import (
    ClusterSums,
    Design,
    Layer,
    Reference,
    RidgeSums,
    cluster_sums,
    corrected,
    log_penalty,
    objective,
    offset,
    ridge,
    ridge_sums,
    soft_clusters,
    soft_clusters_and_sums,
)
from scamac_scale.ops.similarity import unit_rows
from scamac_scale.ranks.collectives import TreeSum, sum_over_ranks
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import InFlight, Tick, no_tick
from scamac_scale.train.correction.points import N_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.config import CorrectionConfig
    from scamac_scale.train.correction.points import Points


PATIENCE = 2
"""Rounds that must gain next to nothing: the first ones may, before a correction takes hold."""


class _After(NamedTuple):
    """Sums over cells that were just corrected: towards the next centers, and for unknown levels."""

    towards: torch.Tensor
    sums: torch.Tensor

    def __add__(self, other: _After) -> _After:  # type: ignore[override]  # sums, not concatenated tuples
        return _After(self.towards + other.towards, self.sums + other.sums)


@dataclass
class Progress:
    """How far the passes have come, and all that the next ones depend on beside the components.

    Attributes
    ----------
    blocks
        (20, Q, L) float64, O of each block.
    towards
        (Q, d) float64, T of the next centers.
    n_passes
        Of this round that are done.
    layers
        Corrections so far.
    objectives
        Before each of them, and the one after them.
    reference
        The cells as the last of them leaves them.
    is_done
        Whether no more corrections are made.
    """

    blocks: torch.Tensor
    towards: torch.Tensor
    n_passes: int = 0
    layers: list[Layer] = field(default_factory=list)
    objectives: list[float] = field(default_factory=list)
    reference: Reference | None = None
    is_done: bool = False

    def to_plain(self) -> InFlight:
        """Numbers and tensors, for a checkpoint."""
        return {
            "blocks": self.blocks.cpu(),
            "towards": self.towards.cpu(),
            "n_passes": self.n_passes,
            "layers": [[part.cpu() for part in layer] for layer in self.layers],
            "objectives": list(self.objectives),
            "reference": None if self.reference is None else [part.cpu() for part in self.reference],
            "is_done": self.is_done,
        }

    @classmethod
    def from_plain(cls, plain: InFlight, device: torch.device) -> Progress:
        """Make what `to_plain` gave."""

        def here(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [part.to(device) for part in parts]

        blocks, towards = here([plain["blocks"], plain["towards"]])
        layers = [Layer(*here(layer)) for layer in plain["layers"]]
        reference = None if plain["reference"] is None else Reference(*here(plain["reference"]))
        objectives = list(plain["objectives"])
        return cls(blocks, towards, plain["n_passes"], layers, objectives, reference, plain["is_done"])


def has_settled(objectives: Sequence[float], tolerance: float) -> bool:
    """Tell whether the last `PATIENCE` rounds made the objective smaller by less than a share of it, each."""
    last = objectives[-1 - PATIENCE :]
    return len(last) > PATIENCE and all(before - now < tolerance * abs(before) for before, now in pairwise(last))


class Harmony:
    """Corrects points.

    Parameters
    ----------
    points
        Components of the cells of this rank; their corrected ones are written.
    design
        Of the cells of all ranks, on the device.
    config
        Settings.
    world
        This rank, and how many there are.
    tick
        Called after every pass, on all ranks equally often; gets what `run` goes on with elsewhere.
    """

    def __init__(
        self, points: Points, design: Design, config: CorrectionConfig, world: World = ALONE, tick: Tick = no_tick
    ) -> None:
        self._points, self._design, self._config = points, design, config
        self._world, self._tick = world.brisk(), tick
        self._device, self._n_levels = design.cells.device, len(design.cells)

    def run(self, start: torch.Tensor, in_flight: InFlight | None = None) -> tuple[list[Layer], Reference]:
        """Find the corrections.

        Parameters
        ----------
        start
            (Q, d) centers of k-means on unit vectors, in the dtype of the points.
        in_flight
            What `tick` got from the same work in another process.

        Returns
        -------
        tuple of list of Layer, Reference
            The corrections in the dtype of the points, and the corrected cells of all ranks.
        """
        if in_flight is None:
            progress = self._begin(start)
        else:
            progress = Progress.from_plain(in_flight, self._device)
            self._correct_again(progress.layers)
        while not progress.is_done:
            if progress.n_passes < self._config.passes:
                self._pass(progress, start.dtype)
            else:
                self._end_round(progress, start.dtype)
            reach("train.correction")
            self._tick(progress.to_plain)
        assert progress.reference is not None
        return progress.layers, progress.reference

    def _begin(self, start: torch.Tensor) -> Progress:
        """Clusters around the first centers, which avoid nothing."""
        centers = unit_rows(start.to(self._device))
        penalty = centers.new_zeros(self._n_levels, len(centers))
        sums = [self._sum(block, self._clusters(centers, penalty)) for block in range(N_BLOCKS)]
        towards = torch.stack([part.towards for part in sums]).sum(dim=0)
        return Progress(torch.stack([part.observed for part in sums]), towards)

    def _pass(self, progress: Progress, dtype: torch.dtype) -> None:
        """Find the clusters of one block after the other, each for what the others are in."""
        centers = unit_rows(progress.towards).to(dtype)
        towards = torch.zeros_like(progress.towards)
        observed = progress.blocks.sum(dim=0)
        for block in range(N_BLOCKS):
            observed = observed - progress.blocks[block]
            penalty = log_penalty(observed, self._design, self._config.theta).T.contiguous().to(dtype)
            found = self._sum(block, self._clusters(centers, penalty))
            progress.blocks[block] = found.observed
            observed, towards = observed + found.observed, towards + found.towards
        progress.towards = towards
        progress.n_passes += 1

    def _end_round(self, progress: Progress, dtype: torch.dtype) -> None:
        """Correct with centers and clusters that no longer move, unless the objective has stopped to fall."""
        config, design = self._config, self._design
        centers = unit_rows(progress.towards).to(dtype)
        penalty = log_penalty(progress.blocks.sum(dim=0), design, config.theta)
        rows = penalty.T.contiguous().to(dtype)
        sums = self._sum(0, self._ridge(centers, rows))
        observed = [sums.observed]
        for block in range(1, N_BLOCKS):
            part = self._sum(block, self._ridge(centers, rows))
            observed.append(part.observed)
            sums = sums + part
        progress.objectives.append(float(objective(sums, penalty, design, config.sigma, config.theta)))
        if has_settled(progress.objectives, config.tolerance):
            progress.is_done = True
            return
        layer = Layer(centers, rows, ridge(sums, design, config.alpha).to(dtype))
        total = self._sum(0, self._correct(layer))
        for block in range(1, N_BLOCKS):
            total = total + self._sum(block, self._correct(layer))
        progress.blocks = torch.stack(observed)
        progress.towards, progress.n_passes = total.towards, 0
        progress.layers.append(layer)
        progress.reference = Reference(design.sizes(sums.observed), total.sums)
        progress.is_done = len(progress.layers) == config.rounds

    # ---------------------------------------------------------------------- over the cells

    def _sum(self, block: int, of: Callable[[int, int], Any]) -> Any:  # Any: a NamedTuple that knows how to add itself
        """Add what `of` makes of the pieces of a block, over all segments of all ranks."""
        tree, zero = TreeSum(), of(0, 0)
        for segment in range(self._points.segments):
            part = zero
            for start, stop in self._points.pieces(segment, block):
                part = part + of(start, stop)
            tree.add(part)
        return sum_over_ranks(tree.total(), self._world)

    def _clusters(self, centers: torch.Tensor, penalty: torch.Tensor) -> Callable[[int, int], ClusterSums]:
        def of(start: int, stop: int) -> ClusterSums:
            z, levels = self._corrected(start, stop), self._levels(start, stop)
            r = soft_clusters(z, levels, centers, penalty, self._config.sigma)
            return cluster_sums(z, levels, r, self._n_levels)

        return of

    def _ridge(self, centers: torch.Tensor, penalty: torch.Tensor) -> Callable[[int, int], RidgeSums]:
        def of(start: int, stop: int) -> RidgeSums:
            levels = self._levels(start, stop)
            r, log_sums = soft_clusters_and_sums(
                self._corrected(start, stop), levels, centers, penalty, self._config.sigma
            )
            return ridge_sums(self._points.z(start, stop).to(self._device), levels, r, log_sums, self._n_levels)

        return of

    def _correct(self, layer: Layer) -> Callable[[int, int], _After]:
        def of(start: int, stop: int) -> _After:
            levels = self._levels(start, stop)
            r = soft_clusters(self._corrected(start, stop), levels, layer.centers, layer.penalty, self._config.sigma)
            z = self._points.z(start, stop).to(self._device) - offset(r, levels, layer.beta)
            if stop > start:
                self._points.write_corrected(start, z)
            return _After((r.T @ unit_rows(z)).double(), (r.T @ z).double())

        return of

    def _correct_again(self, layers: list[Layer]) -> None:
        """Give the points the corrections that were found before."""
        for segment in range(self._points.segments):
            for block in range(N_BLOCKS):
                for start, stop in self._points.pieces(segment, block):
                    z = self._points.z(start, stop).to(self._device)
                    found = corrected(z, self._levels(start, stop), layers, self._config.sigma)
                    self._points.write_corrected(start, found)

    def _corrected(self, start: int, stop: int) -> torch.Tensor:
        return self._points.corrected(start, stop).to(self._device)

    def _levels(self, start: int, stop: int) -> torch.Tensor:
        return self._points.levels(start, stop).to(self._device)
