"""Denoised expression: the network's output, back in log-normalised units."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from scamac_scale.nn.model import ScamacNetwork


def denoise(network: ScamacNetwork, output: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
    """Undo the scaling of the input.

    Parameters
    ----------
    network
        Knows the gene means and the scale.
    output
        (B, G) reconstruction X', scaled units.
    values
        (B, G) log-normalised input, for the length of each cell.
    offset
        (B, G) what the technical batch adds to each cell, scaled units; None leaves it out.

    Returns
    -------
    Tensor
        (B, G) log-normalised expression, clamped at 0.
    """
    output = output if offset is None else output + offset
    return network.unscale(output, values.norm(dim=1, keepdim=True)).clamp_min(0.0)


def denoise_counts(output: Tensor, values: Tensor, is_present: Tensor | None = None) -> Tensor:
    """Turn the output of a count likelihood into log-normalised expression.

    Parameters
    ----------
    output
        (B, G) logits of each cell's profile.
    values
        (B, G) log-normalised input, for the sum of each cell over these genes.
    is_present
        (G,) genes that the input has, over which the sum is; None for all.

    Returns
    -------
    Tensor
        (B, G) ``log1p(total * softmax(output))``, where the total is that of the cell's normalised counts: over the genes that are
        present, the expected counts add up to it.
    """
    profile = output.softmax(dim=1)
    if is_present is not None:
        profile = profile / profile[:, is_present].sum(dim=1, keepdim=True)
    return (values.expm1().sum(dim=1, keepdim=True) * profile).log1p()
