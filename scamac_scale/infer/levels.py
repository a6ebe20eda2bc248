"""Other cuts of the tree that a model keeps: its clusters anew, and coarser and finer ones beside them; no training.

Clusters of another cut have the means of their landmarks' latents for centers. Levels beside the clusters of a prediction are nested in
cells as they are in landmarks: a cell goes to the nearest of the finest clusters that lie in its own, and all levels between follow upwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import ConfigError
from scamac_scale.infer.output.table import CLUSTER_KEY
from scamac_scale.nn.clusters import clusters_at
from scamac_scale.ops.adaptive import center_distance
from scamac_scale.ops.tree import Tree, drawing, joined_at

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.infer.options import PredictOptions

DENDROGRAM_KEY = f"dendrogram_{CLUSTER_KEY}"
MAX_DRAWN = 500
"""Clusters of which a dendrogram is given: its matrix grows with their square, and nobody reads more."""


def recut(model: FittedModel, options: PredictOptions) -> FittedModel:
    """Give a model with the clusters that are asked for.

    Parameters
    ----------
    model
        Fitted; stays as it is.
    options
        ``n_clusters`` or ``cut``.

    Returns
    -------
    FittedModel
        With the same network. Where none are asked for, or as many as it has, the very same.

    Raises
    ------
    ConfigError
        If the model has no tree, or its tree not so many landmarks.
    """
    if options.n_clusters is None and options.cut is None:
        return model
    tree = tree_of(model)
    n_clusters = options.n_clusters if options.cut is None else tree.count_at(options.cut)
    assert n_clusters is not None
    if n_clusters == model.n_clusters:
        return model
    _check_count(n_clusters, tree, f"n_clusters={n_clusters}")
    device = model.clusters.centers.device
    centers = _centers(model, n_clusters).to(device)
    assert model.landmarks is not None
    clusters = clusters_at(centers, model.landmarks.to(device), model.config.loss)
    return replace(model, clusters=clusters, provenance={**model.provenance, "is_count_estimated": False})


def tree_of(model: FittedModel) -> Tree:
    """Give the tree of a model; ConfigError where it has none."""
    if model.tree is None or model.landmarks is None:
        raise ConfigError(
            "this model has no tree of its clusters, so it cannot be cut anew: it was written by an earlier version, or fitted with "
            "start.centers other than consensus or with train.splits_heaviest; fit again, or leave out n_clusters, cut and levels."
        )
    return model.tree


def _check_count(n_clusters: int, tree: Tree, said: str) -> None:
    if n_clusters > len(tree):
        raise ConfigError(
            f"{said}, but the tree of the model has {len(tree):,} landmarks; ask for at most as many, or fit with more "
            "start.landmark_cells."
        )


def _centers(model: FittedModel, n_clusters: int) -> torch.Tensor:
    """(K, D) weighted means of the landmarks of each cluster of a cut."""
    assert model.tree is not None
    assert model.landmarks is not None
    labels, weights = model.tree.labels(n_clusters), model.tree.weights
    sums = np.zeros((n_clusters, model.landmarks.shape[1]))
    np.add.at(sums, labels, model.landmarks.cpu().double().numpy() * weights[:, None])
    means = sums / np.bincount(labels, weights)[:, None]
    return torch.from_numpy(means).to(model.clusters.centers.dtype)


@dataclass(frozen=True, eq=False)
class Levels:
    """Coarser and finer clusters beside those of a prediction.

    Attributes
    ----------
    columns
        Name of each column of obs, that of the clusters too, to the (F,) cluster of each of the finest.
    centers
        (F, D) of the finest; None where the clusters themselves are the finest.
    """

    columns: dict[str, IntArray]
    centers: torch.Tensor | None = None

    def finest(self, latent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B,) finest cluster of each cell: the nearest of those that lie in its own, from (B, D) and (B,)."""
        if self.centers is None:
            return labels
        own = torch.from_numpy(self.columns[CLUSTER_KEY]).to(labels.device)
        distance = center_distance(latent, self.centers.to(latent))
        return distance.masked_fill(own != labels[:, None], torch.inf).argmin(dim=1)


def levels_of(model: FittedModel, options: PredictOptions) -> Levels:
    """Make the levels that are asked for, of a model that is cut already.

    Raises
    ------
    ConfigError
        As `recut`.
    """
    if not options.levels:
        return Levels({})
    tree = tree_of(model)
    finest = max(*options.levels, model.n_clusters)
    _check_count(finest, tree, f"levels={','.join(map(str, options.levels))}")
    columns: dict[str, IntArray] = {CLUSTER_KEY: tree.coarser(finest, model.n_clusters)}
    columns |= {f"{CLUSTER_KEY}_{level}": tree.coarser(finest, level) for level in options.levels}
    return Levels(columns, None if finest == model.n_clusters else _centers(model, finest))


def dendrogram(model: FittedModel) -> dict[str, Any]:
    """Draw the top of the tree, over the clusters of a model, as ``uns`` has it for scanpy's plots; empty where there is none to draw."""
    if model.tree is None or not 2 <= model.n_clusters <= MAX_DRAWN:
        return {}
    top = model.tree.top(model.n_clusters)
    info = drawing(top)
    found = {
        "linkage": top,
        "groupby": np.array([CLUSTER_KEY], dtype=object),
        "use_rep": "X_scAMAC",
        "cor_method": "co-association",
        "linkage_method": "average",
        "categories_ordered": info["ivl"],
        "categories_idx_ordered": info["leaves"],
        "dendrogram_info": info,
        "correlation_matrix": 1.0 - joined_at(top),
    }
    return {DENDROGRAM_KEY: found}
