"""The exact sweeps of a fit: what is summed over all cells between and after the gradient steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from scamac_scale.config import TrainConfig
from scamac_scale.errors import NumericalError
from scamac_scale.loader.source import levels_of
from scamac_scale.ops.fuzzy import CenterSums, center_sums, centers_from_sums
from scamac_scale.ops.similarity import Codes, Grams, PairMeans, gram_matrices, pair_means, unit_rows
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import sum_over_cells
from scamac_scale.train.clusters.targets import ConsensusTarget
from scamac_scale.train.run.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.train.clusters.targets import Target

Sum = TypeVar("Sum")


class _Sums(NamedTuple):
    """What a fuzzy sweep adds up."""

    product: torch.Tensor
    centers: CenterSums
    grams: Grams | None

    def __add__(self, other: _Sums) -> _Sums:  # type: ignore[override]  # sums, not concatenated tuples
        grams = None if self.grams is None or other.grams is None else self.grams + other.grams
        return _Sums(self.product + other.product, self.centers + other.centers, grams)


class Sweeps:
    """Passes over all cells with the present weights.

    Parameters
    ----------
    network
        On its device.
    source
        N cells.
    world
        This rank, and how many there are: each takes its part of the cells, and all get the sums over all cells.
    watch
        Asked now and then; None goes on.
    """

    def __init__(
        self,
        network: ScamacNetwork,
        source: CellSource,
        world: World = ALONE,
        watch: Watch | None = None,
    ) -> None:
        self.network = network
        self.source = source
        self.world = world
        self.watch = watch or Watch(TrainConfig(), world)

    def freeze(self, label: str = "freeze") -> None:
        """Re-encode the bank and set Eq. (11)'s product to its mean over all cells."""
        self.network.refresh_bank()
        total = self._sum(lambda x, batch: self.network.channel_sum(x), label=label)
        self.network.mean_product.copy_(total / self.source.n_cells)

    def fuzzy(
        self,
        start: Clusters,
        *,
        label: str,
        target: Target | None = None,
        is_final: bool = False,
    ) -> tuple[Clusters, PairMeans | None]:
        """One exact update of the centers (Eq. 13) over all cells; Eq. (11)'s mean product is renewed on the way.

        Parameters
        ----------
        start
            Centers and temperature of the memberships.
        label
            Shown beside the progress bar.
        target
            Where given, the sums over all cells for Eq. (15) are taken, too.
        is_final
            Leave the mean product as it is, and take the sums for Eq. (15) in float64 throughout: for a value to report, which
            near its minimum is a small difference of large sums. Otherwise batches are multiplied in float32, for gradients.

        Returns
        -------
        tuple of Clusters, PairMeans or None
            New centers, with the temperature of `start`, an empty cluster keeps its center; and what Eq. (15) needs of all
            cells.

        Raises
        ------
        NumericalError
            If a center is not finite.

        Notes
        -----
        Between rounds the attention over channels still has the mean product of the sweep before, since the new one is only
        known at the end of the pass; the last sweep of a fit comes after `freeze` and is exact.
        """

        def add(x: torch.Tensor, batch: Batch) -> _Sums:
            z, product = self.network.embed_and_sum(x)
            u, h = start.assign(z)
            if isinstance(target, ConsensusTarget):
                grams: Grams | None = _grams(target.of(batch.rows, z, start), z, is_final)
            else:
                grams = None if target is None else _grams(u, z, is_final)
            return _Sums(product, center_sums(z, u, h), grams)

        sums = self._sum(add, label=label)
        if not is_final:
            self.network.mean_product.copy_(sums.product / self.source.n_cells)
        centers = centers_from_sums(sums.centers, start.centers).to(start.centers)
        if not torch.isfinite(centers).all():
            raise NumericalError(
                f"a center is not finite after {label}; lower the learning rate, or look at metrics.csv."
            )
        pairs = None if sums.grams is None or target is None else pair_means(sums.grams, target.uu_square)
        return replace(start, centers=centers, weight=sums.centers.weight), pairs

    def similarity(self, clusters: Clusters, target: Target, label: str = "similarity") -> PairMeans:
        """Sum over all cells what Eq. (15) needs of them.

        Parameters
        ----------
        clusters, target
            Of the memberships U.
        label
            Shown beside the progress bar.

        Returns
        -------
        PairMeans
            On the device of the network.
        """

        def add(x: torch.Tensor, batch: Batch) -> Grams:
            z = self.network.embed(x)
            return _grams(target.of(batch.rows, z, clusters), z, False)

        sums = self._sum(add, label=label)
        return pair_means(sums, target.uu_square)

    def _sum(self, part: Callable[[torch.Tensor, Batch], Sum], *, label: str) -> Sum:
        """Add what `part` makes of the scaled input of each batch, over all cells of all ranks."""
        device = self.network.gene_mean.device

        @torch.no_grad()
        def of(batch: Batch) -> Sum:
            levels = levels_of(self.source, batch.rows)
            return part(self.network.cell_input(batch.values.to(device), levels), batch)

        with self.watch.sweep(label) as (in_flight, tick):
            return sum_over_cells(self.source, of, label=label, world=self.world, in_flight=in_flight, tick=tick)


def _grams(u: torch.Tensor | Codes, z: torch.Tensor, is_precise: bool) -> Grams:
    dtype = torch.float64 if is_precise else torch.float32
    return gram_matrices(u if isinstance(u, Codes) else unit_rows(u.to(dtype)), unit_rows(z.to(dtype)))
