"""Reconstruction loss, Eq. (5): the same squared error for input against output and for encoding against decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from scamac_scale.errors import ShapeError
from scamac_scale.ops.checks import upcast

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _mean(target: Tensor, output: Tensor) -> Tensor:
    if target.shape != output.shape:
        raise ShapeError(
            f"target {tuple(target.shape)} and output {tuple(output.shape)} must have the same shape (B, G)."
        )
    return F.mse_loss(upcast(output), upcast(target))


def _sum_genes(target: Tensor, output: Tensor) -> Tensor:
    return _mean(target, output) * target.shape[-1]


RECONSTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "sum_genes": _sum_genes}
"""Squared error (target, output), both (B, G), as a scalar: ``mean`` over entries, or ``sum_genes``: summed over genes and
averaged over cells, as printed. Differentiable in both arguments; at least float32. Raises ShapeError if the shapes differ."""
