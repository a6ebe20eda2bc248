"""Consensus centers: cluster the landmarks in many ways, keep what the ways agree on.

A space is a linear map of one source (principal components of the input or of the latent; plain, or whitened by the
local noise). In each space every method of `METHODS` makes one member. The share of members in which two cells fall
together is their co-association; its average-linkage tree, cut at K clusters, gives the labels. The tree is kept with the model.

The stacked memberships of the members are also the multi-scale target of Eq. (15): A = U_s U_s^T.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ops.linkage import weighted_linkage
from scamac_scale.ops.tree import Tree
from scamac_scale.train.clusters.apart import member_apart
from scamac_scale.train.clusters.association import Member, consensus_tree
from scamac_scale.train.clusters.counting import count_clusters
from scamac_scale.train.clusters.graph import fuzzy_graph, leiden, nearest_neighbors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray

NOISE_NEIGHBORS = 10
LEIDEN_RESOLUTION = 0.5
LEIDEN_WEIGHT = 3.0
LEAST_SPREAD = 1e-5
"""Of the largest value of a source: landmarks that differ by no more are alike."""
LEAST_SHARE = 1e-8
"""Square of a singular value, in that of the largest, down to which it is taken from squares."""


@dataclass(frozen=True)
class Space:
    """What members cluster in: the first principal components of a source.

    Attributes
    ----------
    source
        ``input`` or ``latent``.
    mixing
        (W, W), what the first W components are multiplied by: the whitening, or the identity.
    """

    source: str
    mixing: FloatArray

    def project(self, components: FloatArray) -> FloatArray:
        """Map (n, A) components of the source to (n, W)."""
        mapped: FloatArray = components[:, : len(self.mixing)] @ self.mixing
        return mapped


ROUNDING = 1e-20
"""Share of the variance of points below which what they differ by from their neighbours is rounding: whitening by it would overflow."""


@dataclass(frozen=True)
class Consensus:
    """What the members agree on.

    Attributes
    ----------
    labels
        (M,) consensus cluster of each landmark, numbered from left to right of the tree.
    tree
        Average linkage by 1 - co-association.
    members
        The clusterings of which it is made.
    counted
        (T, 4) of the numbers of clusters that were tried, see `Counted.table`; no row where the number was told.
    """

    labels: IntArray
    tree: Tree
    members: tuple[Member, ...]
    counted: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))

    @property
    def n_clusters(self) -> int:
        """Clusters K."""
        return int(self.labels.max()) + 1

    def to_plain(self) -> dict[str, Any]:
        """Give arrays and plain data, of which `from_plain` makes the same."""
        return {
            "labels": self.labels,
            "tree": (self.tree.merges, self.tree.weights),
            "counted": self.counted,
            "members": [(member.space, member.method, member.labels, member.weight) for member in self.members],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Consensus:
        """Make what `to_plain` gave."""
        members = tuple(Member(*member) for member in plain["members"])
        return cls(plain["labels"], Tree(*plain["tree"]), members, plain["counted"])


def principal_axes(
    points: FloatArray, n_components: int, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Mean and principal axes.

    Parameters
    ----------
    points
        (M, P).
    n_components
        Axes asked for; at most min(M - 1, P) come back.
    weights
        (M,) how often each point counts; None counts them alike.

    Returns
    -------
    tuple of FloatArray
        Mean (P,) and axes (P, W), float64, orthonormal columns, largest variance first, largest entry of each positive.

    Notes
    -----
    By the products of points, or of columns, whichever are fewer; by singular values where they would be lost in the squares.
    """
    from scipy.linalg import eigh

    weights = np.ones(len(points)) if weights is None else weights
    mean = weights @ points / weights.sum()
    scaled = (points - mean) * np.sqrt(weights)[:, None]
    width, least = min(n_components, len(points) - 1, points.shape[1]), min(scaled.shape)
    is_wide = scaled.shape[0] <= scaled.shape[1]
    products = scaled @ scaled.T if is_wide else scaled.T @ scaled
    values, vectors = eigh(products, subset_by_index=[least - width, least - 1], overwrite_a=True)
    if values[0] > LEAST_SHARE * values[-1]:
        axes = vectors[:, ::-1]
        if is_wide:
            axes = scaled.T @ (axes / np.sqrt(values[::-1]))
    else:
        axes = np.linalg.svd(scaled, full_matrices=False)[2][:width].T
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
    if (
        values.max() <= ROUNDING * np.square(points - points.mean(axis=0)).mean(axis=0).max()
    ):  # repeated cells: no noise but rounding
        return np.eye(len(values))
    floor = max(float(values.max()) * 1e-6, np.finfo(np.float64).tiny)
    whitening: FloatArray = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    return whitening


def build_spaces(
    sources: dict[str, FloatArray], weights: FloatArray, components: Sequence[int]
) -> tuple[tuple[Space, ...], dict[str, FloatArray]]:
    """Plain and whitened principal components of every source.

    Parameters
    ----------
    sources
        Name to (M, P) landmarks.
    weights
        (M,) cells of each.
    components
        Numbers of components; those beyond the rank of a source give one space at its rank.

    Returns
    -------
    spaces
        Two (plain, whitened) per source and number of components, duplicates dropped.
    found
        Name of each source to (M, A), the components of its landmarks.
    """
    spaces: list[Space] = []
    found: dict[str, FloatArray] = {}
    for name, points in sources.items():
        mean, axes = principal_axes(points, max(components), weights)
        found[name] = (points - mean) @ axes
        if np.abs(found[name]).max(initial=0.0) <= LEAST_SPREAD * np.abs(points).max():
            found[name] = np.zeros_like(found[name])  # rounding of landmarks that are alike is no structure
        for width in sorted({min(width, axes.shape[1]) for width in components}):
            plain = Space(name, np.eye(width))
            spaces += [plain, replace(plain, mixing=noise_whitening(plain.project(found[name])))]
    return tuple(spaces), found


def ward(points: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Ward's tree of weighted points cut at `n_clusters`; (M, W), (M,) to (M,)."""
    sizes = weights.astype(np.float64)
    labels: IntArray = Tree(weighted_linkage(points.astype(np.float32), sizes, "ward"), sizes).labels(n_clusters)
    return labels


def kmeans(points: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Take the best of ten k-means++ runs on weighted points; (M, W), (M,) to (M,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):  # on any number of cores the same
        warnings.simplefilter("ignore", ConvergenceWarning)  # where fewer landmarks differ, some clusters stay empty
        found = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed).fit(points, sample_weight=weights)
    labels: IntArray = found.labels_
    return labels


def ward_directions(points: FloatArray, weights: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Ward's tree on rows of unit length; (M, W), (M,) to (M,)."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return ward(points / np.where(norms > 0, norms, 1.0), weights, n_clusters, seed)


METHODS: dict[str, Callable[[FloatArray, FloatArray, int, int], IntArray]] = {
    "ward": ward,
    "kmeans": kmeans,
    "ward_directions": ward_directions,
}
"""Methods that are told the number of clusters; each makes one member of weight 1 in every space."""


def cluster_members(
    components: dict[str, FloatArray],
    weights: FloatArray,
    spaces: Sequence[Space],
    n_clusters: int | None,
    seed: int,
    communities: Sequence[IntArray] | None = None,
) -> tuple[Member, ...]:
    """Cluster the landmarks by every method in every space.

    Parameters
    ----------
    components, spaces
        From `build_spaces`.
    weights
        (M,) cells of each landmark. Leiden, which looks at neighbours, does not count them.
    n_clusters
        K for `METHODS`; None gives them, in each space, the number of communities that Leiden finds there.
    seed
        For k-means and Leiden.
    communities
        Of each space, by Leiden, where they are known already.

    Returns
    -------
    tuple of Member
        Per space one of Leiden, which counts three times, and one per method.
    """
    members = []
    for index, space in enumerate(spaces):
        points = space.project(components[space.source])
        found = communities[index] if communities else leiden(fuzzy_graph(points), LEIDEN_RESOLUTION, seed)
        members.append(Member(index, "leiden", found, LEIDEN_WEIGHT))
        k = n_clusters or members[-1].n_clusters
        for name, method in METHODS.items():
            found = np.unique(method(points, weights, k, seed), return_inverse=True)[1]
            members.append(Member(index, name, found.astype(np.int64), 1.0))
    return tuple(members)


def find_consensus(
    sources: dict[str, FloatArray],
    weights: FloatArray,
    n_clusters: int | None,
    *,
    components: Sequence[int],
    cut_height: float | None,
    seed: int,
    finds_rare: bool = False,
) -> Consensus:
    """Consensus clusters of the landmarks.

    Parameters
    ----------
    sources
        Name (``input``, ``latent``) to (M, P) landmarks.
    weights
        (M,) cells of each.
    n_clusters
        K, or None to estimate it: what is found then is what is found with that number told.
    components
        Principal components of the spaces.
    cut_height
        Where K is not given: None chooses it by `count_clusters`. A height is where a first tree is cut, whose members of a space take the
        number of Leiden communities found there.
    seed
        For k-means and Leiden.
    finds_rare
        Whether small groups of landmarks that lie apart, in the components of the first source, are clusters of their own: some of a K that
        is given, more than a K that is not.

    Returns
    -------
    Consensus
        Labels, tree, spaces and members.

    Notes
    -----
    O(M^2) memory and time in the number of landmarks, whatever the number of cells.
    """
    spaces, found = build_spaces(sources, weights, components)
    is_told = n_clusters is not None
    communities: list[IntArray] | None = None
    counted: FloatArray = np.zeros((0, 4))
    if n_clusters is None and cut_height is None:
        points = [space.project(found[space.source]) for space in spaces]
        communities = [leiden(fuzzy_graph(part), LEIDEN_RESOLUTION, seed) for part in points]
        best = count_clusters(points, communities, weights)
        n_clusters, counted = best.n_clusters, best.table
    elif n_clusters is None:
        assert cut_height is not None
        first = cluster_members(found, weights, spaces, None, seed)
        n_clusters = consensus_tree(first, weights).count_at(cut_height)
    members = cluster_members(found, weights, spaces, n_clusters, seed, communities)
    told = n_clusters if is_told else None
    apart = member_apart(found[spaces[0].source], weights, members, told) if finds_rare else None
    if apart is not None:
        members = (*members, apart)
        n_clusters = n_clusters if is_told else n_clusters + apart.n_clusters - 1
    tree = consensus_tree(members, weights)
    return Consensus(tree.labels(n_clusters), tree, members, counted)


def cluster_means(
    points: FloatArray, labels: IntArray, n_clusters: int, weights: FloatArray | None = None
) -> FloatArray:
    """Mean of the points of each cluster, by their weights (M,) where given; (M, W), (M,) to (n_clusters, W). Every cluster has a point."""
    weights = np.ones(len(points)) if weights is None else weights
    sums = np.zeros((n_clusters, points.shape[1]))
    np.add.at(sums, labels, points * weights[:, None])
    means: FloatArray = sums / np.bincount(labels, weights, minlength=n_clusters)[:, None]
    return means
