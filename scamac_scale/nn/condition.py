"""What the decoder is told of the technical batch of a cell, so that the latent need not carry it.

The decoding layer that is fused to the latent (Eq. 7) is taken without it: a latent never sees the technical batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scamac_scale.nn.layers import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.config import ModelConfig

EMBEDDING_WIDTH = 8
"""Numbers that describe a technical batch, where it is embedded."""


def multi_hot(levels: Tensor, shares: Tensor) -> Tensor:
    """(..., B, L) float32 of (..., B, C) levels: 1 at the levels of a cell; a cell with levels beyond L, of a new batch or of none, has (L,) shares of all."""
    n_levels = len(shares)
    hot = torch.zeros(*levels.shape[:-1], n_levels + 1, device=levels.device)
    hot = hot.scatter_(-1, levels.clamp_max(n_levels), 1.0)[..., :n_levels]
    return torch.where((levels >= n_levels).any(dim=-1, keepdim=True), shares, hot)


class Condition(nn.Module):
    """Terms that technical batches add to the decoding layer and to the output; all start at 0.

    Parameters
    ----------
    counts
        Levels of each covariate, L in all.
    n_genes
        G.
    config
        Width H, and the form.

    Attributes
    ----------
    shares
        (L,), what stands for a cell of no batch: every level of a covariate alike.
    """

    shares: Tensor

    def __init__(self, counts: Sequence[int], n_genes: int, config: ModelConfig) -> None:
        super().__init__()
        n_levels = sum(counts)
        self.register_buffer("shares", torch.cat([torch.full((count,), 1.0 / count) for count in counts]))
        self.embedding = CONDITIONS[config.decoder_condition](n_levels)
        width = n_levels if self.embedding is None else EMBEDDING_WIDTH
        self.decoding = None if config.decoder_condition == "bias" else Linear(width, config.encoder_width, bias=False)
        self.output = Linear(width, n_genes, bias=False)
        for layer in (self.decoding, self.output):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(self, levels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Give what is added before the decoding layer's activation, (..., B, H) or None, and to the output's, (..., B, G)."""
        code = multi_hot(levels, self.shares)
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
