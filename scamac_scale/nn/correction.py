"""The correction of technical batches as a part of the network: a fitted Harmony on principal components of the input, or on the latent.

Nothing here learns by gradient. The equations live in `ops.harmony`, the passes over the cells that find them in `train.correction`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scamac_scale.ops.harmony import Layer, Reference, corrected, offset, rows_times, soft_clusters

if TYPE_CHECKING:
    from collections.abc import Sequence


class TechCorrection(nn.Module):
    """Takes what a technical batch adds to cells from them.

    Parameters
    ----------
    n_features
        G, or D for a correction of the latent.
    n_components
        d; principal components in which cells are corrected.
    n_layers, n_clusters, n_levels
        T, Q and L.
    sigma
        Width of the soft clusters.

    Attributes
    ----------
    axes
        (G, d), orthonormal columns.
    mean
        (d,), components of the mean cell.
    centers, penalty, beta
        (T, Q, d), (T, L, Q) and (T, L, Q, d): the layers, see `ops.harmony.Layer`.
    sizes, sums
        (Q,) and (Q, d) of the cells of the fit, see `ops.harmony.Reference`.
    new_beta
        (L', Q, d), offsets of levels that the fit has not seen, which are numbered on from L; not saved. None where there are none.
    """

    axes: Tensor
    mean: Tensor
    centers: Tensor
    penalty: Tensor
    beta: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(
        self,
        n_features: int,
        n_components: int,
        n_layers: int = 0,
        n_clusters: int = 0,
        n_levels: int = 0,
        sigma: float = 0.1,
    ) -> None:
        super().__init__()
        self.sigma = sigma
        self.register_buffer("axes", torch.zeros(n_features, n_components))
        self.register_buffer("mean", torch.zeros(n_components))
        self.register_buffer("centers", torch.zeros(n_layers, n_clusters, n_components))
        self.register_buffer("penalty", torch.zeros(n_layers, n_levels, n_clusters))
        self.register_buffer("beta", torch.zeros(n_layers, n_levels, n_clusters, n_components))
        self.register_buffer("sizes", torch.zeros(n_clusters))
        self.register_buffer("sums", torch.zeros(n_clusters, n_components))

        self.new_beta: Tensor | None = None

    @property
    def layers(self) -> list[Layer]:
        """The corrections, in their order."""
        return [Layer(*parts) for parts in zip(self.centers, self.penalty, self.beta, strict=True)]

    @property
    def reference(self) -> Reference:
        """The cells of the fit, for cells of unknown levels."""
        return Reference(self.sizes.double(), self.sums.double())

    def keep(self, layers: Sequence[Layer], reference: Reference) -> None:
        """Take the layers of a fit."""
        device = self.axes.device
        names = ("centers", "penalty", "beta")
        for name, parts in zip(names, zip(*layers, strict=True), strict=True):
            setattr(self, name, torch.stack(parts).float().to(device))
        self.sizes, self.sums = (part.float().to(device) for part in reference)

    @torch.no_grad()
    def components(self, x: Tensor) -> Tensor:
        """(..., B, d) of (..., B, G) cells; see `rows_times`."""
        return rows_times(x, self.axes) - self.mean

    def forward(self, x: Tensor, levels: Tensor | None) -> Tensor:
        """(..., B, G) cells without what their technical batches, (..., B, C) levels on any device, have added."""
        assert levels is not None
        return x - self.offset(x, levels.to(x.device))

    @torch.no_grad()
    def offset(self, x: Tensor, levels: Tensor) -> Tensor:
        """Find what a technical batch has added to cells.

        Parameters
        ----------
        x
            (..., B, G), as they are; a block axis may stand in front.
        levels
            (..., B, C) int64, numbered through.

        Returns
        -------
        Tensor
            (..., B, G), to be taken from `x`.
        """
        z = self.components(x)
        return self._back(z - self._corrected(z, levels))

    def _corrected(self, z: Tensor, levels: Tensor) -> Tensor:
        if self.new_beta is None:
            return corrected(z, levels, self.layers, self.sigma)
        n_levels = self.beta.shape[1]
        is_new = (levels[..., :1] >= n_levels).any(dim=-1, keepdim=True)
        known = corrected(z, levels.clamp_max(n_levels - 1), self.layers, self.sigma)
        new = z - offset(self.new_clusters(z), (levels[..., :1] - n_levels).clamp_min(0), self.new_beta)
        return torch.where(is_new, new, known)

    def new_clusters(self, z: Tensor) -> Tensor:
        """(..., B, Q) clusters of (..., B, d) components of cells of unknown levels, which avoid nothing."""
        none = torch.zeros(*z.shape[:-1], 0, dtype=torch.int64, device=z.device)
        return soft_clusters(z, none, self.centers[-1], self.penalty[-1], self.sigma)

    @torch.no_grad()
    def offset_in(self, x: Tensor, levels: Tensor, others: Tensor) -> Tensor:
        """Find what technical batches `others` (..., B, C) would have added to cells `x` of the batches `levels`; see `offset`."""
        z = self.components(x)
        *before, last = self.layers
        n_levels = len(last.beta)
        known = levels.clamp_max(n_levels - 1)
        r = soft_clusters(corrected(z, known, before, self.sigma), known, last.centers, last.penalty, self.sigma)
        if self.new_beta is not None:  # cells of new levels have the clusters by which they were placed
            r = torch.where(levels[..., :1] >= n_levels, self.new_clusters(z), r)
        return self._back(offset(r, others, last.beta))

    def _back(self, z: Tensor) -> Tensor:
        """From components to genes."""
        return rows_times(z, self.axes.T)


def correction_for(tensors: dict[str, Tensor], sigma: float) -> TechCorrection | None:
    """Make room for the correction that a saved network has; None where it has none, ValueError where its shapes are those of none."""
    axes, beta = tensors.get("correction.axes"), tensors.get("correction.beta")
    if axes is None or beta is None:
        return None
    if axes.ndim != 2 or beta.ndim != 4 or beta.shape[3] != axes.shape[1] or (beta.shape[0] and 0 in beta.shape[1:]):
        raise ValueError(f"correction.axes of shape {tuple(axes.shape)} and beta of {tuple(beta.shape)} do not fit")
    n_features, n_components = axes.shape
    n_layers, n_levels, n_clusters, _ = beta.shape
    return TechCorrection(n_features, n_components, n_layers, n_clusters, n_levels, sigma)
