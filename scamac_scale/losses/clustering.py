"""Clustering loss, Eq. (12), on memberships and weights that are constant within a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.errors import ShapeError
from scamac_scale.ops.adaptive import center_distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _sum(z: Tensor, c: Tensor, u: Tensor, h: Tensor) -> Tensor:
    r = center_distance(z, c.detach())
    if not r.shape == u.shape == h.shape:
        raise ShapeError(
            f"u {tuple(u.shape)} and h {tuple(h.shape)} must have the shape (B, K) = {tuple(r.shape)} of z and c."
        )
    return ((h * u).detach() * r.square()).sum()


def _mean(z: Tensor, c: Tensor, u: Tensor, h: Tensor) -> Tensor:
    return _sum(z, c, u, h) / z.shape[0]


CLUSTERINGS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {"mean": _mean, "sum": _sum}
"""Weighted squared distance to the centers, (z (B, D), c (K, D), u (B, K), h (B, K)) -> scalar: ``mean`` over cells, or
``sum`` over cells, as printed. Only `z` gets a gradient, also at z = c; c, u and h are constants. O(B K D), at least
float32. Raises ShapeError if the shapes do not fit."""
