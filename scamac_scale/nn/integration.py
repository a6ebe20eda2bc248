"""Multi-scale integration (MSI): how much each scale of each cell counts, Figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from scamac_scale.errors import ConfigError
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from torch import Tensor


class Integration(nn.Module):
    """Gate of every scale: global average over D, convolution over the scales, sigmoid.

    Parameters
    ----------
    kernel
        Width of the convolution, odd; zeros are padded, so that S stays.

    Raises
    ------
    ConfigError
        If `kernel` is even.

    Notes
    -----
    Pools E before its layer norm: the mean over D of a normalised vector is constant, and with the kernel of width 1
    that the published rule gives for three scales the gate would be 0.5 for all. Leaves autocast.

    References
    ----------
    scAMAC Figure 3.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"model.integration_kernel={kernel}; it must be odd, so that the scales stay aligned.")
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, synergy: Tensor) -> Tensor:
        """Weigh the scales.

        Parameters
        ----------
        synergy
            (S, B, D), E, before any norm.

        Returns
        -------
        Tensor
            (S, B), between 0 and 1.
        """
        with full_precision(synergy):
            kernel = self.conv.weight.flatten(-3)  # (width), or one for each block
            width = kernel.shape[-1]
            pooled = functional.pad(synergy.mean(dim=-1).mT, (width // 2, width // 2))  # (B, S + width - 1)
            # As a product: convolutions on a GPU drop to TensorFloat-32, and their gradients add up in any order.
            windows = pooled.unfold(-1, width, 1)
            weighed = (windows * kernel[..., None, None, :]).sum(dim=-1)
            if kernel.ndim == 1:
                return torch.sigmoid(weighed).mT
            # Block by block: the last values of a tensor are not rounded as those before them.
            return torch.stack([torch.sigmoid(block) for block in weighed]).mT
