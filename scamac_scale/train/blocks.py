"""A global batch in fixed blocks: forward and backward block by block, sums by one tree, so that the ranks do not show in them.

Each block of this rank has a copy of the network that shares the memory of its weights and has gradients of its own. What is not
linear in the batch (Eq. 11's product, attention among batch mates) is summed over all blocks of all ranks on the way, with gradient.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from scamac_scale.nn.synergy import Bank
from scamac_scale.reduce import block_gather, block_sum, sum_over_ranks, tree_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.nn.model import NetworkOutput, ScamacNetwork
    from scamac_scale.world import World

BLOCK_CELLS = 64
"""Cells that a block has at least, where a batch has so many: smaller ones cost more than they are worth."""


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
    most = 1 << min(3, max(1, batch_cells // BLOCK_CELLS).bit_length() - 1)
    return world.n_blocks(most) if sums == "blocks" else world.size


class Blocks:
    """The blocks of this rank.

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
        Numbers of the blocks of this rank.
    """

    def __init__(self, network: ScamacNetwork, n_blocks: int, world: World) -> None:
        self.network, self.n_blocks = network, n_blocks
        self.own = world.own(n_blocks)
        self._copies = [network] if len(self.own) == 1 else [_share_weights(network) for _ in self.own]
        self._weights = [list(each.parameters()) for each in self._copies]

    def forward(
        self, x: Sequence[torch.Tensor], sizes: Sequence[int], world: World
    ) -> tuple[list[NetworkOutput], torch.Tensor]:
        """All layers and latents of a batch.

        Parameters
        ----------
        x
            (b, G) noisy input of each own block.
        sizes
            Cells of all blocks of all ranks.
        world
            This rank, how many there are, and how long they wait for one another.

        Returns
        -------
        tuple of list of NetworkOutput, Tensor
            One for each own block, and the mean of q^T k over the batch, without gradient.
        """
        found = [network.layers(part) for network, part in zip(self._copies, x, strict=True)]
        products = [self.network.mean_product for _ in found]
        if self.network.has_synergy:
            parts = [
                network.synergy.channel_sum(layers.normalised)
                for network, layers in zip(self._copies, found, strict=True)
            ]
            products = [total / sum(sizes) for total in block_sum(parts, world)]
        mates: Sequence[Bank | None] = [None] * len(found)
        if self.network.mixes_batch and len(sizes) > 1:
            banks = [
                network.synergy.project_bank(layers.normalised)
                for network, layers in zip(self._copies, found, strict=True)
            ]
            keys = block_gather([bank.k for bank in banks], sizes, world, dim=1)
            mates = [
                Bank(*pair) for pair in zip(keys, block_gather([b.v for b in banks], sizes, world, dim=1), strict=True)
            ]
        outputs = []
        for network, layers, product, bank in zip(self._copies, found, products, mates, strict=True):
            followed = network.followed_product(product) if network.has_synergy else product
            outputs.append(layers.output_with(network.fuse(layers.projected, layers.normalised, followed, mates=bank)))
        return outputs, products[0].detach()

    def backward(self, losses: Sequence[torch.Tensor], reports: Sequence[torch.Tensor], world: World) -> torch.Tensor:
        """Leave the gradient of the whole batch in the weights of the network.

        Parameters
        ----------
        losses
            () of each own block; over all blocks of all ranks they add up to that of the batch.
        reports
            (n,) float32 of each own block; to be summed like the gradient.
        world
            As of `forward`.

        Returns
        -------
        Tensor
            (n,) sum of the reports over all blocks of all ranks.
        """
        for weights in self._weights:
            for weight in weights:
                weight.grad = None
        torch.stack(list(losses)).sum().backward()  # type: ignore[no-untyped-call]
        touched = [index for index, weight in enumerate(self._weights[0]) if weight.grad is not None]
        own = tree_sum(
            [
                _Vector([_gradient(weights[index]) for index in touched] + [report])
                for weights, report in zip(self._weights, reports, strict=True)
            ]
        )
        *gradients, report = own.parts
        if world.size > 1:
            flat = sum_over_ranks(torch.cat([part.flatten() for part in own.parts]), world)
            pieces = torch.split(flat, [part.numel() for part in own.parts])
            *gradients, report = [piece.view_as(part) for piece, part in zip(pieces, own.parts, strict=True)]
        own_weights = list(self.network.parameters())
        for weight in own_weights:
            weight.grad = None
        for index, gradient in zip(touched, gradients, strict=True):
            own_weights[index].grad = gradient
        return report


class _Vector:
    """Tensors that are added one by one, in place."""

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.parts = parts

    def __add__(self, other: _Vector) -> _Vector:
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.add_(theirs)
        return self


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None  # a term reaches the same weights in every block
    return weight.grad


def _share_weights(network: ScamacNetwork) -> ScamacNetwork:
    """Copy a network whose weights and buffers stay those of the original."""
    other = copy.deepcopy(network)
    for mine, theirs in zip(
        (*other.parameters(), *other.buffers()), (*network.parameters(), *network.buffers()), strict=True
    ):
        mine.data = theirs.data
    return other
