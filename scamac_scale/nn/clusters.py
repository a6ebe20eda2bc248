"""Clusters in a latent: their centers, with the temperature of Eq. (14) that fits the cells which stand for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.ops.adaptive import adaptive_distance, center_distance
from scamac_scale.ops.fuzzy import Clusters, relative_temperature

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from scamac_scale.config import LossConfig

TEMPERATURES: dict[str, Callable[[torch.Tensor, float], float]] = {
    "relative": lambda distance, gamma: float(relative_temperature(distance, gamma)),
    "absolute": lambda distance, gamma: gamma,
}
"""Temperature of Eq. (14) from (M, K) distances of landmarks and gamma."""


def clusters_at(
    centers: torch.Tensor, z: torch.Tensor, loss: LossConfig, weight: torch.Tensor | None = None
) -> Clusters:
    """Put clusters together, with the temperature of Eq. (14) that fits the (M, D) landmarks `z`."""
    distance = adaptive_distance(center_distance(z, centers), loss.epsilon)
    temperature = TEMPERATURES[loss.temperature](distance, loss.gamma)
    return Clusters(centers, temperature, loss.epsilon, weight)
