"""The objective of one batch: every term by name, from the network's output and the state of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scamac_scale.errors import choose
from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS
from scamac_scale.ops.adaptive import adaptive_distance, center_distance
from scamac_scale.ops.fuzzy import relative_temperature, soft_assignment

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.arrays import IntArray
    from scamac_scale.config import LossConfig
    from scamac_scale.nn.model import NetworkOutput
    from scamac_scale.train.consensus import Member


@dataclass
class Clusters:
    """The state of the fuzzy clustering between two sweeps.

    Attributes
    ----------
    centers
        (K, D) float32, on the device of the network.
    temperature
        Of Eq. (14), latent units.
    """

    centers: torch.Tensor
    temperature: float


class MembershipTarget:
    """U of Eq. (15) as printed: memberships of the batch in the current clusters, held constant."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def of(self, rows: IntArray, latent: torch.Tensor, clusters: Clusters) -> torch.Tensor:
        """(B, K) memberships."""
        return soft_assignment(latent.detach(), clusters.centers, clusters.temperature, self.epsilon)[0]


class ConsensusTarget:
    """U of Eq. (15) from many clusterings: stacked one-hot memberships of the consensus members.

    U U^T is then the weighted share of members in which two cells fall together, and every row has length 1.

    Parameters
    ----------
    codes
        (N, R) cluster of each cell in each member: one byte each while a member has fewer than 256 clusters.
    members
        The R members, for their sizes and weights.
    """

    def __init__(self, codes: IntArray, members: tuple[Member, ...]) -> None:
        self.codes = codes
        sizes = np.array([member.n_clusters for member in members])
        weights = np.array([member.weight for member in members])
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.width = int(sizes.sum())
        self.values = torch.from_numpy(np.sqrt(weights / weights.sum())).float()

    def of(self, rows: IntArray, latent: torch.Tensor, clusters: Clusters | None) -> torch.Tensor:
        """(B, C) rows of unit length."""
        columns = torch.from_numpy(self.codes[rows].astype(np.int64) + self.offsets).to(latent.device)
        target = torch.zeros(len(columns), self.width, device=latent.device)
        return target.scatter_(1, columns, self.values.to(latent.device).expand(len(columns), -1))


Target = MembershipTarget | ConsensusTarget


TEMPERATURES: dict[str, Callable[[torch.Tensor, float], float]] = {
    "relative": lambda distance, gamma: float(relative_temperature(distance, gamma)),
    "absolute": lambda distance, gamma: gamma,
}


def temperature_of(z: torch.Tensor, centers: torch.Tensor, config: LossConfig) -> float:
    """Temperature of Eq. (14), from the (M, D) landmarks `z` and their (K, D) centers."""
    distance = adaptive_distance(center_distance(z, centers), config.epsilon)
    return choose(TEMPERATURES, config.temperature, "loss.temperature")(distance, config.gamma)


@dataclass(frozen=True)
class Scene:
    """All that a term may look at.

    Attributes
    ----------
    x
        (B, G) clean scaled input.
    rows
        (B,) rows of the atlas.
    out
        Of the network on the noisy input.
    clusters, target
        None before the centers are found.
    """

    x: torch.Tensor
    rows: IntArray
    out: NetworkOutput
    clusters: Clusters | None = None
    target: Target | None = None


class Objective:
    """The terms of the loss under one config.

    Parameters
    ----------
    config
        Names of the forms.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self._reconstruct = choose(RECONSTRUCTIONS, config.reconstruction, "loss.reconstruction")
        self._cluster = choose(CLUSTERINGS, config.clustering, "loss.clustering")
        self._similarity = choose(SIMILARITY_LOSSES, config.similarity_form, "loss.similarity_form")
        self._scaling = choose(SIMILARITY_SCALINGS, config.similarity_scaling, "loss.similarity_scaling")

    def reconstruction(self, scene: Scene) -> torch.Tensor:
        """First term of Eq. (5)."""
        return self._reconstruct(scene.x, scene.out.output)

    def layers(self, scene: Scene) -> torch.Tensor:
        """Second term of Eq. (5)."""
        return self._reconstruct(scene.out.encoding, scene.out.decoding)

    def similarity(self, scene: Scene) -> torch.Tensor:
        """Eq. (15) on the batch."""
        assert scene.target is not None
        assert scene.clusters is not None
        latent = scene.out.latent.float()
        u = scene.target.of(scene.rows, latent, scene.clusters)
        return self._similarity(u, latent) * self._scaling(len(latent))

    def clustering(self, scene: Scene) -> torch.Tensor:
        """Eq. (12) on the batch, with U and H constant."""
        assert scene.clusters is not None
        latent = scene.out.latent.float()
        clusters = scene.clusters
        with torch.no_grad():
            u, h = soft_assignment(latent, clusters.centers, clusters.temperature, self.config.epsilon)
        return self._cluster(latent, clusters.centers, u, h)

    def term(self, name: str, scene: Scene) -> torch.Tensor:
        """One term by its name in ``train.pretrain.terms`` or ``train.phases``."""
        return choose(TERMS, name, "train.phases.terms")(self, scene)


TERMS: dict[str, Callable[[Objective, Scene], torch.Tensor]] = {
    "reconstruction": Objective.reconstruction,
    "layers": Objective.layers,
    "similarity": Objective.similarity,
    "clustering": Objective.clustering,
}
CLUSTER_TERMS = frozenset({"similarity", "clustering"})
