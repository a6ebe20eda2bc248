"""Memberships and labels of cells from their latents, under a fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.ops.adaptive import adaptive_distance, center_distance
from scamac_scale.ops.fuzzy import membership

if TYPE_CHECKING:
    import torch

    from scamac_scale.checkpoint import FittedModel


def assign(model: FittedModel, latent: torch.Tensor) -> torch.Tensor:
    """Memberships of cells in the clusters of a model, Eq. (14).

    Parameters
    ----------
    model
        Its centers, temperature and epsilon.
    latent
        (n, D) float32.

    Returns
    -------
    Tensor
        (n, K); the label of a cell is the argmax of its row.
    """
    distance = adaptive_distance(center_distance(latent, model.centers.to(latent)), model.config.loss.epsilon)
    return membership(distance, model.temperature)
