"""What the decoder is told of the technical batch of a cell, so that the latent need not carry it.

The decoding layer that is fused to the latent (Eq. 7) is taken without it: a latent never sees the technical batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scamac_scale.nn.layers import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.config import ModelConfig

EMBEDDING_WIDTH = 8
"""Numbers that describe a technical batch, where it is embedded."""


def multi_hot(levels: Tensor, n_levels: int) -> Tensor:
    """(..., B, L) float32 of (..., B, C) levels: 1 at the levels of a cell; levels beyond L, of new batches, have none."""
    hot = torch.zeros(*levels.shape[:-1], n_levels + 1, device=levels.device)
    return hot.scatter_(-1, levels.clamp_max(n_levels), 1.0)[..., :n_levels]


class Condition(nn.Module):
    """Terms that technical batches add to the decoding layer and to the output; all start at 0.

    Parameters
    ----------
    n_levels
        L.
    n_genes
        G.
    config
        Width H, and the form.
    """

    def __init__(self, n_levels: int, n_genes: int, config: ModelConfig) -> None:
        super().__init__()
        self.n_levels = n_levels
        self.embedding = CONDITIONS[config.decoder_condition](n_levels)
        width = n_levels if self.embedding is None else EMBEDDING_WIDTH
        self.decoding = None if config.decoder_condition == "bias" else Linear(width, config.encoder_width, bias=False)
        self.output = Linear(width, n_genes, bias=False)
        for layer in (self.decoding, self.output):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(self, levels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Give what is added before the decoding layer's activation, (..., B, H) or None, and to the output's, (..., B, G)."""
        code = multi_hot(levels, self.n_levels)
        if self.embedding is not None:
            code = self.embedding(code)
        return None if self.decoding is None else self.decoding(code), self.output(code)


def _no_embedding(n_levels: int) -> Linear | None:
    return None


def _embedding(n_levels: int) -> Linear | None:
    return Linear(n_levels, EMBEDDING_WIDTH, bias=False)


CONDITIONS: dict[str, Callable[[int], Linear | None]] = {
    "none": _no_embedding,
    "bias": _no_embedding,
    "one_hot": _no_embedding,
    "embedding": _embedding,
}
"""By name of ``model.decoder_condition``: makes what embeds (..., L) codes, or nothing where they are taken as they are. ``bias`` reaches the
output only, ``none`` makes no condition at all."""
