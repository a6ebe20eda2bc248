"""From the cells of a fit to the layers that correct their technical batches: components by a sweep, first centers, passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.correction import TechCorrection
from scamac_scale.ops.harmony import Design, Layer, Reference
from scamac_scale.ops.similarity import unit_rows
from scamac_scale.randomness import integer_seed
from scamac_scale.ranks.collectives import barrier, from_first
from scamac_scale.sweep import SWEEP_CELLS, InFlight, Tick, sweep
from scamac_scale.train.clusters.selection import sample_batches, sample_rows
from scamac_scale.train.correction.harmony import Harmony
from scamac_scale.train.correction.points import Points, open_points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray
    from scamac_scale.cells.tech_batches import TechBatches
    from scamac_scale.config import CorrectionConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource

CELLS_PER_CLUSTER = 30
MOST_CLUSTERS = 100
START_CELLS = 5000
"""Cells on which k-means finds the first centers."""


@dataclass(frozen=True)
class Cells:
    """What is corrected.

    Attributes
    ----------
    source
        N cells, which know their technical batches.
    components
        Makes (B, d) components of a batch, on the device.
    width
        d.
    device
        Where the work is done.
    folder
        For the components of many cells; None takes that of temporary files.
    """

    source: OpenSource
    components: Callable[[Batch], torch.Tensor]
    width: int
    device: torch.device
    folder: Path | None


def start_correction(mean: FloatArray, axes: FloatArray, sigma: float) -> TechCorrection:
    """Make a correction that knows its (G, d) components around a (G,) mean, and takes nothing from any cell yet."""
    correction = TechCorrection(axes.shape[0], axes.shape[1], sigma=sigma)
    correction.axes.copy_(torch.from_numpy(axes.copy()))
    correction.mean.copy_(torch.from_numpy(mean @ axes))
    return correction


def count_clusters(n_cells: int, config: CorrectionConfig) -> int:
    """Soft clusters Q: as configured, or what fits the cells; never more than there are."""
    fitting = max(2, min(MOST_CLUSTERS, n_cells // CELLS_PER_CLUSTER))
    return min(config.clusters or fitting, n_cells)


def fit_correction(
    cells: Cells, config: CorrectionConfig, seed: int, world: World, found: InFlight | None, tick: Tick
) -> tuple[list[Layer], Reference]:
    """Find what corrects the technical batches of all cells.

    Parameters
    ----------
    cells
        Of the fit.
    config
        Settings.
    seed
        Of the run.
    world
        This rank, and how many there are: each takes its part of the cells, and all get the same layers.
    found, tick
        As `in_flight` and `tick` of `sweep.sum_over_cells`.

    Returns
    -------
    tuple of list of Layer, Reference
        float32, on the device.

    Notes
    -----
    Memory: 8 bytes a cell of this rank for its place and 4 for each covariate, some 50 for a moment at the start; sums of Q x L x d numbers, and Q x L x L
    with several covariates. Two rows of components a cell lie in files where there are many.
    """
    tech = cells.source.tech_batches
    assert tech is not None
    plan = SweepPlan(cells.source.n_cells, SWEEP_CELLS, world)

    def look() -> None:
        """While the components come, what was done in another process is still what there is."""
        tick(None if found is None else lambda: found)

    with open_points(plan, tech.levels, cells.width, seed, cells.folder) as points:
        _write_points(points, cells, plan, look)
        start = None
        if found is None:
            start = from_first(lambda: _first_centers(cells, config, seed), world)
        barrier(world)
        design = _design(tech, cells.device)
        empty = torch.zeros(count_clusters(cells.source.n_cells, config), cells.width)
        return Harmony(points, design, config, world, tick).run(empty if start is None else start, found)


def _design(tech: TechBatches, device: torch.device) -> Design:
    counts = np.bincount(tech.levels.reshape(-1), minlength=sum(tech.counts))
    return Design(tech.counts, torch.from_numpy(counts.astype(np.float64)).to(device))


def _write_points(points: Points, cells: Cells, plan: SweepPlan, look: Callable[[], None]) -> None:
    @torch.no_grad()
    def write(done: int, batch: Batch) -> int:
        points.write(batch.rows, cells.components(batch).float().cpu().numpy())
        return done + len(batch.rows)

    sweep(cells.source, write, 0, label="components", plan=plan, tick=lambda turn, done: look())


@torch.no_grad()
def _first_centers(cells: Cells, config: CorrectionConfig, seed: int) -> torch.Tensor:
    """Centers of k-means on unit vectors of a sample."""
    from sklearn.cluster import KMeans

    source = cells.source
    n_clusters = count_clusters(source.n_cells, config)
    rows = sample_rows(source.n_cells, max(START_CELLS, n_clusters), seed, "harmony")
    z = torch.cat([cells.components(batch).cpu() for batch in sample_batches(source, rows)])
    found = KMeans(n_clusters, n_init=1, random_state=integer_seed(seed, "harmony")).fit(unit_rows(z.double()).numpy())
    return torch.from_numpy(found.cluster_centers_).float()
