"""Atlases of drawn cells: negative-binomial counts with dropout, written block by block.

Every random choice is a function of the seed and a fixed run of 1,024 cells, so an atlas begins with the same cells
however long it is, and memory does not grow with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.atomic import atomic_folder, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import ConfigError
from scamac_scale.host.compiled import compiled
from scamac_scale.host.memory import explained
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator
from scamac_scale.simulation.atlas import AtlasFrame, AtlasWriter, CellRun

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DRAWN_CELLS = 1024
"""Cells that share one random stream."""
TYPE = "cell_type"
"""Column of the true types."""
SLAB_VALUES = 2**22
"""Uniform numbers held at a time."""

ABUNDANCE_SD = 1.2
"""Standard deviation of the logarithm of a gene's abundance."""
MARKER_SHARE = 0.03
"""Share of the genes that mark a type."""
MARKER_LOG_FOLD = 1.5
"""Mean logarithm of how many times more a marker is expressed in its type (4.5 times), standard deviation 0.5."""
SIZE_POWER = 0.7
"""The k-th type is k**-0.7 times as frequent as the first."""
COUNTS_PER_GENE = 0.75
"""Median counts of a cell before dropout, for each gene of the atlas, unless asked for otherwise."""
DEPTH_SD = 0.4
"""Standard deviation of the logarithm of a cell's depth."""
SHAPE = 2
"""Shape r of the negative binomial: variance = mean + mean**2 / r; whole, so that its power is a product."""
DROPOUT = 0.3
"""Chance that a count is lost as the mean goes to zero; it falls as 1 / (1 + mean)."""


@dataclass(frozen=True, eq=False)
class CellModel:
    """What every cell of an atlas is drawn from.

    Attributes
    ----------
    profile
        (K, G) share of each gene in the counts of each type; rows sum to 1.
    marked
        (G,) type that a gene marks, -1 for none.
    weight
        (K,) share of each type in the cells.
    counts_per_gene
        Median counts of a cell before dropout, for each gene.
    """

    profile: NDArray[np.float64]
    marked: NDArray[np.int64]
    weight: NDArray[np.float64]
    counts_per_gene: float = COUNTS_PER_GENE

    @classmethod
    def draw(cls, n_genes: int, n_types: int, seed: int, counts_per_gene: float = COUNTS_PER_GENE) -> CellModel:
        """Draw the abundances, the markers of each type, and nothing of a cell."""
        rng = numpy_generator(seed, "simulated types")
        abundance = rng.lognormal(0.0, ABUNDANCE_SD, n_genes)
        n_markers = max(1, min(round(MARKER_SHARE * n_genes), n_genes // n_types))
        marked = np.full(n_genes, -1, dtype=np.int64)
        marked[rng.permutation(n_genes)[: n_types * n_markers]] = np.repeat(np.arange(n_types), n_markers)
        profile = np.tile(abundance, (n_types, 1))
        fold = rng.lognormal(MARKER_LOG_FOLD, 0.5, n_genes)
        genes = np.flatnonzero(marked >= 0)
        profile[marked[genes], genes] *= fold[genes]
        weight = np.arange(1, n_types + 1, dtype=np.float64) ** -SIZE_POWER
        return cls(profile / profile.sum(axis=1, keepdims=True), marked, weight / weight.sum(), counts_per_gene)


def draw_cells(model: CellModel, n_cells: int, seed: int, block: int) -> CellRun:
    """Draw a run of cells.

    Parameters
    ----------
    model
        Types and genes.
    n_cells
        At most `DRAWN_CELLS`; fewer are the first ones of the run.
    seed, block
        Key of the random stream: the run's number in the atlas.

    Returns
    -------
    CellRun
        Counts, and types as the column `TYPE`.
    """
    rng = numpy_generator(seed, "simulated cells", block)
    label = rng.choice(len(model.weight), size=DRAWN_CELLS, p=model.weight)[:n_cells]
    n_genes = model.profile.shape[1]
    depth = rng.lognormal(np.log(model.counts_per_gene * n_genes), DEPTH_SD, DRAWN_CELLS)[:n_cells]
    slab_cells = max(1, SLAB_VALUES // n_genes)
    lengths: list[NDArray[np.int64]] = []
    indices: list[NDArray[np.int32]] = []
    data: list[NDArray[np.float32]] = []
    for start in range(0, n_cells, slab_cells):
        rows = slice(start, min(start + slab_cells, n_cells))
        uniform = rng.random((rows.stop - rows.start, n_genes))
        drawn = _invert(uniform, model.profile, label[rows], depth[rows], SHAPE, DROPOUT)
        lengths.append(drawn[0])
        indices.append(drawn[1])
        data.append(drawn[2])
    indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])
    return CellRun(indptr, np.concatenate(indices), np.concatenate(data), {TYPE: label})


@explained("simulate")
def simulate(
    out: str | Path,
    n_cells: int,
    *,
    n_genes: int = 2000,
    n_types: int = 8,
    counts_per_gene: float = COUNTS_PER_GENE,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a labelled synthetic atlas of raw counts.

    Parameters
    ----------
    out
        AnnData zarr folder to write: counts as CSR in ``X``, the true type in ``obs["cell_type"]``, the type that a gene
        marks in ``var["marker_of"]``.
    n_cells
        Cells N.
    n_genes
        Genes G; each type has markers of its own.
    n_types
        Cell types; the first is the largest.
    counts_per_gene
        Median counts of a cell before dropout, for each gene: how dense the atlas is.
    seed
        The same seed gives the same cells, whatever `n_cells`.
    overwrite
        Whether an existing zarr folder is replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If a size is not positive, the seed is negative, or there are more types than genes.
    OutputError
        If it is already there, or cannot be written; nothing is left behind.

    Notes
    -----
    Counts are negative binomial around (depth of the cell) x (profile of its type), depth is log-normal, and small counts
    are lost more often than large ones. Drawn by inversion, one uniform number per cell and gene.
    """
    for name, value in (("n_cells", n_cells), ("n_genes", n_genes), ("n_types", n_types)):
        if value < 1:
            raise ConfigError(f"simulate: {name}={value}; it must be at least 1.")
    if not counts_per_gene > 0:
        raise ConfigError(f"simulate: counts_per_gene={counts_per_gene}; it must be positive.")
    if seed < 0:
        raise ConfigError(f"simulate: seed={seed}; it must not be negative.")
    if n_types > n_genes:
        raise ConfigError(f"simulate: n_types={n_types} for n_genes={n_genes}; each type needs a gene of its own.")
    model = CellModel.draw(n_genes, n_types, seed, counts_per_gene)
    with atomic_folder(out, overwrite=overwrite) as folder, writing(at_home(out)):
        writer = AtlasWriter(folder, _frame(model, n_cells, seed))
        with track("simulating", n_cells, "cells") as progress:
            for block, start in enumerate(range(0, n_cells, DRAWN_CELLS)):
                cells = draw_cells(model, min(DRAWN_CELLS, n_cells - start), seed, block)
                writer.append(cells)
                progress.advance(cells.n_cells)
        writer.finish()
    return at_home(out)


def _frame(model: CellModel, n_cells: int, seed: int) -> AtlasFrame:
    import pandas as pd

    types = [f"type{k + 1}" for k in range(len(model.weight))]
    marker_of = np.array([*types, "none"], dtype=object)[model.marked]
    names = [f"gene{g + 1:05d}" for g in range(model.profile.shape[1])]
    var = pd.DataFrame({"marker_of": pd.Categorical(marker_of)}, index=names)
    return AtlasFrame(var, {TYPE: types}, {"seed": seed}, n_cells)


@compiled
def _invert(
    uniform: Any, profile: Any, label: Any, depth: Any, shape: int, dropout: float
) -> Any:  # pragma: no cover  compiled
    """Turn one uniform number per cell and gene into a count: the inverse of the distribution function."""
    lengths = np.zeros(len(label), dtype=np.int64)
    indices = np.empty(uniform.size, dtype=np.int32)
    data = np.empty(uniform.size, dtype=np.float32)
    n = 0
    for row in range(len(label)):
        for gene in range(uniform.shape[1]):
            mean = depth[row] * profile[label[row], gene]
            u = uniform[row, gene]
            if u < 1.0 - mean:  # less than the chance of no count, without computing that
                continue
            chance = (1.0 / (1.0 + mean / shape)) ** shape  # of no count
            lost = (1.0 - chance) * dropout / (1.0 + mean)
            if u < chance + lost:
                continue
            u = chance + (u - chance - lost) * (1.0 - chance) / (1.0 - chance - lost)
            odds = mean / (mean + shape)
            below, count = chance, 0
            while u >= below and (chance > 1e-18 or count < mean):  # u may lie above all that float64 can sum up
                chance *= (shape + count) / (count + 1.0) * odds
                below += chance
                count += 1
            indices[n] = gene
            data[n] = count
            lengths[row] += 1
            n += 1
    return lengths, indices[:n].copy(), data[:n].copy()
