"""Unit rows and the Gram matrices that stand for all pairs of cells, Eq. (15).

sum_ij (u_i.u_j - z_i.z_j)^2 = ||U^T U||^2 + ||Z^T Z||^2 - 2 ||U^T Z||^2 (Frobenius, unit rows), so N x N similarities shrink
to three small matrices that add up over any cut of the cells. The loss built on them lives in `losses.similarity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scamac_scale.errors import ShapeError
from scamac_scale.host.compiled import compiled
from scamac_scale.ops.checks import full_precision, require_dims, require_equal, upcast

if TYPE_CHECKING:
    from numpy.typing import NDArray
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


class Codes(NamedTuple):
    """Memberships of R clusterings side by side, one of them 1 and the others 0 in each: the (B, C) rows without zeros.

    Attributes
    ----------
    columns
        (B, R) int64, the column of U where each clustering has its entry, 0 to `width` - 1, no two alike in a row.
    values
        (R,) entries, the same for all cells; the sum of their squares is 1, so that rows have length 1.
    width
        C, clusters of all clusterings together.
    """

    columns: Tensor
    values: Tensor
    width: int

    def dense(self) -> Tensor:
        """(B, C) rows with their zeros, dtype of `values`."""
        rows = self.values.new_zeros(len(self.columns), self.width)
        return rows.scatter_(1, self.columns, self.values.expand(len(rows), -1))


class Grams(NamedTuple):
    """Gram matrices of unit rows; they add up over any cut of the cells.

    Attributes
    ----------
    zz
        (D, D) float64, sum over cells of z z^T.
    uz
        (C, D) float64, sum over cells of u z^T.
    uu
        (C, C) float64, sum over cells of u u^T; None where U came as `Codes`: its C is large and it does not change, so that
        its square is counted once.
    n_cells
        () float64, the number of cells.
    """

    zz: Tensor
    uz: Tensor
    uu: Tensor | None
    n_cells: Tensor

    def __add__(self, other: Grams) -> Grams:  # type: ignore[override]  # sums, not concatenated tuples
        """Add, field by field: the sums over both sets of cells."""
        uu = None if self.uu is None or other.uu is None else self.uu + other.uu
        return Grams(self.zz + other.zz, self.uz + other.uz, uu, self.n_cells + other.n_cells)


def gram_matrices(u_hat: Tensor | Codes, z_hat: Tensor) -> Grams:
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
        float64, on the device of `z_hat`; differentiable, unless `u_hat` are codes.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B (C^2 + C D + D^2)), with codes O(B (R D + D^2)). Products are taken in the precision of the inputs (at least float32)
    and widened afterwards, so that batches add up in float64. For a value to report near the minimum, pass float64: float32
    products are off by 1.6 % at a million cells.

    References
    ----------
    scAMAC Eq. (15).
    """
    require_dims(z_hat, 2, "z_hat (B, D)")
    n_cells = z_hat.new_tensor(z_hat.shape[0], dtype=torch.float64)
    with full_precision(z_hat):
        z_hat = upcast(z_hat)
        if isinstance(u_hat, Codes):
            require_equal(u_hat.columns.shape[0], z_hat.shape[0], "cells of u_hat and z_hat")
            return Grams((z_hat.T @ z_hat).double(), _code_product(u_hat, z_hat).double(), None, n_cells)
        require_dims(u_hat, 2, "u_hat (B, C)")
        require_equal(u_hat.shape[0], z_hat.shape[0], "cells of u_hat and z_hat")
        u_hat = upcast(u_hat)
        dtype = torch.promote_types(u_hat.dtype, z_hat.dtype)
        u_hat, z_hat = u_hat.to(dtype), z_hat.to(dtype)
        return Grams((z_hat.T @ z_hat).double(), (u_hat.T @ z_hat).double(), (u_hat.T @ u_hat).double(), n_cells)


def _code_product(codes: Codes, z_hat: Tensor) -> Tensor:
    """U^T Z, (C, D), dtype of `z_hat`."""
    if z_hat.device.type != "cpu":
        return codes.dense().to(z_hat.dtype).T @ z_hat
    product = np.zeros((codes.width, z_hat.shape[1]), dtype=z_hat.detach().numpy().dtype)
    _add_rows(codes.columns.numpy(), codes.values.to(z_hat.dtype).numpy(), z_hat.detach().contiguous().numpy(), product)
    return torch.from_numpy(product)


@compiled
def _add_rows(columns: NDArray[np.int64], values: NDArray[Any], z_hat: NDArray[Any], product: NDArray[Any]) -> None:
    """Add every row of `z_hat` to the rows of `product` that its codes name.

    .15 us a cell for 48 codes and D = 32 in float32; scipy's sparse product takes .23, the dense one, mostly zeros, 2.2.
    """
    for cell in range(columns.shape[0]):
        for clustering in range(columns.shape[1]):
            row, value = columns[cell, clustering], values[clustering]
            for column in range(z_hat.shape[1]):
                product[row, column] += value * z_hat[cell, column]


class PairMeans(NamedTuple):
    """Gram matrices over the number of cells: all that a mean over pairs of cells needs.

    Attributes
    ----------
    zz
        (D, D) float64, mean over cells of z z^T.
    uz
        (C, D) float64, mean over cells of u z^T.
    uu_square
        () float64, mean over all pairs of cells of the squared similarity of their memberships.
    """

    zz: Tensor
    uz: Tensor
    uu_square: Tensor


def pair_means(grams: Grams, uu_square: Tensor | None = None) -> PairMeans:
    """Divide sums over all cells by their number.

    Parameters
    ----------
    grams
        Of all cells that are paired.
    uu_square
        () float64, squared Frobenius norm of U^T U of the same cells, where `grams` came from codes and lack it.

    Raises
    ------
    ShapeError
        If U^T U is neither in `grams` nor given.
    """
    if grams.uu is not None:
        uu_square = grams.uu.square().sum()
    if uu_square is None:
        raise ShapeError("grams of codes have no uu; pass uu_square, the squared Frobenius norm of U^T U.")
    n_cells = grams.n_cells
    return PairMeans(grams.zz / n_cells, grams.uz / n_cells, uu_square.to(n_cells.device) / n_cells**2)


def follow_batch(means: PairMeans, batch: Grams, momentum: float) -> PairMeans:
    """Move the means over an atlas towards those of a batch, as its cells move between two sweeps.

    Parameters
    ----------
    means
        Of the atlas.
    batch
        Of some of its cells, as they are now.
    momentum
        Weight of the batch, 0 to 1; 0 leaves the means as they are.

    Returns
    -------
    PairMeans
        With the `uu_square` of `means`, which no gradient needs.
    """
    n_cells = batch.n_cells
    return PairMeans(
        means.zz.lerp(batch.zz / n_cells, momentum), means.uz.lerp(batch.uz / n_cells, momentum), means.uu_square
    )


def similarity_from_means(means: PairMeans) -> Tensor:
    """Mean over all pairs of cells of the squared difference of their two similarities.

    Parameters
    ----------
    means
        Of all cells that are paired.

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
    value = means.uu_square + means.zz.square().sum() - 2.0 * means.uz.square().sum()
    return value + (value.detach().clamp(min=0.0) - value.detach())
