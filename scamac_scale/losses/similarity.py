"""Self-supervised similarity loss, Eq. (15): similarity of cells in the latent against similarity of their memberships.

Among the cells of a batch (`SIMILARITY_LOSSES`), or of a batch against all cells (`atlas_similarity`), as printed. The value is a
mean over pairs of cells; `SIMILARITY_SCALINGS` turns it into the printed one. Memberships U are constants here: a membership
of K clusters (as printed) or the memberships of many clusterings side by side, (B, C).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

from scamac_scale.errors import ShapeError
from scamac_scale.ops.checks import full_precision, require_dims, require_equal
from scamac_scale.ops.similarity import (
    Codes,
    PairMeans,
    gram_matrices,
    pair_means,
    similarity_from_means,
    unit_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class SimilarityLoss(Protocol):
    """What an entry of `SIMILARITY_LOSSES` is called with."""

    def __call__(self, u: Tensor | Codes, z: Tensor) -> Tensor:
        """Return the loss; see `direct_similarity`."""


def _unit_pair(u: Tensor | Codes, z: Tensor) -> tuple[Tensor, Tensor]:
    u = u.dense() if isinstance(u, Codes) else u.detach()
    require_dims(u, 2, "u (B, C)")
    require_dims(z, 2, "z (B, D)")
    require_equal(u.shape[0], z.shape[0], "cells of u and z")
    z_hat = unit_rows(z)
    return unit_rows(u).to(z_hat.dtype), z_hat


def direct_similarity(u: Tensor | Codes, z: Tensor) -> Tensor:
    """Similarity loss from the (B, B) matrices of similarities.

    Parameters
    ----------
    u
        (B, C), memberships, non-negative; constant.
    z
        (B, D), latent.

    Returns
    -------
    Tensor
        (), mean over the pairs of these cells, between 0 and 4; at least float32.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B^2 (C + D)) time, O(B^2) memory. Gradient in `z` only, 0 at zero rows.

    References
    ----------
    scAMAC Eq. (15), divided by the number of pairs.
    """
    u_hat, z_hat = _unit_pair(u, z)
    with full_precision(z_hat):
        return (z_hat @ z_hat.T - u_hat @ u_hat.T).square().mean()


def gram_similarity(u: Tensor | Codes, z: Tensor) -> Tensor:
    """Similarity loss from the Gram matrices; see `direct_similarity`, which it equals.

    Notes
    -----
    O(B (C^2 + C D + D^2)) time, no (B, B) matrix.
    """
    u_hat, z_hat = _unit_pair(u, z)
    return similarity_from_means(pair_means(gram_matrices(u_hat, z_hat))).to(z_hat.dtype)


def auto_similarity(u: Tensor | Codes, z: Tensor) -> Tensor:
    """Whichever of `direct_similarity` and `gram_similarity` multiplies less.

    Notes
    -----
    Direct when B (C + D) < C^2 + C D + D^2. U^T U counts although it has no backward pass: with the stacked memberships
    of many clusterings C exceeds B, and it is most of the work.
    """
    width, columns = z.shape[-1], u.width if isinstance(u, Codes) else u.shape[-1]
    is_direct = z.shape[0] * (columns + width) < columns**2 + columns * width + width**2
    return (direct_similarity if is_direct else gram_similarity)(u, z)


SIMILARITY_LOSSES: dict[str, SimilarityLoss] = {
    "direct": direct_similarity,
    "gram": gram_similarity,
    "auto": auto_similarity,
}


def atlas_similarity(u: Tensor | Codes, z: Tensor, atlas: PairMeans, share: Tensor | None = None) -> Tensor:
    """Similarity loss over the pairs of a batch cell and any cell of the atlas, whose part is constant.

    Parameters
    ----------
    u
        (B, C), memberships, non-negative; constant.
    z
        (B, D), latent.
    atlas
        Of all cells, the batch among them, as `u` and `z` were when the sums were taken.
    share
        (P, B / P), of each cell in the mean over the batch; None counts all alike.

    Returns
    -------
    Tensor
        (), or (P,), one for each block of cells; this batch's estimate of the loss over all N^2 pairs: over the batches of one pass, the values average to that
        loss and the gradients to its gradient. One value may fall below 0; at least float32.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B (C D + D^2)), with codes O(B (R D + D^2)), whatever the number of cells. Each pair stands for two ordered pairs of the
    atlas, and the derivative reaches the batch cell of it only: the gradient is doubled, which makes it
    4 (G_zz z_i - G_zu u_i) / (N B) for unit row z_i.

    References
    ----------
    scAMAC Eq. (15), in Gram form, divided by N^2.
    """
    require_dims(z, 2, "z (B, D)")
    columns = u.width if isinstance(u, Codes) else u.shape[-1]
    if atlas.uz.shape != (columns, z.shape[1]):
        raise ShapeError(
            f"the atlas has (C, D) = {tuple(atlas.uz.shape)}, u and z have {(columns, z.shape[1])}: sum over the atlas with "
            "the same memberships and latent."
        )
    z_hat = unit_rows(z)
    with full_precision(z_hat):
        zz, uz = atlas.zz.to(z_hat.dtype), atlas.uz.to(z_hat.dtype)
        if isinstance(u, Codes):
            require_equal(len(u.columns), len(z), "cells of u and z")
            entries = u.values.to(z_hat.dtype).expand(len(z), -1)
            pulled = F.embedding_bag(u.columns, uz, mode="sum", per_sample_weights=entries)
        else:
            require_equal(len(u), len(z), "cells of u and z")
            pulled = unit_rows(u.detach()).to(z_hat.dtype) @ uz
        blocks = z_hat.view(
            1 if share is None else len(share), -1, z_hat.shape[1]
        )  # products of one shape, however many
        product = torch.bmm(blocks, zz.expand(len(blocks), *zz.shape)).view_as(z_hat)
        moving = ((product - 2.0 * pulled) * z_hat).sum(dim=1)
        value = atlas.uu_square.to(z_hat.dtype) + moving.detach() + 2.0 * (moving - moving.detach())
        return value.mean() if share is None else (value.view_as(share) * share).sum(dim=1)


SIMILARITY_SCALINGS: dict[str, Callable[[int], float]] = {"pairs": lambda n_cells: 1.0, "paper": float}
"""Factor of the mean over pairs for `n_cells` paired cells: ``pairs`` leaves it; ``paper`` divides the sum over pairs by the
number of cells, as printed, which grows with that number."""
