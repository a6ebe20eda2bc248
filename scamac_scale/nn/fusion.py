"""Bringing the three layers to one width, Eqs. (6) to (8), and putting them together to the latent Z.

The attention in between lives in `nn.synergy` and `nn.integration`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from scamac_scale.config.choices import Scale
from scamac_scale.nn.autoencoder import ACTIVATIONS
from scamac_scale.nn.layers import LayerNorm, Linear
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scamac_scale.config import ModelConfig

SCALES: tuple[Scale, ...] = get_args(Scale)
"""The layers whose features are fused, in the order in which they are stacked."""


class ScaleProjection(nn.Module):
    """Project encoding and decoding to the latent width, stack the three scales, normalise them.

    Parameters
    ----------
    config
        Widths H and D, activation, scales.

    Notes
    -----
    The "+" of Eq. (8) is called concatenation in the text: the scales are stacked, in the order of the layers. Normalised
    per cell over D, with one affine map for all scales and no running statistics. Leaves autocast.

    References
    ----------
    scAMAC Eqs. (6) to (8).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._scales = [name for name in SCALES if name in config.scales]
        self.w11 = Linear(config.encoder_width, config.latent_width)
        self.w22 = Linear(config.encoder_width, config.latent_width)
        self.norm = LayerNorm(config.latent_width)
        self._activation = ACTIVATIONS[config.latent_activation]
        self._slope = config.negative_slope

    def forward(self, encoding: Tensor, hidden: Tensor, decoding: Tensor) -> Tensor:
        """Project and stack.

        Parameters
        ----------
        encoding, decoding
            (B, H), Z_a and Z_c.
        hidden
            (B, D), Z_b.

        Returns
        -------
        Tensor
            (S, B, D): Z'_a, Z_b, Z'_c, those of them that the config names.
        """
        dtype = self.w11.weight.dtype
        with full_precision(hidden):
            features = {
                "encoding": lambda: self._activation(self.w11(encoding.to(dtype)), self._slope),
                "hidden": lambda: hidden.to(dtype),
                "decoding": lambda: self._activation(self.w22(decoding.to(dtype)), self._slope),
            }
            return torch.stack([features[name]() for name in self._scales], dim=-3)

    def normalise(self, projected: Tensor) -> Tensor:
        """Layer norm over D, per scale and cell.

        Parameters
        ----------
        projected
            (S, B, D), from `forward`.

        Returns
        -------
        Tensor
            (S, B, D), Y.
        """
        with full_precision(projected):
            normalised: Tensor = self.norm(projected)
            return normalised


class ResidualFusion(nn.Module):
    """Z = mean over scales of (Z'_s + alpha g_s E_s), alpha starting at 0.

    Parameters
    ----------
    latent_width
        D.

    Notes
    -----
    Our default: random attention does not undo a good start of the projections, and the latent keeps its length.
    """

    def __init__(self, latent_width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(latent_width))

    def forward(self, projected: Tensor, synergy: Tensor, gate: Tensor) -> Tensor:
        """Fuse.

        Parameters
        ----------
        projected
            (S, B, D), Z'.
        synergy
            (S, B, D), normalised E.
        gate
            (S, B), weights of the scales, 0 to 1.

        Returns
        -------
        Tensor
            (B, D), Z.
        """
        attended = (gate.unsqueeze(-1) * synergy).mean(dim=-3)
        return projected.mean(dim=-3) + self.alpha.unsqueeze(-2) * attended


class GatedSum(nn.Module):
    """Z = sum over scales of g_s E_s, as the paper describes it.

    Parameters
    ----------
    latent_width
        D; there is nothing to learn here.
    """

    def __init__(self, latent_width: int) -> None:
        super().__init__()

    def forward(self, projected: Tensor, synergy: Tensor, gate: Tensor) -> Tensor:
        """Fuse; see `ResidualFusion.forward`. `projected` enters through `synergy` only."""
        return (gate.unsqueeze(-1) * synergy).sum(dim=-3)


FUSIONS: dict[str, Callable[[int], nn.Module]] = {"residual": ResidualFusion, "gated_sum": GatedSum}
"""Module that fuses (projected, normalised synergy, gate) to the latent, by name; made with the latent width D."""
