"""Consensus centers: cluster the landmark cells in many ways, keep what the ways agree on.

A space is a linear map of one source (principal components of the input or of the latent; plain, or whitened by the
local noise). In each space every method of `METHODS` makes one member. The share of members in which two cells fall
together is their co-association; its average-linkage tree, cut at K clusters or at a height, gives the labels. Where K is not given, the methods that need a number take
the one that Leiden finds in their space.

The stacked memberships of the members are also the multi-scale target of Eq. (15): A = U_s U_s^T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.train.clusters.graph import fuzzy_graph, leiden, nearest_neighbors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray

NOISE_NEIGHBORS = 10
LEIDEN_RESOLUTION = 0.5
LEIDEN_WEIGHT = 3.0


@dataclass(frozen=True)
class Space:
    """A linear map from one source to the space that members cluster in.

    Attributes
    ----------
    source
        ``input`` or ``latent``.
    mean
        (P,), of the source.
    axes
        (P, A), principal axes of the source, A >= W; all spaces of a source share them.
    mixing
        (W, W), what the first W components are multiplied by: the whitening, or the identity.
    """

    source: str
    mean: FloatArray
    axes: FloatArray
    mixing: FloatArray

    def project(self, points: FloatArray) -> FloatArray:
        """Map (n, P) points of the source to (n, W)."""
        mapped: FloatArray = (points - self.mean) @ self.axes[:, : len(self.mixing)] @ self.mixing
        return mapped


@dataclass(frozen=True)
class Member:
    """One clustering of the landmarks.

    Attributes
    ----------
    space
        Index into the list of spaces.
    method
        ``leiden`` or a key of `METHODS`.
    labels
        (M,) cluster of each landmark, 0 to `n_clusters` - 1.
    weight
        How many times it counts.
    """

    space: int
    method: str
    labels: IntArray
    weight: float

    @property
    def n_clusters(self) -> int:
        """Clusters of this member."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Consensus:
    """What the members agree on.

    Attributes
    ----------
    labels
        (M,) consensus cluster of each landmark.
    spaces, members
        What was clustered, and how.
    """

    labels: IntArray
    spaces: tuple[Space, ...]
    members: tuple[Member, ...]

    @property
    def n_clusters(self) -> int:
        """Clusters K."""
        return int(self.labels.max()) + 1

    def to_plain(self) -> dict[str, Any]:
        """Give arrays and plain data, of which `from_plain` makes the same; what spaces share is there once."""
        shared = {id(array): array for space in self.spaces for array in (space.mean, space.axes)}
        at = {key: place for place, key in enumerate(shared)}
        return {
            "labels": self.labels,
            "shared": list(shared.values()),
            "spaces": [(space.source, at[id(space.mean)], at[id(space.axes)], space.mixing) for space in self.spaces],
            "members": [(member.space, member.method, member.labels, member.weight) for member in self.members],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Consensus:
        """Make what `to_plain` gave."""
        shared = plain["shared"]
        spaces = tuple(
            Space(source, shared[mean], shared[axes], mixing) for source, mean, axes, mixing in plain["spaces"]
        )
        return cls(plain["labels"], spaces, tuple(Member(*member) for member in plain["members"]))


def principal_axes(points: FloatArray, n_components: int) -> tuple[FloatArray, FloatArray]:
    """Mean and principal axes.

    Parameters
    ----------
    points
        (M, P).
    n_components
        Axes asked for; at most min(M - 1, P) come back.

    Returns
    -------
    tuple of FloatArray
        Mean (P,) and axes (P, W), orthonormal columns, largest variance first, largest entry of each positive.
    """
    mean = points.mean(axis=0)
    _, _, rows = np.linalg.svd(points - mean, full_matrices=False)
    axes = rows[: min(n_components, len(points) - 1)].T
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return mean, axes * np.where(signs == 0, 1.0, signs)


def noise_whitening(points: FloatArray, n_neighbors: int = NOISE_NEIGHBORS) -> FloatArray:
    """Whitening by local noise: the covariance of each cell minus the mean of its neighbours becomes the identity.

    Parameters
    ----------
    points
        (M, W).
    n_neighbors
        Neighbours averaged.

    Returns
    -------
    FloatArray
        (W, W), symmetric; multiply points by it from the right.
    """
    _, indices = nearest_neighbors(points, n_neighbors)
    noise = points - points[indices].mean(axis=1)
    values, vectors = np.linalg.eigh(noise.T @ noise / len(points))
    if values.max() <= 0:  # repeated cells: no noise to speak of
        return np.eye(len(values))
    floor = max(float(values.max()) * 1e-6, np.finfo(np.float64).tiny)
    whitening: FloatArray = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    return whitening


def build_spaces(sources: dict[str, FloatArray], components: Sequence[int]) -> tuple[Space, ...]:
    """Plain and whitened principal components of every source.

    Parameters
    ----------
    sources
        Name to (M, P) landmark cells.
    components
        Numbers of components; those beyond the rank of a source give one space at its rank.

    Returns
    -------
    tuple of Space
        Two (plain, whitened) per source and number of components, duplicates dropped.
    """
    spaces = []
    for name, points in sources.items():
        mean, axes = principal_axes(points, max(components))
        for width in sorted({min(width, axes.shape[1]) for width in components}):
            plain = Space(name, mean, axes, np.eye(width))
            spaces += [plain, replace(plain, mixing=noise_whitening(plain.project(points)))]
    return tuple(spaces)


def ward(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Ward's tree cut at `n_clusters`; (M, W) to (M,)."""
    from sklearn.cluster import AgglomerativeClustering

    labels: IntArray = AgglomerativeClustering(n_clusters=n_clusters, linkage="ward").fit_predict(points)
    return labels


def kmeans(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Take the best of ten k-means++ runs; (M, W) to (M,)."""
    from sklearn.cluster import KMeans

    labels: IntArray = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed).fit_predict(points)
    return labels


def ward_directions(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Ward's tree on rows of unit length; (M, W) to (M,)."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return ward(points / np.where(norms > 0, norms, 1.0), n_clusters, seed)


METHODS: dict[str, Callable[[FloatArray, int, int], IntArray]] = {
    "ward": ward,
    "kmeans": kmeans,
    "ward_directions": ward_directions,
}
"""Methods that are told the number of clusters; each makes one member of weight 1 in every space."""


def cluster_members(
    sources: dict[str, FloatArray], spaces: Sequence[Space], n_clusters: int | None, seed: int
) -> tuple[Member, ...]:
    """Cluster the landmarks by every method in every space.

    Parameters
    ----------
    sources
        Name to (M, P) landmark cells.
    spaces
        From `build_spaces`.
    n_clusters
        K for `METHODS`; None gives them, in each space, the number of communities that Leiden finds there.
    seed
        For k-means and Leiden.

    Returns
    -------
    tuple of Member
        Per space one of Leiden, which counts three times, and one per method.
    """
    members = []
    for index, space in enumerate(spaces):
        points = space.project(sources[space.source])
        communities = leiden(fuzzy_graph(points), LEIDEN_RESOLUTION, seed)
        members.append(Member(index, "leiden", communities, LEIDEN_WEIGHT))
        k = n_clusters or members[-1].n_clusters
        for name, method in METHODS.items():
            found = np.unique(method(points, k, seed), return_inverse=True)[1]
            members.append(Member(index, name, found.astype(np.int64), 1.0))
    return tuple(members)


def co_association(members: Sequence[Member]) -> FloatArray:
    """Weighted share of members in which two landmarks fall together; (M, M), ones on the diagonal."""
    total = sum(member.weight for member in members)
    shared = np.zeros((len(members[0].labels),) * 2)
    for member in members:
        shared += member.weight * (member.labels[:, None] == member.labels[None, :])
    return shared / total


def cut_consensus(association: FloatArray, n_clusters: int | None, cut_height: float) -> IntArray:
    """Average-linkage tree on 1 - A, cut.

    Parameters
    ----------
    association
        (M, M), from `co_association`.
    n_clusters
        Number of clusters, or None to cut at `cut_height`.
    cut_height
        Height of the cut, 0 to 1.

    Returns
    -------
    IntArray
        (M,) labels, largest cluster first.
    """
    from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(1.0 - association, checks=False), method="average")
    if n_clusters is None:
        raw = fcluster(tree, cut_height, criterion="distance")
    else:
        raw = cut_tree(tree, n_clusters=n_clusters).ravel()
    _, labels = np.unique(raw, return_inverse=True)
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[labels].astype(np.int64)


def find_consensus(
    sources: dict[str, FloatArray],
    n_clusters: int | None,
    *,
    components: Sequence[int],
    cut_height: float,
    seed: int,
) -> Consensus:
    """Consensus clusters of the landmark cells.

    Parameters
    ----------
    sources
        Name (``input``, ``latent``) to (M, P) landmark cells.
    n_clusters
        K, or None: the members of a space then take the number of Leiden communities found there, and the tree is cut
        at `cut_height`.
    components
        Principal components of the spaces.
    cut_height
        See `cut_consensus`.
    seed
        For k-means and Leiden.

    Returns
    -------
    Consensus
        Labels, spaces and members.

    Notes
    -----
    O(M^2) memory and O(M^2 log M) time in the number of landmarks, whatever the number of cells.
    """
    spaces = build_spaces(sources, components)
    members = cluster_members(sources, spaces, n_clusters, seed)
    return Consensus(cut_consensus(co_association(members), n_clusters, cut_height), spaces, members)


class MemberAssigner:
    """Gives any cell its cluster in every member: the nearest center in the member's space.

    Parameters
    ----------
    consensus
        Its spaces and members.
    sources
        Name to (M, P) landmark cells: the mean of those that a member put together is a center.
    device
        Where the cells will be.

    Notes
    -----
    A source is projected once, to its principal axes, for all spaces; float32.
    """

    def __init__(self, consensus: Consensus, sources: dict[str, FloatArray], device: torch.device) -> None:
        def tensor(values: FloatArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).float().to(device)

        self._sources = {space.source: (tensor(space.mean), tensor(space.axes)) for space in consensus.spaces}
        self._spaces = [(space.source, tensor(space.mixing)) for space in consensus.spaces]
        self._members = []
        for member in consensus.members:
            space = consensus.spaces[member.space]
            centers = cluster_means(space.project(sources[space.source]), member.labels, member.n_clusters)
            self._members.append((member.space, tensor((centers**2).sum(axis=1)), tensor(2.0 * centers.T)))

    def assign(self, sources: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cluster of each cell in each member.

        Parameters
        ----------
        sources
            Name to (n, P) cells, on the device.

        Returns
        -------
        Tensor
            (n, R) int64.
        """
        components = {name: (sources[name].float() - mean) @ axes for name, (mean, axes) in self._sources.items()}
        points = [components[source][:, : len(mixing)] @ mixing for source, mixing in self._spaces]
        nearest = [(square - points[space] @ twice).argmin(dim=1) for space, square, twice in self._members]
        return torch.stack(nearest, dim=1)


def cluster_means(points: FloatArray, labels: IntArray, n_clusters: int) -> FloatArray:
    """Mean of the points of each cluster; (M, W), (M,) to (n_clusters, W). Every cluster has a point."""
    sums = np.zeros((n_clusters, points.shape[1]))
    np.add.at(sums, labels, points)
    means: FloatArray = sums / np.bincount(labels, minlength=n_clusters)[:, None]
    return means
