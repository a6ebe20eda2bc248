"""Linear map and layer norm whose weights may have a block axis, so that each block of a batch has a gradient of its own.

With weights (out, in) they are torch's. With weights (P, out, in) the input is (P, ..., in): block p meets the p-th weights, in one
batched product. `train.blocks` makes such weights as views of the same memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """Affine map of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), with a block axis in front where the weights have one."""
        if self.weight.ndim == 2:
            return F.linear(x, self.weight, self.bias)
        flat = x.flatten(1, -2)
        if self.bias is None:
            flat = torch.bmm(flat, self.weight.mT)
        else:
            flat = torch.baddbmm(self.bias.unsqueeze(1), flat, self.weight.mT)
        return flat.view(*x.shape[:-1], -1)


class LayerNorm(nn.LayerNorm):
    """Layer norm of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D), with a block axis in front where the weights have one."""
        if self.weight.ndim == 1:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        shape = len(x), *(1,) * (x.ndim - 2), -1
        return torch.addcmul(
            self.bias.view(shape), F.layer_norm(x, self.normalized_shape, eps=self.eps), self.weight.view(shape)
        )
