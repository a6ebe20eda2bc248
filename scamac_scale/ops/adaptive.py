"""Adaptive distance and its robust weight: Eq. (14) above the exponential, and H of Eq. (12).

Memberships and centers, which use them, live in `fuzzy`. With r = ||z - c||:

- distance (1 + epsilon) r^2 / (r + epsilon),
- weight H = (1 + epsilon) (r + 2 epsilon) / (r + epsilon)^2.

The paper prints epsilon inside the root. We put it outside: only then do the limits printed under Eq. (14) hold, and only
then is H = f'(r) / r of the distance f, which makes Eq. (13) the reweighting step that lowers it. The published code drops
the square in H's denominator, which weighs (almost) nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scamac_scale.ops.checks import full_precision, require_dims, require_equal, upcast

if TYPE_CHECKING:
    from torch import Tensor


def center_distance(z: Tensor, c: Tensor) -> Tensor:
    """Euclidean distance of every cell to every center.

    Parameters
    ----------
    z
        (B, D), latent.
    c
        (K, D), centers.

    Returns
    -------
    Tensor
        (B, K), latent units, non-negative; float32 where the input is half precision.

    Raises
    ------
    ShapeError
        If the inputs are not two-dimensional or differ in D.

    Notes
    -----
    O(B K D) time, O(B K) memory. Sums squared differences rather than expanding the square, so that small distances
    keep their digits. The gradient at z = c is 0.
    """
    require_dims(z, 2, "z (B, D)")
    require_dims(c, 2, "c (K, D)")
    require_equal(z.shape[1], c.shape[1], "latent width D of z and c")
    with full_precision(z):
        z, c = upcast(z), upcast(c)
        dtype = torch.promote_types(z.dtype, c.dtype)
        return torch.cdist(z.to(dtype), c.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")


def adaptive_distance(r: Tensor, epsilon: float) -> Tensor:
    """Distance that is quadratic near a center and linear far from it.

    Parameters
    ----------
    r
        Any shape, (B, K) here; Euclidean distance, non-negative, from `center_distance`.
    epsilon
        Where the two regimes meet, latent units, positive.

    Returns
    -------
    Tensor
        Shape of `r`: (1 + epsilon) r^2 / (r + epsilon), non-negative.

    References
    ----------
    scAMAC Eq. (14), epsilon outside the root.
    """
    return (1.0 + epsilon) * r * (r / (r + epsilon))


def robust_weight(r: Tensor, epsilon: float) -> Tensor:
    """Weight H of a cell for a center: f'(r) / r of the adaptive distance f.

    Parameters
    ----------
    r
        Any shape, (B, K) here; Euclidean distance, non-negative.
    epsilon
        As in `adaptive_distance`.

    Returns
    -------
    Tensor
        Shape of `r`: (1 + epsilon) (r + 2 epsilon) / (r + epsilon)^2; from 2 (1 + epsilon) / epsilon at r = 0
        downwards.

    Notes
    -----
    Constant within one reweighting step: callers detach it.

    References
    ----------
    scAMAC Eq. (12), H, epsilon outside the root and the denominator squared.
    """
    shifted = r + epsilon
    return (1.0 + epsilon) * (r + 2.0 * epsilon) / (shifted * shifted)
