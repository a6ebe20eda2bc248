"""The objective of one batch: every term by name, from the network's output and the state of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS, atlas_similarity
from scamac_scale.ops.similarity import Codes, follow_batch, gram_matrices, unit_rows
from scamac_scale.reduce import block_gather, sum_over_ranks, tree_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.arrays import IntArray
    from scamac_scale.config import LossConfig
    from scamac_scale.nn.model import NetworkOutput
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.ops.similarity import PairMeans
    from scamac_scale.train.targets import Target
    from scamac_scale.world import World


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
    pairs
        What Eq. (15) needs of all cells; None pairs the cells of the batch.
    n_cells
        N, cells of the atlas.
    batch_cells
        Cells of the whole batch, of which these may be a block; 0 where these are all.
    """

    x: torch.Tensor
    rows: IntArray
    out: NetworkOutput
    clusters: Clusters | None = None
    target: Target | None = None
    pairs: PairMeans | None = None
    n_cells: int = 0
    batch_cells: int = 0

    @property
    def share(self) -> float:
        """Share of these cells in the batch: by it means over blocks add up to the mean over the batch."""
        return len(self.rows) / self.batch_cells if self.batch_cells else 1.0

    @cached_property
    def latent(self) -> torch.Tensor:
        """(B, D) float32."""
        return self.out.latent.float()

    @cached_property
    def u(self) -> torch.Tensor | Codes:
        """(B, C) memberships of Eq. (15)."""
        assert self.target is not None
        assert self.clusters is not None
        return self.target.of(self.rows, self.latent, self.clusters)


class Objective:
    """The terms of the loss under one config.

    Parameters
    ----------
    config
        Names of the forms.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self._reconstruct = RECONSTRUCTIONS[config.reconstruction]
        self._cluster = CLUSTERINGS[config.clustering]
        self._similarity = SIMILARITY_LOSSES[config.similarity_form]
        self.similarity_scale = SIMILARITY_SCALINGS[config.similarity_scaling]

    def reconstruction(self, scene: Scene) -> torch.Tensor:
        """First term of Eq. (5)."""
        return self._reconstruct(scene.x, scene.out.output) * scene.share

    def layers(self, scene: Scene) -> torch.Tensor:
        """Second term of Eq. (5)."""
        return self._reconstruct(scene.out.encoding, scene.out.decoding) * scene.share

    def similarity(self, scene: Scene) -> torch.Tensor:
        """Eq. (15): these cells against all cells, where their sums are known, or their pairs."""
        if scene.pairs is not None:
            scale = self.similarity_scale(scene.n_cells) * scene.share
            return atlas_similarity(scene.u, scene.latent, scene.pairs) * scale
        return self._similarity(scene.u, scene.latent) * self.similarity_scale(len(scene.latent))

    def clustering(self, scene: Scene) -> torch.Tensor:
        """Eq. (12) on these cells, with U and H constant."""
        assert scene.clusters is not None
        latent, clusters = scene.latent, scene.clusters
        with torch.no_grad():
            u, h = clusters.assign(latent)
        value = self._cluster(latent, clusters.centers, u, h)
        return value if self.config.clustering == "sum" else value * scene.share

    def term(self, name: str, scene: Scene) -> torch.Tensor:
        """One term by its name in ``train.pretrain.terms`` or ``train.phases``: the part of these cells in that of their batch."""
        return TERMS[name](self, scene)

    def of_blocks(self, name: str, scenes: Sequence[Scene], sizes: Sequence[int], world: World) -> list[torch.Tensor]:
        """One term of a batch that is cut into blocks.

        Parameters
        ----------
        name
            As of `term`.
        scenes
            The blocks of this rank.
        sizes
            Cells of all blocks of all ranks.
        world
            This rank, and how many there are.

        Returns
        -------
        list of Tensor
            One for each scene; over all blocks of all ranks they add up to the term of the batch.
        """
        if name != "similarity" or scenes[0].pairs is not None or len(sizes) == 1:
            return [self.term(name, scene) for scene in scenes]
        # Pairs of cells reach across blocks.
        z = block_gather([scene.latent for scene in scenes], sizes, world)
        rows = [scene.u.dense() if isinstance(scene.u, Codes) else scene.u for scene in scenes]
        u = block_gather([part.to(z[0].dtype) for part in rows], sizes, world)
        scale = self.similarity_scale(sum(sizes))
        return [
            self._similarity(all_u.detach(), all_z) * (scale * scene.share)
            for all_u, all_z, scene in zip(u, z, scenes, strict=True)
        ]

    @torch.no_grad()
    def followed(self, scenes: Sequence[Scene], world: World) -> PairMeans | None:
        """Move what Eq. (15) knows of all cells along with those of a batch, which have moved."""
        momentum, pairs = self.config.similarity_momentum, scenes[0].pairs
        if pairs is None or momentum == 0:
            return pairs
        parts = [
            gram_matrices(scene.u if isinstance(scene.u, Codes) else unit_rows(scene.u), unit_rows(scene.latent))
            for scene in scenes
        ]
        return follow_batch(pairs, sum_over_ranks(tree_sum(parts), world), momentum)


TERMS: dict[str, Callable[[Objective, Scene], torch.Tensor]] = {
    "reconstruction": Objective.reconstruction,
    "layers": Objective.layers,
    "similarity": Objective.similarity,
    "clustering": Objective.clustering,
}

CLUSTER_TERMS = frozenset({"similarity", "clustering"})
