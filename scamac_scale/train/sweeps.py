"""The exact sweeps of a fit: what is summed over all cells between and after the gradient steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scamac_scale.errors import NumericalError
from scamac_scale.ops.fuzzy import CenterSums, center_sums, centers_from_sums, soft_assignment
from scamac_scale.sweep import sweep
from scamac_scale.train.objective import Clusters

if TYPE_CHECKING:
    from scamac_scale.config import ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork


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


def fuzzy_sweep(
    network: ScamacNetwork,
    source: CellSource,
    start: Clusters,
    config: ScamacConfig,
    *,
    label: str,
    is_frozen: bool = False,
) -> Clusters:
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
    is_frozen
        Leave the mean product as it is.

    Returns
    -------
    Clusters
        New centers, with the temperature of `start`; an empty cluster keeps its center.

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
    def add(sums: CenterSums | None, batch: Batch) -> CenterSums:
        z, channel_sum = network.embed_and_sum(network.scale_input(batch.values.to(device)))
        product.add_(channel_sum.cpu())
        u, h = soft_assignment(z, start.centers, start.temperature, config.loss.epsilon)
        found = center_sums(z, u, h)
        return found if sums is None else sums + found

    sums = sweep(source, add, None, label=label)
    assert sums is not None
    if not is_frozen:
        network.mean_product.copy_(product / source.n_cells)
    centers = centers_from_sums(sums, start.centers).to(start.centers)
    if not torch.isfinite(centers).all():
        raise NumericalError(f"a center is not finite after {label}; lower the learning rate, or look at metrics.csv.")
    return Clusters(centers, start.temperature)
