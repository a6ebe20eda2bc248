"""Reconstruction loss, Eq. (5): squared error of input against output and of encoding against decoding; or a count likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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


def _poisson(target: Tensor, output: Tensor, share: Tensor | None = None) -> Tensor:
    if target.shape != output.shape:
        raise ShapeError(
            f"counts {tuple(target.shape)} and output {tuple(output.shape)} must have the same shape (B, G)."
        )
    y, logits = upcast(target), upcast(output)
    total = y.sum(dim=-1)
    best = torch.xlogy(y, y).sum(dim=-1) - torch.xlogy(total, total)
    of_cells = 2.0 * (best - (y * logits.log_softmax(dim=-1)).sum(dim=-1)) / y.shape[-1]
    return of_cells.mean() if share is None else (of_cells * share).sum(dim=-1)


RECONSTRUCTIONS: dict[str, Callable[..., Tensor]] = {"mean": _mean, "sum_genes": _sum_genes, "poisson": _poisson}
"""Loss of (target, output), both (..., B, G). ``mean``: squared error, mean over entries. ``sum_genes``: squared error summed over genes and
averaged over cells, as printed. ``poisson``: mean over entries of the unit deviance 2 (y log(y / m) - y + m) of counts y, where the cell's
expected counts are m = total(y) softmax(output); at least 0, and 0 where y = m. With a third argument, (..., B), each cell has that share in the mean, and there is one value, (...), for each
block of cells; otherwise all cells count alike. Squared errors are differentiable in both, ``poisson`` in the output; at least float32. Raises ShapeError if their shapes
differ."""

LAYER_LOSSES = {"mean": "mean", "sum_genes": "sum_genes", "poisson": "mean"}
"""Form of the second term of Eq. (5), of encoding against decoding, beside each form of the first: layers are no counts."""
