"""Latents of cells: frozen attention, no noise, no gradient, in blocks of one fixed size.

With a bank, a short block is padded, so that a cell meets the same matrix shapes whatever its batch: its latent does not
depend on which cells come with it. In-batch attention mixes the cells of a block, so there padding would change the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from scamac_scale.nn.model import NetworkOutput, ScamacNetwork

EMBED_CELLS = 1024


def pad_block(x: torch.Tensor) -> torch.Tensor:
    """(b, ...) to (`EMBED_CELLS`, ...), with zeros; what comes of them means nothing."""
    if len(x) == EMBED_CELLS:
        return x
    return torch.cat([x, x.new_zeros(EMBED_CELLS - len(x), x.shape[1])])


@torch.no_grad()
def block_input(network: ScamacNetwork, values: torch.Tensor, levels: torch.Tensor | None) -> torch.Tensor:
    """Input of up to `EMBED_CELLS` cells; as `ScamacNetwork.cell_input`, of a padded block where there is something to correct.

    Parameters
    ----------
    network
        With its correction, if any.
    values
        (b, G) log-normalised values, on the device of the network.
    levels
        (b, C) levels of their technical batches; None where there are none.

    Returns
    -------
    Tensor
        (b, G): that of a cell does not depend on which cells come with it.
    """
    x = network.scale_input(values)
    if network.correction is None or levels is None:
        return x
    found: torch.Tensor = network.correction(pad_block(x), pad_block(levels))
    return found[: len(x)]


@torch.no_grad()
def block_offset(
    network: ScamacNetwork, values: torch.Tensor, levels: torch.Tensor, others: torch.Tensor
) -> torch.Tensor:
    """(b, G) what technical batches `others`, (b, C) levels, add to the input of cells; of a padded block, arguments as of `block_input`."""
    assert network.correction is not None
    x = pad_block(network.scale_input(values))
    return network.correction.offset_in(x, pad_block(levels), pad_block(others))[: len(values)]


@torch.no_grad()
def forward_block(
    network: ScamacNetwork, x: torch.Tensor, spatial: torch.Tensor | None = None, levels: torch.Tensor | None = None
) -> NetworkOutput:
    """Frozen forward pass of up to `EMBED_CELLS` cells.

    Parameters
    ----------
    network
        With its bank and mean product set.
    x
        (b, G) scaled input on the device of the network, b <= `EMBED_CELLS`; from `block_input`, say.
    spatial
        (S, b, D), result of Eq. (10) for these cells, where it is known.
    levels
        (b, C), technical batches in which the output is, where the decoder is told of them.

    Returns
    -------
    NetworkOutput
        As of the padded block, unless cells attend to their block: rows past b mean nothing.
    """
    x, spatial = _padded(network, x, spatial)
    if levels is not None:
        levels = torch.cat([levels, levels.new_zeros(len(x) - len(levels), levels.shape[1])])
    found: NetworkOutput = network(x, frozen=True, spatial=spatial, levels=levels)
    return found


@torch.no_grad()
def embed_block(network: ScamacNetwork, x: torch.Tensor, spatial: torch.Tensor | None = None) -> torch.Tensor:
    """(b, D) float32 latents of up to `EMBED_CELLS` cells: those of `forward_block`, whose arguments these are, without the output layer."""
    found: torch.Tensor = network.embed(*_padded(network, x, spatial))
    return found[: len(x)].float()


def _padded(
    network: ScamacNetwork, x: torch.Tensor, spatial: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill a block up with zeros, unless its cells attend to one another."""
    if spatial is not None:
        n_padding = EMBED_CELLS - spatial.shape[1]
        spatial = torch.cat([spatial, spatial.new_zeros(len(spatial), n_padding, spatial.shape[2])], dim=1)
    return (pad_block(x) if spatial is not None or not network.mixes_batch else x), spatial


@torch.no_grad()
def embed_rows(network: ScamacNetwork, x: torch.Tensor) -> torch.Tensor:
    """Latents of a sample of cells that fits memory.

    Parameters
    ----------
    network
        With its bank and mean product set.
    x
        (n, G) scaled input, on any device.

    Returns
    -------
    Tensor
        (n, D) float32, on the device of the network.
    """
    device = network.gene_mean.device
    latents = []
    for start in range(0, len(x), EMBED_CELLS):
        piece = x[start : start + EMBED_CELLS].to(device)
        latents.append(embed_block(network, piece))
    return torch.cat(latents)
