"""The exact sweeps of a fit: what is summed over all cells between and after the gradient steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scamac_scale.errors import NumericalError
from scamac_scale.ops.fuzzy import CenterSums, center_sums, centers_from_sums, soft_assignment
from scamac_scale.ops.similarity import Codes, Grams, PairMeans, gram_matrices, pair_means, unit_rows
from scamac_scale.sweep import sweep
from scamac_scale.train.objective import Clusters

if TYPE_CHECKING:
    from scamac_scale.arrays import IntArray
    from scamac_scale.config import ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.train.objective import Target


def freeze(network: ScamacNetwork, source: CellSource) -> None:
    """Re-encode the bank and set Eq. (11)'s product to its mean over all cells."""
    network.refresh_bank()
    device = network.gene_mean.device

    @torch.no_grad()
    def add(total: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = network.scale_input(batch.values.to(device))
        return total + network.channel_sum(x).cpu()

    total = sweep(
        source, add, torch.zeros_like(network.mean_product, dtype=torch.float64, device="cpu"), label="freeze"
    )
    network.mean_product.copy_(total / source.n_cells)


class _Sums(NamedTuple):
    """What a fuzzy sweep adds up."""

    centers: CenterSums
    grams: Grams | None

    def __add__(self, other: _Sums) -> _Sums:  # type: ignore[override]  # sums, not concatenated tuples
        grams = None if self.grams is None or other.grams is None else self.grams + other.grams
        return _Sums(self.centers + other.centers, grams)


def _grams(z: torch.Tensor, rows: IntArray, clusters: Clusters, target: Target) -> Grams:
    """float64 throughout: the value of Eq. (15) near its minimum is a small difference of large sums."""
    u = target.of(rows, z, clusters)
    return gram_matrices(u if isinstance(u, Codes) else unit_rows(u.double()), unit_rows(z.double()))


def fuzzy_sweep(
    network: ScamacNetwork,
    source: CellSource,
    start: Clusters,
    config: ScamacConfig,
    *,
    label: str,
    target: Target | None = None,
    is_frozen: bool = False,
) -> tuple[Clusters, PairMeans | None]:
    """One exact update of the centers (Eq. 13) over all cells; Eq. (11)'s mean product is renewed on the way.

    Parameters
    ----------
    network
        Its `mean_product` serves the pass and is renewed after it, unless `is_frozen`.
    source
        N cells.
    start
        Centers and temperature of the memberships.
    config
        Of the run.
    label
        Shown beside the progress bar.
    target
        Where given, the sums over all cells for Eq. (15) are taken, too.
    is_frozen
        Leave the mean product as it is.

    Returns
    -------
    tuple of Clusters, PairMeans or None
        New centers, with the temperature of `start`, an empty cluster keeps its center; and what Eq. (15) needs of all cells.

    Raises
    ------
    NumericalError
        If a center is not finite.

    Notes
    -----
    Between rounds the attention over channels still has the mean product of the sweep before, since the new one is only
    known at the end of the pass; the last sweep of a fit comes after `freeze` and is exact.
    """
    device = network.gene_mean.device
    product = torch.zeros_like(network.mean_product, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(sums: _Sums | None, batch: Batch) -> _Sums:
        z, channel_sum = network.embed_and_sum(network.scale_input(batch.values.to(device)))
        product.add_(channel_sum.cpu())
        u, h = soft_assignment(z, start.centers, start.temperature, config.loss.epsilon)
        found = _Sums(center_sums(z, u, h), None if target is None else _grams(z, batch.rows, start, target))
        return found if sums is None else sums + found

    sums = sweep(source, add, None, label=label)
    assert sums is not None
    if not is_frozen:
        network.mean_product.copy_(product / source.n_cells)
    centers = centers_from_sums(sums.centers, start.centers).to(start.centers)
    if not torch.isfinite(centers).all():
        raise NumericalError(f"a center is not finite after {label}; lower the learning rate, or look at metrics.csv.")
    atlas = None if sums.grams is None or target is None else pair_means(sums.grams, target.uu_square)
    return Clusters(centers, start.temperature), atlas


def similarity_sweep(network: ScamacNetwork, source: CellSource, clusters: Clusters, target: Target) -> PairMeans:
    """Sum over all cells what Eq. (15) needs of them, with the present weights.

    Parameters
    ----------
    network
        With its bank and mean product set.
    source
        N cells.
    clusters, target
        Of the memberships U.

    Returns
    -------
    PairMeans
        On the device of the network.
    """
    device = network.gene_mean.device

    @torch.no_grad()
    def add(sums: Grams | None, batch: Batch) -> Grams:
        z = network.embed(network.scale_input(batch.values.to(device)))
        found = _grams(z, batch.rows, clusters, target)
        return found if sums is None else sums + found

    sums = sweep(source, add, None, label="similarity")
    assert sums is not None
    return pair_means(sums, target.uu_square)
