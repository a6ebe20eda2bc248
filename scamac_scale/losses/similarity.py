"""Self-supervised similarity loss, Eq. (15): similarity of cells in the latent against similarity of their memberships.

The value is a mean over pairs of cells; `SIMILARITY_SCALINGS` turns it into the printed one. Memberships U are constants
here: a membership of K clusters (as printed) or the memberships of many clusterings side by side, (B, C).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scamac_scale.errors import ShapeError
from scamac_scale.ops.checks import full_precision, require_dims, require_equal
from scamac_scale.ops.similarity import Grams, gram_matrices, similarity_from_grams, unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class SimilarityLoss(Protocol):
    """What an entry of `SIMILARITY_LOSSES` is called with."""

    def __call__(self, u: Tensor, z: Tensor, grams: Grams | None = None) -> Tensor:
        """Return the loss; see `direct_similarity`."""


def _unit_pair(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    require_dims(u, 2, "u (B, C)")
    require_dims(z, 2, "z (B, D)")
    require_equal(u.shape[0], z.shape[0], "cells of u and z")
    z_hat = unit_rows(z)
    return unit_rows(u.detach()).to(z_hat.dtype), z_hat


def _batch_against_atlas(u: Tensor, z: Tensor, grams: Grams) -> Tensor:
    """Mean over pairs of a batch cell and an atlas cell.

    Each such pair stands for two ordered pairs of the atlas, and the derivative reaches the batch cell of it only: the
    gradient is doubled, which makes it 4 (G_zz z_i - G_zu u_i) / (N B) for unit row z_i.
    """
    u_hat, z_hat = _unit_pair(u, z)
    if grams.uz.shape != (u.shape[1], z.shape[1]):
        raise ShapeError(
            f"grams are for (C, D) = {tuple(grams.uz.shape)}, u and z have {(u.shape[1], z.shape[1])}: make the grams "
            "from the same memberships and latent."
        )
    with full_precision(z_hat):
        # Divided in float64, so that the count of a large atlas does not eat digits of float32.
        uu, zz, uz = ((gram.detach() / grams.n_cells).to(z_hat.dtype) for gram in (grams.uu, grams.zz, grams.uz))
        constant = ((u_hat @ uu) * u_hat).sum()
        moving = ((z_hat @ zz - 2.0 * (u_hat @ uz)) * z_hat).sum()
        value = (constant + moving.detach()).clamp(min=0.0) / z.shape[0]
        return value + (moving - moving.detach()) * (2.0 / z.shape[0])


def direct_similarity(u: Tensor, z: Tensor, grams: Grams | None = None) -> Tensor:
    """Similarity loss from the (B, B) matrices of similarities.

    Parameters
    ----------
    u
        (B, C), memberships, non-negative; constant.
    z
        (B, D), latent.
    grams
        Gram matrices of the whole atlas, as `u` and `z` were when they were summed; then the value and the gradient are
        this batch's estimate of the atlas loss: over the batches of one pass, the values average to the loss over all
        N^2 pairs, and the gradients to its gradient.

    Returns
    -------
    Tensor
        (), mean over pairs, between 0 and 4; at least float32.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B^2 (C + D)) time, O(B^2) memory without `grams`; O(B (C + D)^2) with them. Gradient in `z` only, 0 at zero rows.

    References
    ----------
    scAMAC Eq. (15), divided by the number of pairs.
    """
    if grams is not None:
        return _batch_against_atlas(u, z, grams)
    u_hat, z_hat = _unit_pair(u, z)
    with full_precision(z_hat):
        return (z_hat @ z_hat.T - u_hat @ u_hat.T).square().mean()


def gram_similarity(u: Tensor, z: Tensor, grams: Grams | None = None) -> Tensor:
    """Similarity loss from the Gram matrices; see `direct_similarity`, which it equals.

    Notes
    -----
    O(B (C^2 + C D + D^2)) time, no (B, B) matrix.
    """
    if grams is not None:
        return _batch_against_atlas(u, z, grams)
    u_hat, z_hat = _unit_pair(u, z)
    return similarity_from_grams(gram_matrices(u_hat, z_hat)).to(z_hat.dtype)


def auto_similarity(u: Tensor, z: Tensor, grams: Grams | None = None) -> Tensor:
    """Whichever of `direct_similarity` and `gram_similarity` multiplies less.

    Notes
    -----
    Direct when B (C + D) < C^2 + C D + D^2. U^T U counts although it has no backward pass: with the stacked memberships
    of many clusterings C exceeds B, and it is most of the work.
    """
    width, columns = z.shape[-1], u.shape[-1]
    is_direct = z.shape[0] * (columns + width) < columns**2 + columns * width + width**2
    return (direct_similarity if is_direct else gram_similarity)(u, z, grams)


SIMILARITY_LOSSES: dict[str, SimilarityLoss] = {
    "direct": direct_similarity,
    "gram": gram_similarity,
    "auto": auto_similarity,
}

SIMILARITY_SCALINGS: dict[str, Callable[[int], float]] = {"pairs": lambda n_cells: 1.0, "paper": float}
"""Factor of the mean over pairs for `n_cells` paired cells: ``pairs`` leaves it; ``paper`` divides the sum over pairs by the
number of cells, as printed, which grows with that number."""
