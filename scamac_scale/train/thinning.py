"""The thinning of each gradient step, keyed by seed, step and block of the global batch, as `noise`. The formulas are `ops.thinning`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scamac_scale.cells.normalisation import cell_scale
from scamac_scale.ops.thinning import counts_of, thin, values_of
from scamac_scale.randomness import torch_generator

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.loader.plan import EpochPlan
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource


class Thinned(NamedTuple):
    """Two parts of the molecules of some cells.

    Attributes
    ----------
    values
        (B, G) log-normalised values of the part that the network sees.
    held_out
        (B, G) counts of the other part, the target.
    """

    values: torch.Tensor
    held_out: torch.Tensor


class Thinning:
    """Deals out the molecules of the cells of this rank.

    Parameters
    ----------
    source
        Counts, with the totals of its cells; see `checks.check_counts`.
    share
        Of the molecules that is the target.
    seed
        Of the run.
    plan
        Tells how many cells each block of a batch has.
    n_blocks
        Of a global batch, from `blocks.count_blocks`; the ranks divide it.
    world
        This rank, and how many there are.
    """

    def __init__(
        self, source: OpenSource, share: float, seed: int, plan: EpochPlan, n_blocks: int, world: World
    ) -> None:
        totals, target_sum = source.totals, source.gene_space.target_sum
        assert totals is not None
        assert target_sum is not None
        self._scale = cell_scale(totals, target_sum)
        self._scale[self._scale == 0] = 1.0
        self._share, self._seed, self._plan = share, seed, plan
        self._n_blocks, self._own = n_blocks, world.own(n_blocks)

    def expected(self, values: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """(B, G) mean of what is held out of some cells; values log-normalised."""
        return counts_of(values, self._scale_of(rows, values)).mul_(self._share)

    def split(self, step: int, values: torch.Tensor, rows: IntArray) -> Thinned:
        """Deal out the molecules of the cells of a step.

        Parameters
        ----------
        step
            Gradient step.
        values
            (B, G) log-normalised values of the cells of this rank, block after block; left unchanged.
        rows
            (B,) of the source.

        Returns
        -------
        Thinned
            Both parts; the values are scaled up, as if no molecule were missing.
        """
        scale = self._scale_of(rows, values)
        counts, held_out = counts_of(values, scale), torch.empty_like(values)
        sizes = self._plan.block_sizes(step, self._n_blocks)
        own = [sizes[block] for block in self._own]
        parts = zip(self._own, torch.split(counts, own), torch.split(held_out, own), strict=True)
        for block, part, out in parts:
            out.copy_(thin(part, self._share, torch_generator(self._seed, "thinning", step, block, device=part.device)))
        return Thinned(values_of(counts.sub_(held_out), scale / (1.0 - self._share)), held_out)

    def _scale_of(self, rows: IntArray, values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._scale[rows]).to(values.device, values.dtype)[:, None]
