"""Clustering loss, Eq. (12), on memberships and weights that are constant within a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.errors import ShapeError
from scamac_scale.ops.adaptive import center_distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _of_cells(z: Tensor, c: Tensor, u: Tensor, h: Tensor) -> Tensor:
    r = center_distance(z, c.detach())
    if not r.shape == u.shape == h.shape:
        raise ShapeError(
            f"u {tuple(u.shape)} and h {tuple(h.shape)} must have the shape (B, K) = {tuple(r.shape)} of z and c."
        )
    return ((h * u).detach() * r.square()).sum(dim=1)


def _sum(z: Tensor, c: Tensor, u: Tensor, h: Tensor, share: Tensor | None = None) -> Tensor:
    found = _of_cells(z, c, u, h)
    return found.sum() if share is None else (found.view_as(share) * share.sign()).sum(dim=-1)


def _mean(z: Tensor, c: Tensor, u: Tensor, h: Tensor, share: Tensor | None = None) -> Tensor:
    found = _of_cells(z, c, u, h)
    return found.mean() if share is None else (found.view_as(share) * share).sum(dim=-1)


CLUSTERINGS: dict[str, Callable[..., Tensor]] = {"mean": _mean, "sum": _sum}
"""Weighted squared distance to the centers, (z (B, D), c (K, D), u (B, K), h (B, K)) -> scalar: ``mean`` over cells, or
``sum`` over cells, as printed. With a fifth argument, (P, B / P), each cell has that share in the mean, cells without a share do
not count, and there is one value for each of P blocks of cells. Only `z` gets a gradient, also at z = c; c, u and h are constants. O(B K D), at least
float32. Raises ShapeError if the shapes do not fit."""
