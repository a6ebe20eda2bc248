"""Unit rows and the Gram matrices that stand for all pairs of cells, Eq. (15).

sum_ij (u_i.u_j - z_i.z_j)^2 = ||U^T U||^2 + ||Z^T Z||^2 - 2 ||U^T Z||^2 (Frobenius, unit rows), so N x N similarities shrink
to three small matrices that add up over any cut of the cells. The loss built on them lives in `losses.similarity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scamac_scale.ops.checks import full_precision, require_dims, require_equal, upcast

if TYPE_CHECKING:
    from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Scale each row to Euclidean length 1.

    Parameters
    ----------
    x
        (B, D), any values.

    Returns
    -------
    Tensor
        (B, D), rows of length 1, and 0 where the row is 0; float32 where the input is half precision.

    Raises
    ------
    ShapeError
        If `x` is not two-dimensional.

    Notes
    -----
    The gradient at a zero row is 0, where the direction has none.

    References
    ----------
    scAMAC Eq. (15), IM.
    """
    require_dims(x, 2, "x (B, D)")
    with full_precision(x):
        x = upcast(x)
        length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        # Dividing by infinity gives 0 with gradient 0; dividing by a floor would pass a huge gradient.
        return x / length.masked_fill(length == 0, torch.inf)


class Grams(NamedTuple):
    """Gram matrices of unit rows; they add up over any cut of the cells.

    Attributes
    ----------
    uu
        (C, C) float64, sum over cells of u u^T.
    zz
        (D, D) float64, sum over cells of z z^T.
    uz
        (C, D) float64, sum over cells of u z^T.
    n_cells
        () float64, the number of cells.
    """

    uu: Tensor
    zz: Tensor
    uz: Tensor
    n_cells: Tensor

    def __add__(self, other: Grams) -> Grams:  # type: ignore[override]  # sums, not concatenated tuples
        """Add, field by field: the sums over both sets of cells."""
        return Grams(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def gram_matrices(u_hat: Tensor, z_hat: Tensor) -> Grams:
    """Gram matrices of the given cells.

    Parameters
    ----------
    u_hat
        (B, C), unit rows of the memberships.
    z_hat
        (B, D), unit rows of the latent.

    Returns
    -------
    Grams
        float64, on the device of `z_hat`; differentiable.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B (C^2 + C D + D^2)). Products are taken in the precision of the inputs (at least float32) and widened afterwards, so
    that batches add up in float64: float32 input serves gradients. For a value to report near the minimum, pass float64:
    float32 products are off by 1.6 % at a million cells.

    References
    ----------
    scAMAC Eq. (15).
    """
    require_dims(u_hat, 2, "u_hat (B, C)")
    require_dims(z_hat, 2, "z_hat (B, D)")
    require_equal(u_hat.shape[0], z_hat.shape[0], "cells of u_hat and z_hat")
    with full_precision(z_hat):
        u_hat, z_hat = upcast(u_hat), upcast(z_hat)
        dtype = torch.promote_types(u_hat.dtype, z_hat.dtype)
        u_hat, z_hat = u_hat.to(dtype), z_hat.to(dtype)
        return Grams(
            uu=(u_hat.T @ u_hat).double(),
            zz=(z_hat.T @ z_hat).double(),
            uz=(u_hat.T @ z_hat).double(),
            n_cells=z_hat.new_tensor(z_hat.shape[0], dtype=torch.float64),
        )


def similarity_from_grams(grams: Grams, n_cells: int | None = None) -> Tensor:
    """Mean over all pairs of cells of the squared difference of their two similarities.

    Parameters
    ----------
    grams
        Of all cells that are paired.
    n_cells
        Number of cells N; None takes the count kept in `grams`.

    Returns
    -------
    Tensor
        () float64, between 0 and 4.

    Notes
    -----
    Clamped at 0, where rounding falls below; the gradient passes the clamp unchanged. The paper prints a sum over pairs
    divided by N, which grows with N; see `losses.similarity.SIMILARITY_SCALINGS`.

    References
    ----------
    scAMAC Eq. (15), in Gram form, divided by N^2.
    """
    total = grams.uu.square().sum() + grams.zz.square().sum() - 2.0 * grams.uz.square().sum()
    count = grams.n_cells if n_cells is None else n_cells
    value = total / count**2
    return value + (value.detach().clamp(min=0.0) - value.detach())
