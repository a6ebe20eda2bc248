"""What one population of cells looks like: means, noise and correlated variation of its genes, and cells drawn from it.

A cell of depth d in technical batch b holds ``Poisson(d m_bg exp(eta_g) w_g)`` of gene g: ``m_b`` are the means of its batch, ``eta`` is one
Gaussian cloud that carries the correlations between genes which the cells show (a cell cycle, a gradient), and ``w_g`` is gamma noise of
each gene alone. There is no second group in it: what a cut of such cells finds is what the same cut finds where there is nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray

CLIP = 10.0
"""Residuals beyond so many standard deviations count as so many."""
NOISE_BOUNDS = 0.01, 100.0
"""Of the squared coefficient of variation of a gene's own noise."""
MOST_LOG_VARIANCE = 2.0
"""Of the correlated variation of one gene, natural logarithm."""
LEAST_COMPONENTS, MOST_COMPONENTS = 2, 15
CELLS_PER_COMPONENT = 20
ABOVE_EDGE = 1.02
"""A component counts if its variance is so many times the largest that noise alone gives (Marchenko and Pastur)."""
SMALL = 1e-12


class Cells(NamedTuple):
    """Cells of one cluster, in memory.

    Attributes
    ----------
    values
        (n, g) float64: counts, or log-normalised values where the input holds no counts.
    depth
        (n,) total of each cell over all genes, counts only.
    batches
        (n,) technical batch of each cell.
    is_counts
        Whether `values` are counts.
    """

    values: FloatArray
    depth: FloatArray
    batches: IntArray
    is_counts: bool

    def of(self, rows: IntArray) -> Cells:
        """Give some of the cells."""
        return Cells(self.values[rows], self.depth[rows], self.batches[rows], self.is_counts)


@dataclass(frozen=True, eq=False)
class Scale:
    """How values become residuals, for cells that took no part as well.

    Attributes
    ----------
    rates
        (L, g) mean of each gene in each technical batch, of a cell of mean depth; the last row is of all batches, for others.
    noise
        (g,) squared coefficient of variation of counts beyond Poisson; the standard deviation of other values.
    depth
        Mean depth.
    is_counts
        Whether values are counts.
    """

    rates: FloatArray
    noise: FloatArray
    depth: float
    is_counts: bool

    def expected(self, cells: Cells) -> FloatArray:
        """(n, g) means of the cells."""
        known = np.where((cells.batches >= 0) & (cells.batches < len(self.rates) - 1), cells.batches, -1)
        rates = self.rates[known]
        return rates * (cells.depth / self.depth)[:, None] if self.is_counts else rates

    def residuals(self, cells: Cells) -> FloatArray:
        """(n, g) Pearson residuals: about 1 of noise alone, whatever the depth."""
        mean = self.expected(cells)
        spread = np.sqrt(np.maximum(mean + self.noise * mean**2, SMALL)) if self.is_counts else self.noise
        return np.clip((cells.values - mean) / spread, -CLIP, CLIP)


def fit_scale(cells: Cells) -> Scale:
    """Find means and noise of the genes of some cells."""
    depth = max(float(cells.depth.mean()), SMALL) if cells.is_counts and len(cells.depth) else 1.0
    weights = cells.depth / depth if cells.is_counts else np.ones(len(cells.values))
    total = cells.values.sum(axis=0) / max(float(weights.sum()), SMALL)
    rates = np.tile(total, (int(cells.batches.max(initial=0)) + 2, 1))
    for batch in np.unique(cells.batches):
        own = cells.batches == batch
        if weights[own].sum() > 0:
            rates[batch] = cells.values[own].sum(axis=0) / weights[own].sum()
    scale = Scale(rates, np.ones(len(total)), depth, cells.is_counts)
    mean = scale.expected(cells)
    square = (cells.values - mean) ** 2
    if cells.is_counts:
        excess = (square - cells.values).sum(axis=0) / np.maximum((mean**2).sum(axis=0), SMALL)
        noise = np.clip(excess, *NOISE_BOUNDS)
    else:
        noise = np.sqrt(np.maximum(square.mean(axis=0), SMALL))
    return Scale(rates, noise, scale.depth, cells.is_counts)


def components(residuals: FloatArray, most: int) -> tuple[FloatArray, FloatArray]:
    """Principal components of (n, g) residuals: all variances, largest first, and at most `most` axes (g, k)."""
    n, g = residuals.shape
    centered = residuals - residuals.mean(axis=0)
    if n <= g:
        values, vectors = np.linalg.eigh(centered @ centered.T / n)
        values, vectors = values[::-1], vectors[:, ::-1][:, :most]
        axes = centered.T @ vectors
        axes /= np.maximum(np.linalg.norm(axes, axis=0), SMALL)
    else:
        values, axes = np.linalg.eigh(centered.T @ centered / n)
        values, axes = values[::-1], axes[:, ::-1][:, :most]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.maximum(values, 0.0), axes * np.where(signs == 0, 1.0, signs)


def count_components(variances: FloatArray, n_cells: int, n_genes: int) -> tuple[int, float]:
    """Count components that noise alone does not give, within bounds; and the variance of noise."""
    ratio = n_genes / n_cells
    noise = float(np.median(variances[: min(n_cells, n_genes)])) / _median_of_noise(ratio)
    edge = ABOVE_EDGE * noise * (1 + np.sqrt(ratio)) ** 2
    most = max(LEAST_COMPONENTS, min(MOST_COMPONENTS, n_cells // CELLS_PER_COMPONENT))
    found = int((variances[:most] > edge).sum())
    return found, noise


def _median_of_noise(ratio: float) -> float:
    """Give the median of the Marchenko-Pastur law of `ratio` genes a cell, of the variances that are not 0."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    at = low + (high - low) * (np.arange(4000) + 0.5) / 4000
    weights = np.cumsum(np.sqrt((high - at) * (at - low)) / at)
    return float(at[np.searchsorted(weights, weights[-1] / 2)])


@dataclass(frozen=True, eq=False)
class Population:
    """One population with the means, the noise and the correlations of some cells.

    Attributes
    ----------
    scale
        Of the cells.
    loads
        (g, k) correlated variation of each gene along each component: of counts in natural logarithms of their means, of other values in
        their units.
    rest
        (g,) squared coefficient of variation of the noise of each gene alone; of other values its variance.
    """

    scale: Scale
    loads: FloatArray
    rest: FloatArray

    def draw(self, cells: Cells, stream: np.random.Generator) -> Cells:
        """Draw as many cells, of the same depths and technical batches."""
        mean = self.scale.expected(cells)
        cloud = stream.standard_normal((len(mean), self.loads.shape[1])) @ self.loads.T
        if not cells.is_counts:
            values = mean + cloud + stream.standard_normal(mean.shape) * np.sqrt(self.rest)
            return cells._replace(values=values)
        own = stream.gamma(1 / self.rest, self.rest, size=mean.shape)
        rates = mean * np.exp(cloud - (self.loads**2).sum(axis=1) / 2) * own
        return cells._replace(values=stream.poisson(rates).astype(np.float64))


def fit_population(cells: Cells, scale: Scale, residuals: FloatArray) -> tuple[Population, int]:
    """Find the one population that cells would be of, and how many components there are to cut along.

    Notes
    -----
    The variance of a component is shrunk to what gives the one that was seen in so many cells (spiked covariance), so that the cells drawn
    vary along it as those seen do.
    """
    n_cells, n_genes = residuals.shape
    variances, axes = components(residuals, MOST_COMPONENTS)
    found, noise = count_components(variances, n_cells, n_genes)
    ratio = n_genes / n_cells
    seen = variances[:found] / noise
    middle = seen + 1 - ratio
    true = (middle + np.sqrt(np.maximum(middle**2 - 4 * seen, 0.0))) / 2
    loads = axes[:, :found] * np.sqrt(np.maximum(true - 1, 0.0) * noise)
    if not cells.is_counts:
        loads = loads * scale.noise[:, None]
        rest = np.maximum(scale.noise**2 - (loads**2).sum(axis=1), SMALL)
        return Population(scale, loads, rest), max(found, LEAST_COMPONENTS)
    mean = scale.expected(cells)
    unit = np.sqrt(mean + scale.noise * mean**2).mean(axis=0) / np.maximum(mean.mean(axis=0), SMALL)
    loads = loads * unit[:, None]
    variance = (loads**2).sum(axis=1)
    loads = loads * np.minimum(1.0, np.sqrt(MOST_LOG_VARIANCE / np.maximum(variance, SMALL)))[:, None]
    rest = np.maximum((1 + scale.noise) / np.exp((loads**2).sum(axis=1)) - 1, 1e-3)
    return Population(scale, loads, rest), max(found, LEAST_COMPONENTS)
