"""Reconstruction loss, Eq. (5): the same squared error for input against output and for encoding against decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from scamac_scale.errors import ShapeError
from scamac_scale.ops.checks import upcast

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _mean(target: Tensor, output: Tensor, share: Tensor | None = None) -> Tensor:
    if target.shape != output.shape:
        raise ShapeError(
            f"target {tuple(target.shape)} and output {tuple(output.shape)} must have the same shape (B, G)."
        )
    if share is None:
        return F.mse_loss(upcast(output), upcast(target))
    return (F.mse_loss(upcast(output), upcast(target), reduction="none").mean(dim=-1) * share).sum(dim=-1)


def _sum_genes(target: Tensor, output: Tensor, share: Tensor | None = None) -> Tensor:
    return _mean(target, output, share) * target.shape[-1]


RECONSTRUCTIONS: dict[str, Callable[..., Tensor]] = {"mean": _mean, "sum_genes": _sum_genes}
"""Squared error (target, output), both (..., B, G): ``mean`` over entries, or ``sum_genes``: summed over genes and averaged over
cells, as printed. With a third argument, (..., B), each cell has that share in the mean, and there is one value, (...), for each
block of cells; otherwise all cells count alike. Differentiable in the first two; at least float32. Raises ShapeError if their shapes
differ."""
