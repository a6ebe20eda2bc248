"""Denoising multi-scale autoencoder: encoding, hidden, decoding and output layers, Eqs. (1) to (4).

The noise of its input lives in `ops.corruption`; what is made of the three layers in `nn.fusion`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.nn import functional as F

from scamac_scale.nn.condition import Condition
from scamac_scale.nn.layers import Linear
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from scamac_scale.config import ModelConfig


def _linear(x: Tensor, negative_slope: float) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"leaky_relu": F.leaky_relu, "linear": _linear}
"""Activation phi by name, called with a tensor and the slope below zero."""


class AutoencoderOutput(NamedTuple):
    """The four layers.

    Attributes
    ----------
    encoding
        (B, H), Z_a.
    hidden
        (B, D), Z_b.
    decoding
        (B, H), Z_c.
    output
        (B, G), X', in the units of the input.
    """

    encoding: Tensor
    hidden: Tensor
    decoding: Tensor
    output: Tensor


class MultiScaleAutoencoder(nn.Module):
    """Autoencoder G-H-D-H-G whose three inner layers are all used.

    Parameters
    ----------
    n_genes
        G.
    config
        Widths H and D, activations.
    level_counts
        Levels of each covariate of the technical batches that the decoder may be told of.

    Notes
    -----
    The paper prints LeakyReLU for all four layers; our default has none on the hidden and output layers (config). Random
    start as torch makes it, from torch's global generator. Under autocast the G x H and D x H products run in reduced
    precision, the narrow one to the latent does not.

    References
    ----------
    scAMAC Eqs. (1) to (4).
    """

    def __init__(self, n_genes: int, config: ModelConfig, level_counts: Sequence[int] = ()) -> None:
        super().__init__()
        self.w1 = Linear(n_genes, config.encoder_width)
        self.w2 = Linear(config.encoder_width, config.latent_width)
        self.w3 = Linear(config.latent_width, config.encoder_width)
        self.w4 = Linear(config.encoder_width, n_genes)
        self._encoder = ACTIVATIONS[config.encoder_activation]
        self._latent = ACTIVATIONS[config.latent_activation]
        self._output = ACTIVATIONS[config.output_activation]
        self._slope = config.negative_slope
        is_told = len(level_counts) > 0 and config.decoder_condition != "none"
        self.condition = Condition(level_counts, n_genes, config) if is_told else None

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the three inner layers and leave out the output.

        Parameters
        ----------
        x
            (B, G), input, noisy in training.

        Returns
        -------
        tuple of Tensor
            Z_a (B, H), Z_b (B, D), Z_c (B, H).
        """
        encoding = self._encoder(self.w1(x), self._slope)
        with full_precision(x):
            hidden = self._latent(self.w2(encoding.to(self.w2.weight.dtype)), self._slope)
        decoding = self._encoder(self.w3(hidden), self._slope)
        return encoding, hidden, decoding

    def forward(self, x: Tensor, levels: Tensor | None = None) -> AutoencoderOutput:
        """Encode and decode.

        Parameters
        ----------
        x
            (B, G), input, noisy in training.
        levels
            (B, C), technical batches in which the output is; None where the decoder is not told, and for no batch at all.

        Returns
        -------
        AutoencoderOutput
            Z_a, Z_b, Z_c and X'.
        """
        encoding, hidden, decoding = self.scales(x)
        if self.condition is None or levels is None:
            return AutoencoderOutput(encoding, hidden, decoding, self._output(self.w4(decoding), self._slope))
        before, added = self.condition(levels)
        told = decoding if before is None else self._encoder(self.w3(hidden) + before, self._slope)
        output = self._output(self.w4(told) + added, self._slope)
        return AutoencoderOutput(encoding, hidden, decoding, output)
