"""The objective of one batch: every term by name, from the network's output and the state of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import LAYER_LOSSES, RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS, atlas_similarity
from scamac_scale.ops.similarity import Codes, follow_batch, gram_matrices, unit_rows
from scamac_scale.ranks.collectives import block_gather, sum_over_ranks, tree_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.config import LossConfig
    from scamac_scale.nn.model import Layers, NetworkOutput
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.ops.similarity import PairMeans
    from scamac_scale.ranks.world import World
    from scamac_scale.train.clusters.targets import Target


@dataclass(frozen=True)
class Scene:
    """All that a term may look at.

    Attributes
    ----------
    x
        (P, b, G) what is to be reconstructed in P blocks: the clean scaled input, or counts that were held out of it.
    rows
        (P, b) rows of the atlas.
    layers
        Of the network on the noisy input.
    z
        (P, b, D) latents; None where no term looks at them.
    share
        (P, b), of each cell in a mean over the batch, of which these blocks may be a part; 0 where a row fills up its block.
    clusters, target
        None before the centers are found.
    pairs
        What Eq. (15) needs of all cells; None pairs the cells of the batch.
    n_cells
        N, cells of the atlas.
    """

    x: torch.Tensor
    rows: IntArray
    layers: Layers | NetworkOutput
    z: torch.Tensor | None
    share: torch.Tensor
    clusters: Clusters | None = None
    target: Target | None = None
    pairs: PairMeans | None = None
    n_cells: int = 0

    @cached_property
    def latent(self) -> torch.Tensor:
        """(P b, D) float32."""
        assert self.z is not None
        return self.z.float().flatten(0, -2)

    @cached_property
    def u(self) -> torch.Tensor | Codes:
        """(P b, C) memberships of Eq. (15)."""
        assert self.target is not None
        assert self.clusters is not None
        return self.target.of(self.rows.reshape(-1), self.latent, self.clusters)

    def cells_of(self, sizes: Sequence[int]) -> list[tuple[torch.Tensor | Codes, torch.Tensor]]:
        """Memberships and latents of the cells of each block, of which there are `sizes`, without what fills it up."""
        n_rows, u = self.share.shape[1], self.u
        places = [slice(block * n_rows, block * n_rows + size) for block, size in enumerate(sizes)]
        if isinstance(u, Codes):
            return [(u._replace(columns=u.columns[place]), self.latent[place]) for place in places]
        return [(u[place], self.latent[place]) for place in places]


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
        self._layers = RECONSTRUCTIONS[LAYER_LOSSES[config.reconstruction]]
        self._cluster = CLUSTERINGS[config.clustering]
        self._similarity = SIMILARITY_LOSSES[config.similarity_form]
        self.similarity_scale = SIMILARITY_SCALINGS[config.similarity_scaling]

    def reconstruction(self, scene: Scene) -> torch.Tensor:
        """First term of Eq. (5)."""
        return self._reconstruct(scene.x, scene.layers.output, scene.share)

    def layers(self, scene: Scene) -> torch.Tensor:
        """Second term of Eq. (5)."""
        return self._layers(scene.layers.encoding, scene.layers.decoding, scene.share)

    def similarity(self, scene: Scene) -> torch.Tensor:
        """Eq. (15): these cells against all cells, where their sums are known, or the pairs of one block."""
        if scene.pairs is not None:
            return atlas_similarity(scene.u, scene.latent, scene.pairs, scene.share) * self.similarity_scale(
                scene.n_cells
            )
        n_cells = scene.share.numel()
        return (self._similarity(scene.u, scene.latent) * self.similarity_scale(n_cells))[None]

    def clustering(self, scene: Scene) -> torch.Tensor:
        """Eq. (12) on these cells, with U and H constant."""
        assert scene.clusters is not None
        with torch.no_grad():
            u, h = scene.clusters.assign(scene.latent)
        return self._cluster(scene.latent, scene.clusters.centers, u, h, scene.share)

    def term(self, name: str, scene: Scene) -> torch.Tensor:
        """One term by its name in ``train.pretrain.terms`` or ``train.phases``: (P,), the part of each block in that of the batch."""
        return TERMS[name](self, scene)

    def of_batch(self, name: str, scene: Scene, sizes: Sequence[int], world: World) -> torch.Tensor:
        """One term of a batch whose blocks lie on several ranks.

        Parameters
        ----------
        name
            As of `term`.
        scene
            The blocks of this rank.
        sizes
            Cells of all blocks of all ranks.
        world
            This rank, and how many there are.

        Returns
        -------
        Tensor
            (P,) of the blocks of this rank; over all blocks of all ranks they add up to the term of the batch.
        """
        if name != "similarity" or scene.pairs is not None:
            return self.term(name, scene)
        # Pairs of cells reach across blocks, and not to what fills them up.
        own = [sizes[block] for block in world.own(len(sizes))]
        parts = [(u.dense() if isinstance(u, Codes) else u, z) for u, z in scene.cells_of(own)]
        z = block_gather([latent for _, latent in parts], sizes, world)
        u = block_gather([rows.to(z[0].dtype) for rows, _ in parts], sizes, world)
        scale = self.similarity_scale(sum(sizes)) / sum(sizes)
        return torch.stack(
            [
                self._similarity(all_u.detach(), all_z) * (scale * size)
                for all_u, all_z, size in zip(u, z, own, strict=True)
            ]
        )

    @torch.no_grad()
    def followed(self, scene: Scene, sizes: Sequence[int], world: World) -> PairMeans | None:
        """Move what Eq. (15) knows of all cells along with those of a batch, which have moved; arguments as of `of_batch`."""
        momentum, pairs = self.config.similarity_momentum, scene.pairs
        if pairs is None or momentum == 0:
            return pairs
        own = [sizes[block] for block in world.own(len(sizes))]
        parts = [
            gram_matrices(u if isinstance(u, Codes) else unit_rows(u), unit_rows(z)) for u, z in scene.cells_of(own)
        ]
        return follow_batch(pairs, sum_over_ranks(tree_sum(parts), world), momentum)


TERMS: dict[str, Callable[[Objective, Scene], torch.Tensor]] = {
    "reconstruction": Objective.reconstruction,
    "layers": Objective.layers,
    "similarity": Objective.similarity,
    "clustering": Objective.clustering,
}

CLUSTER_TERMS = frozenset({"similarity", "clustering"})
