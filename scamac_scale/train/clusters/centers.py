"""The centers of the clusters: how they begin on the landmark cells, and what becomes of those that a sweep leaves empty."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from scamac_scale.nn.clusters import clusters_at
from scamac_scale.nn.embed import embed_rows
from scamac_scale.ops.adaptive import center_distance
from scamac_scale.randomness import integer_seed, numpy_generator
from scamac_scale.train.clusters import consensus as members_of
from scamac_scale.train.clusters.selection import faiss_kmeans

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.config import LossConfig
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.train.clusters.landmarks import Landmarks

EMPTY_SHARE = 1e-4
"""Weight of a cluster that counts as empty, in even shares of all weight."""

logger = logging.getLogger(__name__)


def _ward(latent: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    return members_of.ward(latent, weights, n_clusters, seed)


def _kmeans(latent: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    return members_of.kmeans(latent, weights, n_clusters, integer_seed(seed, "kmeans"))


def _faiss_kmeans(latent: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    points = np.ascontiguousarray(latent, dtype=np.float32)
    clusters = faiss_kmeans(points, n_clusters, integer_seed(seed, "kmeans"), n_runs=10, weights=weights)
    nearest: IntArray = clusters.index.search(points, 1)[1].ravel()
    return nearest


def _random(latent: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Nearest of K random landmarks, as the published code starts."""
    shares = weights / weights.sum()
    chosen = latent[numpy_generator(seed, "random centers").choice(len(latent), n_clusters, replace=False, p=shares)]
    from scipy.spatial.distance import cdist

    nearest: IntArray = cdist(latent, chosen).argmin(axis=1)
    return nearest


CENTER_STARTS: dict[str, Callable[[FloatArray, FloatArray, int, int], IntArray] | None] = {
    "consensus": None,  # labels come with the members; see train.clusters.consensus
    "ward": _ward,
    "kmeans": _kmeans,
    "faiss_kmeans": _faiss_kmeans,
    "random": _random,
}
"""Name to a function of landmark latents (M, D), their weights (M,), K and seed that labels the landmarks."""


def landmark_clusters(landmarks: Landmarks, network: ScamacNetwork, loss: LossConfig) -> Clusters:
    """Centers as the means of the labelled landmarks in the present latent, and the temperature they give."""
    latent = embed_rows(network, landmarks.x)
    n_clusters = int(landmarks.labels.max()) + 1
    means = members_of.cluster_means(
        latent.double().cpu().numpy(), landmarks.labels, n_clusters, landmarks.weights.astype(np.float64)
    )
    return clusters_at(torch.from_numpy(means).to(latent), latent, loss)


def empty_clusters(clusters: Clusters) -> list[int]:
    """Clusters that the sweep left with (almost) no weight: less than `EMPTY_SHARE` of an even share."""
    if clusters.weight is None:
        return []
    even = float(clusters.weight.sum()) / len(clusters.weight)
    return [int(index) for index in torch.nonzero(clusters.weight <= EMPTY_SHARE * even).flatten()]


def tend_clusters(
    clusters: Clusters, landmarks: Landmarks, network: ScamacNetwork, *, splits_heaviest: bool, seed: int
) -> Clusters:
    """Report clusters that have become empty and, where the config says so, split the heaviest in their place.

    Parameters
    ----------
    clusters
        Of a sweep.
    landmarks
        Those nearest to the center of the heaviest cluster are split by 2-means; the halves give its center and that of the
        empty cluster.
    network
        For the latents of the landmarks.
    splits_heaviest
        As of the config.
    seed
        Of the run.

    Returns
    -------
    Clusters
        As they were, where none is empty or nothing is to be split.
    """
    empty = empty_clusters(clusters)
    if not empty:
        return clusters
    named = ", ".join(map(str, empty))
    if not splits_heaviest or clusters.weight is None:
        logger.warning(
            "%d of %d clusters are empty (%s) and keep their centers; fewer clusters, or train.splits_heaviest=true, may suit "
            "these cells",
            len(empty),
            len(clusters.centers),
            named,
        )
        return clusters
    latent = embed_rows(network, landmarks.x)
    centers, weight = clusters.centers.clone(), clusters.weight.clone()
    split = []
    for index in empty:
        for heavy in torch.argsort(weight, descending=True).tolist():
            is_near = (center_distance(latent, centers).argmin(dim=1) == heavy).cpu().numpy()
            near, cells = latent.cpu().numpy()[is_near], landmarks.weights[is_near].astype(np.float64)
            if len(np.unique(near, axis=0)) < 2:
                continue  # one landmark, or the same cell again and again
            halves = members_of.kmeans(near, cells, 2, integer_seed(seed, "split", index))
            means = members_of.cluster_means(near.astype(np.float64), halves, 2, cells)
            centers[[heavy, index]] = torch.from_numpy(means).to(centers)
            share = float(cells[halves == 1].sum() / cells.sum())
            weight[index], weight[heavy] = weight[heavy] * share, weight[heavy] * (1 - share)
            split.append(index)
            break
    logger.warning(
        "%d clusters were empty (%s); heavy ones were split in place of %d of them", len(empty), named, len(split)
    )
    return replace(clusters, centers=centers, weight=weight) if split else clusters
