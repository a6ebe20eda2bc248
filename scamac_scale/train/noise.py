"""The noise of each gradient step, keyed by seed, step and block of the global batch: never by rank, thread or clock.

The formula is `ops.corruption`'s. On a CPU the feed has it drawn ahead, in its reader threads; a GPU draws it itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scamac_scale.ops.corruption import uniform_noise
from scamac_scale.randomness import torch_generator

if TYPE_CHECKING:
    from scamac_scale.config import InputConfig
    from scamac_scale.loader.plan import EpochPlan
    from scamac_scale.ranks.world import World


class Noise:
    """Draws the noise of the cells of this rank.

    Parameters
    ----------
    config
        Bounds.
    seed
        Of the run.
    plan
        Tells how many cells each block of a batch has.
    n_blocks
        Of a global batch, from `blocks.count_blocks`; the ranks divide it.
    world
        This rank, and how many there are.
    """

    def __init__(self, config: InputConfig, seed: int, plan: EpochPlan, n_blocks: int, world: World) -> None:
        self._config, self._seed, self._plan = config, seed, plan
        self._n_blocks, self._own = n_blocks, world.own(n_blocks)

    def fill(self, step: int, out: torch.Tensor) -> torch.Tensor:
        """Write the noise of a step.

        Parameters
        ----------
        step
            Gradient step.
        out
            (B, G) float32, for the cells of this rank, block after block; each kind of device has its own stream.

        Returns
        -------
        Tensor
            `out`.
        """
        sizes = self._plan.block_sizes(step, self._n_blocks)
        for block, part in zip(self._own, torch.split(out, [sizes[block] for block in self._own]), strict=True):
            generator = torch_generator(self._seed, "noise", step, block, device=out.device)
            uniform_noise(part, self._config.noise_low, self._config.noise_high, generator)
        return out
