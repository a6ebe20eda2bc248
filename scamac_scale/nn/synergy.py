"""Multi-scale synergy (MSS): shared queries and keys, spatial and channel attention, Eqs. (9) to (11).

The attention itself lives in `ops.attention`; here are the weights around it and the bank of keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from scamac_scale.nn.layers import Linear
from scamac_scale.ops.attention import SPATIAL_FORMS, channel_attention, channel_product
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from torch import Tensor

    from scamac_scale.config import ModelConfig


class Bank(NamedTuple):
    """Projected keys and values of the cells that stand in for all cells.

    Attributes
    ----------
    k, v
        (S, M, D).
    """

    k: Tensor
    v: Tensor


class Synergy(nn.Module):
    """E = SA + CA over the normalised scales.

    Parameters
    ----------
    config
        Width D, spatial form.

    Notes
    -----
    All maps are D x D, act on each cell alone and are shared by the scales: weights that act on cells, as "projection" in
    Eq. (10) might be read, would fix the number of cells. Queries and keys are shared by both attentions; channel
    attention takes the keys before their spatial projection. Leaves autocast: the work is small.

    References
    ----------
    scAMAC Eqs. (9) to (11), Figure 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.latent_width
        self.w_q = Linear(width, width)
        self.w_k = Linear(width, width)
        self.w_vs = Linear(width, width)
        self.w_vc = Linear(width, width)
        self.w_p = Linear(width, width)
        self.w_s = Linear(width, width)
        self._attend = SPATIAL_FORMS[config.spatial_form]

    def project_bank(self, normalised: Tensor) -> Bank:
        """Keys and values for spatial attention.

        Parameters
        ----------
        normalised
            (S, M, D), Y of the cells of a bank (or batch).

        Returns
        -------
        Bank
            K_proj and V'_spatial of Eq. (10).
        """
        with full_precision(normalised):
            return Bank(self.w_p(self.w_k(normalised)), self.w_s(self.w_vs(normalised)))

    def queries(self, normalised: Tensor) -> Tensor:
        """(S, B, D), Q of Eqs. (10) and (11), from Y of the same shape."""
        with full_precision(normalised):
            q: Tensor = self.w_q(normalised)
            return q

    def channel_sum(self, normalised: Tensor, counted: Tensor | None = None) -> Tensor:
        """Sum over cells of q^T k.

        Parameters
        ----------
        normalised
            (S, B, D), Y; with a block axis in front, each block is summed by itself.
        counted
            (P, B), 1 for a cell and 0 for one that fills up its block; None counts all.

        Returns
        -------
        Tensor
            (S, D, D), to be added over all cells, in float64, and divided by their number.
        """
        with full_precision(normalised):
            q, k = self.w_q(normalised), self.w_k(normalised)
            if counted is not None:
                q = q * counted[:, None, :, None]
            product = channel_product(_scales_first(q), _scales_first(k))
            return product.view(*normalised.shape[:-2], *product.shape[1:])

    def forward(
        self,
        normalised: Tensor,
        mean_product: Tensor,
        bank: Bank | None = None,
        spatial: Tensor | None = None,
        mates: Bank | None = None,
    ) -> Tensor:
        """Spatial plus channel attention.

        Parameters
        ----------
        normalised
            (S, B, D), Y; or (P, S, B, D), with a block axis in front.
        mean_product
            (S, D, D), mean over cells of q^T k, or one for each block.
        bank
            Keys and values that every cell attends to beside its own; None takes those of `mates`.
        spatial
            (S, B, D), result of Eq. (10) where it is known already, such as that over the atlas.
        mates
            Keys and values of all cells of the batch; None takes those of `normalised`.

        Returns
        -------
        Tensor
            Of the shape of `normalised`, E. With a bank or `spatial`, row b depends on row b alone.
        """
        with full_precision(normalised):
            if spatial is None:
                q = _scales_first(self.w_q(normalised))
                own = [_scales_first(part) for part in mates or self.project_bank(normalised)]
                others = [] if bank is None else [_repeated(part, normalised) for part in bank]
                spatial = self._attend(q, *others, *own)
            channel = channel_attention(_scales_first(self.w_vc(normalised)), _repeated(mean_product, normalised))
            return (spatial + channel).view(normalised.shape)


def _scales_first(tensor: Tensor) -> Tensor:
    """Put blocks and scales into one axis: to the attention, the scales of another block are further scales."""
    return tensor.flatten(0, -3)


def _repeated(tensor: Tensor, like: Tensor) -> Tensor:
    """Give what is of each scale, (S, ...), to all blocks of `like`, (P, S, B, D), in that one axis."""
    return _scales_first(tensor if like.ndim == tensor.ndim else tensor.expand(len(like), *tensor.shape))
