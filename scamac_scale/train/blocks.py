"""A global batch in fixed blocks: forward and backward block by block, sums by one tree, so that the ranks do not show in them.

The blocks of this rank go through the network side by side, by weights with a block axis that are views of those of the network, so
that each block has gradients of its own. What is not linear in the batch (Eq. 11's product, attention among batch mates) is summed over all blocks of all ranks on the way, with gradient.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from scamac_scale.nn.synergy import Bank
from scamac_scale.ranks.collectives import block_gather, block_sum, sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.nn.model import Layers, ScamacNetwork
    from scamac_scale.ranks.world import World

LEAST_CELLS = 64
"""Cells that a block has at least, where a batch has so many: smaller ones cost more than they are worth."""
ALIGNED_CELLS = 16
"""Blocks are filled up to a multiple: so many float32 rows are a multiple of 64 bytes, and every block is as aligned as the first one.
Libraries round a product otherwise where its memory is not aligned."""


def count_blocks(batch_cells: int, world: World, sums: str) -> int:
    """Tell into how many blocks a global batch is cut.

    Parameters
    ----------
    batch_cells
        Of a global batch.
    world
        This rank, and how many there are.
    sums
        ``train.sums``: blocks or ranks.

    Returns
    -------
    int
        1, 2, 4 or 8, whatever the number of ranks as long as they divide it; else, and for ``ranks``, one block a rank.
    """
    most = 1 << min(3, max(1, batch_cells // LEAST_CELLS).bit_length() - 1)
    return world.n_blocks(most) if sums == "blocks" else world.size


class Blocks:
    """The blocks of this rank, which go through the network together.

    Parameters
    ----------
    network
        On its device.
    n_blocks
        Of all ranks, from `count_blocks`.
    world
        This rank, and how many there are.

    Attributes
    ----------
    own
        Numbers of the P blocks of this rank.
    """

    def __init__(self, network: ScamacNetwork, n_blocks: int, world: World) -> None:
        self.network, self.n_blocks = network, n_blocks
        self.own = world.own(n_blocks)
        self._stacked = _stack_weights(network, len(self.own))
        self._weights = list(self._stacked.parameters())

    def cut(self, cells: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Cut the cells of this rank into its blocks.

        Parameters
        ----------
        cells
            (B, ...), block after block.
        sizes
            Cells of all blocks of all ranks.

        Returns
        -------
        Tensor
            (P, b, ...), where b is the largest of the sizes, or the next multiple of `ALIGNED_CELLS`; blocks are filled up with zeros.
            A view where there is nothing to fill up.
        """
        own, most = [sizes[block] for block in self.own], -(-max(sizes) // ALIGNED_CELLS) * ALIGNED_CELLS
        if set(own) == {most}:
            return cells.view(len(own), most, *cells.shape[1:])
        found = cells.new_zeros(len(own), most, *cells.shape[1:])
        for place, part in zip(found, torch.split(cells, own), strict=True):
            place[: len(part)] = part
        return found

    def forward(
        self,
        x: torch.Tensor,
        counted: torch.Tensor,
        sizes: Sequence[int],
        world: World,
        *,
        levels: torch.Tensor | None = None,
        has_latent: bool = True,
    ) -> tuple[Layers, torch.Tensor | None, torch.Tensor]:
        """All layers and latents of a batch.

        Parameters
        ----------
        x
            (P, b, G) noisy input of the own blocks, from `cut`.
        counted
            (P, b), 1 for a cell and 0 for what fills up its block.
        sizes
            Cells of all blocks of all ranks.
        world
            This rank, how many there are, and how long they wait for one another.
        levels
            (P, b, C) levels of the technical batches of the cells, where there are any.
        has_latent
            Whether any term looks at the latent; otherwise the attention is left out.

        Returns
        -------
        tuple of Layers, Tensor or None, Tensor
            Layers and latents (P, b, D) of the own blocks, and the mean of q^T k over the batch, without gradient.
        """
        network, stacked = self.network, self._stacked
        layers, product = stacked.layers(x, levels), network.mean_product
        mean = product
        if network.has_synergy:
            is_full = set(sizes) == {x.shape[1]}
            sums = stacked.synergy.channel_sum(layers.normalised, None if is_full else counted)
            means = torch.stack(block_sum(sums.unbind(), world)) / sum(sizes)
            product, mean = network.followed_product(means), means[0].detach()
        if not has_latent:
            return layers, None, mean
        mates = None
        if network.mixes_batch:
            bank = stacked.synergy.project_bank(layers.normalised)
            own = [sizes[block] for block in self.own]
            parts = ([part[:, :size] for part, size in zip(every, own, strict=True)] for every in bank)
            mates = Bank(*(torch.stack(block_gather(part, sizes, world, dim=1)) for part in parts))
        latent = stacked.fuse(layers.projected, layers.normalised, product, mates=mates)
        return layers, latent, mean

    def backward(self, losses: torch.Tensor, reports: torch.Tensor, world: World) -> torch.Tensor:
        """Leave the gradient of the whole batch in the weights of the network.

        Parameters
        ----------
        losses
            (P,); over all blocks of all ranks they add up to that of the batch.
        reports
            (P, n) float32; to be summed like the gradient.
        world
            As of `forward`.

        Returns
        -------
        Tensor
            (n,) sum of the reports over all blocks of all ranks.
        """
        gradients = torch.autograd.grad(losses.sum(), self._weights, allow_unused=True)
        touched = [index for index, gradient in enumerate(gradients) if gradient is not None]
        sums = [_tree_sum(gradients[index]) for index in touched] + [_tree_sum(reports)]
        if world.size > 1:
            flat = sum_over_ranks(torch.cat([part.flatten() for part in sums]), world)
            pieces = torch.split(flat, [part.numel() for part in sums])
            sums = [piece.view_as(part) for piece, part in zip(pieces, sums, strict=True)]
        weights = list(self.network.parameters())
        for weight in weights:
            weight.grad = None
        for index, gradient in zip(touched, sums, strict=False):
            weights[index].grad = gradient.contiguous()  # a fused optimizer takes any other for one that is
        return sums[-1]


def _tree_sum(stacked: torch.Tensor) -> torch.Tensor:
    """`tree_sum` of (P, ...) over the blocks; P is a power of two."""
    while len(stacked) > 1:
        stacked = stacked[0::2] + stacked[1::2]
    return stacked[0]


def _stack_weights(network: ScamacNetwork, n_blocks: int) -> ScamacNetwork:
    """Copy a network whose buffers are those of the original, and whose weights are (P, ...) views of its weights."""
    other = copy.deepcopy(network)
    for mine, theirs in zip(other.buffers(), network.buffers(), strict=True):
        mine.data = theirs.data
    for name, weight in network.named_parameters():
        *path, last = name.split(".")
        owner = other.get_submodule(".".join(path))
        view = weight.detach().expand(n_blocks, *weight.shape)
        setattr(owner, last, torch.nn.Parameter(view))
    return other
