"""Multi-scale synergy (MSS): shared queries and keys, spatial and channel attention, Eqs. (9) to (11).

The attention itself lives in `ops.attention`; here are the weights around it and the bank of keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

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
        self.w_q = nn.Linear(width, width)
        self.w_k = nn.Linear(width, width)
        self.w_vs = nn.Linear(width, width)
        self.w_vc = nn.Linear(width, width)
        self.w_p = nn.Linear(width, width)
        self.w_s = nn.Linear(width, width)
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

    def channel_sum(self, normalised: Tensor) -> Tensor:
        """Sum over cells of q^T k.

        Parameters
        ----------
        normalised
            (S, B, D), Y.

        Returns
        -------
        Tensor
            (S, D, D), to be added over all cells, in float64, and divided by their number.
        """
        with full_precision(normalised):
            return channel_product(self.w_q(normalised), self.w_k(normalised))

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
            (S, B, D), Y.
        mean_product
            (S, D, D), mean over cells of q^T k.
        bank
            Keys and values that every cell attends to beside its own; None takes those of `mates`.
        spatial
            (S, B, D), result of Eq. (10) where it is known already, such as that over the atlas.
        mates
            Keys and values of all cells of the batch; None takes those of `normalised`.

        Returns
        -------
        Tensor
            (S, B, D), E. With a bank or `spatial`, row b depends on row b alone.
        """
        with full_precision(normalised):
            if spatial is None:
                q = self.w_q(normalised)
                own = mates or self.project_bank(normalised)
                spatial = self._attend(q, *own) if bank is None else self._attend(q, *bank, *own)
            return spatial + channel_attention(self.w_vc(normalised), mean_product)
