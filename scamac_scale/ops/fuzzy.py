"""Fuzzy k-means: memberships, Eq. (14), and centers, Eq. (13), as sums over cells that add up over any cut.

Distances and the weight H live in `adaptive`, and `soft_assignment` puts them together; the clustering loss lives in
`losses.clustering`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from scamac_scale.errors import ShapeError
from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from scamac_scale.ops.checks import require_dims, require_equal, upcast

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12
"""Floor of the temperature, latent units."""


def membership(distance: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft assignment of every cell to every cluster.

    Parameters
    ----------
    distance
        (B, K), latent units, non-negative; from `adaptive_distance`.
    temperature
        Divides the distance, latent units, positive; the paper has 1.

    Returns
    -------
    Tensor
        (B, K), each row sums to 1; dtype and device of `distance`, float32 where that is half precision.

    Raises
    ------
    ShapeError
        If `distance` is not two-dimensional.

    Notes
    -----
    O(B K). Differentiable; callers that use U as a target detach it. A softmax, so that large distances do not give
    0 / 0.

    References
    ----------
    scAMAC Eq. (14).
    """
    require_dims(distance, 2, "distance (B, K)")
    return torch.softmax(upcast(distance) * (-1.0 / temperature), dim=1)


def soft_assignment(z: Tensor, centers: Tensor, temperature: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """Memberships and robust weights of cells in clusters.

    Parameters
    ----------
    z
        (B, D), latent.
    centers
        (K, D); taken to the dtype and device of `z`.
    temperature
        Divides the distance, latent units, positive; the paper has 1.
    epsilon
        Of Eqs. (12) and (14), latent units, positive.

    Returns
    -------
    tuple of Tensor
        U and H, (B, K) each; the label of a cell is the argmax of its row of U.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B K D). Differentiable; callers that use U or H as constants detach them.

    References
    ----------
    scAMAC Eq. (14) for U, Eq. (12) for H.
    """
    r = center_distance(z, centers.to(z))
    return membership(adaptive_distance(r, epsilon), temperature), robust_weight(r, epsilon)


@dataclass(frozen=True)
class Clusters:
    """The state of the fuzzy clustering between two updates of its centers.

    Attributes
    ----------
    centers
        (K, D).
    temperature
        Of Eq. (14), latent units, positive.
    epsilon
        Of Eqs. (12) to (14), latent units, positive.
    weight
        (K,) float64, sum over cells of H u in the sweep that made the centers; None before the first.
    """

    centers: Tensor
    temperature: float
    epsilon: float
    weight: Tensor | None = None

    def __len__(self) -> int:
        """Clusters K."""
        return len(self.centers)

    def assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Memberships U and robust weights H of (B, D) cells, (B, K) each; see `soft_assignment`."""
        return soft_assignment(z, self.centers, self.temperature, self.epsilon)

    def to(self, device: torch.device | str) -> Clusters:
        """Give the same clusters on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return replace(self, centers=self.centers.to(device), weight=weight)


def relative_temperature(distance: Tensor, gamma: float) -> float:
    """Temperature that fits the scale of the latent: gamma times the mean gap between nearest and second center.

    Parameters
    ----------
    distance
        (B, K), latent units; from `adaptive_distance`, of the cells that stand for the atlas.
    gamma
        Factor, positive.

    Returns
    -------
    float
        ``gamma * mean(d2 - d1)``, latent units, at least `TINY`; 1.0 where K = 1, since every membership is 1 then.

    Raises
    ------
    ShapeError
        If `distance` is not two-dimensional or has no cell.

    Notes
    -----
    The paper has absolute 1, which flattens the memberships as the latent shrinks. Mean in float64; waits for the device.

    References
    ----------
    Our addition to scAMAC Eq. (14).
    """
    require_dims(distance, 2, "distance (B, K)")
    if distance.shape[0] == 0 or distance.shape[1] == 0:
        raise ShapeError(f"distance (B, K) came with shape {tuple(distance.shape)}; pass at least one cell and center.")
    if distance.shape[1] == 1:
        return 1.0
    nearest = torch.topk(distance.detach().double(), 2, dim=1, largest=False).values
    return max(gamma * float((nearest[:, 1] - nearest[:, 0]).mean()), TINY)


class CenterSums(NamedTuple):
    """The two sums of Eq. (13); they add up over any cut of the cells.

    Attributes
    ----------
    weighted
        (K, D) float64, sum over cells of H u z.
    weight
        (K,) float64, sum over cells of H u.
    """

    weighted: Tensor
    weight: Tensor

    def __add__(self, other: CenterSums) -> CenterSums:  # type: ignore[override]  # sums, not concatenated tuples
        """Add, field by field: the sums over both sets of cells."""
        return CenterSums(self.weighted + other.weighted, self.weight + other.weight)


def center_sums(z: Tensor, u: Tensor, h: Tensor) -> CenterSums:
    """Sum over the given cells what centers are made of.

    Parameters
    ----------
    z
        (B, D), latent.
    u
        (B, K), memberships.
    h
        (B, K), robust weights.

    Returns
    -------
    CenterSums
        float64, on the device of `z`.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(B K D) in float64. Zero cells give zero sums.

    References
    ----------
    scAMAC Eq. (13), numerator and denominator.
    """
    require_dims(z, 2, "z (B, D)")
    require_dims(u, 2, "u (B, K)")
    require_equal(z.shape[0], u.shape[0], "cells of z and u")
    if u.shape != h.shape:
        raise ShapeError(f"u {tuple(u.shape)} and h {tuple(h.shape)} must have the same shape (B, K).")
    weights = u.double() * h.double()
    # Autocast leaves float64 alone, so this product needs no guard.
    return CenterSums(weighted=weights.T @ z.double(), weight=weights.sum(dim=0))


def centers_from_sums(sums: CenterSums, previous: Tensor) -> Tensor:
    """Centers from their sums.

    Parameters
    ----------
    sums
        Of all cells.
    previous
        (K, D), centers before the sweep.

    Returns
    -------
    Tensor
        (K, D), dtype and device of `previous`; a cluster without weight keeps its previous center.

    Raises
    ------
    ShapeError
        If `previous` does not have the shape of the sums.

    References
    ----------
    scAMAC Eq. (13).
    """
    if previous.shape != sums.weighted.shape:
        raise ShapeError(
            f"previous centers {tuple(previous.shape)} must have the shape of the sums {tuple(sums.weighted.shape)}."
        )
    weight = sums.weight.unsqueeze(1)
    is_empty = weight <= torch.finfo(torch.float64).tiny
    centers = sums.weighted / torch.where(is_empty, 1.0, weight)
    return torch.where(is_empty.to(previous.device), previous, centers.to(previous))
