"""A tree over weighted points that is kept: cut at any number of clusters or height, and drawn from its top down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ops.linkage import clusters_below, cut, leaf_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

HEIGHT_TOLERANCE = 1e-6
"""How far a height may leave 0 to 1 by rounding."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Average linkage of M landmarks by 1 - co-association.

    Attributes
    ----------
    merges
        (M - 1, 4), of `ops.linkage.weighted_linkage`; heights from 0 (in all clusterings together) to 1 (in none).
    weights
        (M,) cells that each landmark stands for.
    """

    merges: Floats
    weights: Floats

    def __len__(self) -> int:
        """Landmarks M."""
        return len(self.weights)

    @cached_property
    def order(self) -> Integers:
        """(M,) landmarks from left to right, the heavier side of each merge first."""
        return leaf_order(self.merges, self.weights)

    def labels(self, n_clusters: int) -> Integers:
        """(M,) clusters of a cut into K, numbered from left to right; ValueError where there is no such cut."""
        return cut(self.merges, n_clusters, self.order)

    def count_at(self, height: float) -> int:
        """Clusters of a cut at a height."""
        return clusters_below(self.merges, height)

    def coarser(self, fine: int, coarse: int) -> Integers:
        """(fine,) cluster of the coarser cut that holds each one of the finer."""
        of_fine: Integers = np.empty(fine, dtype=np.int64)
        of_fine[self.labels(fine)] = self.labels(coarse)
        return of_fine

    def top(self, n_clusters: int) -> Floats:
        """(K - 1, 4) linkage over the clusters of a cut, as scipy's: clusters for points, and counts of them in the last column."""
        n_inner = len(self) - n_clusters
        below = np.arange(len(self) + n_inner)  # any landmark of every cluster that the cut has not undone
        for row, (first, _) in enumerate(self.merges[:n_inner, :2].astype(np.int64)):
            below[len(self) + row] = below[first]
        labels = self.labels(n_clusters)
        top = self.merges[n_inner:].copy()
        counts = np.ones(2 * n_clusters - 1)
        for row, pair in enumerate(self.merges[n_inner:, :2].astype(np.int64)):
            named = [labels[below[node]] if node < len(below) else node - len(below) + n_clusters for node in pair]
            counts[n_clusters + row] = counts[named].sum()
            top[row] = min(named), max(named), self.merges[n_inner + row, 2], counts[n_clusters + row]
        return top


def check_tree(merges: Floats, weights: Floats) -> None:
    """Refuse what is no tree of M landmarks: kernels that go through it do not look.

    Raises
    ------
    ValueError
        If children are not those of a tree, heights do not ascend from 0 to 1, or weights are not positive.
    """
    n_points = len(weights)
    if weights.ndim != 1 or n_points == 0 or merges.shape != (n_points - 1, 4):
        raise ValueError(f"the tree has shape {merges.shape} and weights {weights.shape}")
    children, heights = merges[:, :2], merges[:, 2]
    if not (np.isfinite(merges).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("the tree holds numbers that are not finite, or weights that are not positive")
    is_below = (children < n_points + np.arange(n_points - 1)[:, None]).all()
    if not (is_below and np.array_equal(np.sort(children, axis=None), np.arange(2 * (n_points - 1)))):
        raise ValueError("the tree joins clusters that it does not have, or has joined already")
    is_within = (heights >= -HEIGHT_TOLERANCE).all() and (heights <= 1 + HEIGHT_TOLERANCE).all()
    if not is_within or (np.diff(heights) < 0).any():
        raise ValueError("heights of the tree do not ascend from 0 to 1")


def drawing(top: Floats) -> dict[str, Any]:
    """Lines of a dendrogram whose leaves are numbered from left to right, as ``scipy.cluster.hierarchy.dendrogram`` gives them.

    Parameters
    ----------
    top
        (K - 1, 4), of `Tree.top`.

    Returns
    -------
    dict
        ``icoord`` and ``dcoord`` (K - 1, 4), ``ivl`` and ``leaves`` (K,), and colors.
    """
    n_leaves = len(top) + 1
    x = np.concatenate([10.0 * np.arange(n_leaves) + 5.0, np.zeros(n_leaves - 1)])
    height = np.concatenate([np.zeros(n_leaves), top[:, 2]])
    across, up = np.empty((n_leaves - 1, 4)), np.empty((n_leaves - 1, 4))
    for row, pair in enumerate(top[:, :2].astype(np.int64)):
        left, right = pair[np.argsort(x[pair])]
        x[n_leaves + row] = (x[left] + x[right]) / 2
        across[row] = x[left], x[left], x[right], x[right]
        up[row] = height[left], top[row, 2], top[row, 2], height[right]
    return {
        "icoord": across,
        "dcoord": up,
        "ivl": np.array(list(map(str, range(n_leaves))), dtype=object),
        "leaves": np.arange(n_leaves),
        "color_list": np.array(["C0"] * (n_leaves - 1), dtype=object),
        "leaves_color_list": np.array(["C0"] * n_leaves, dtype=object),
    }


def joined_at(top: Floats) -> Floats:
    """(K, K) height at which each two clusters are joined; zeros on the diagonal."""
    n_leaves = len(top) + 1
    found = np.zeros((n_leaves, n_leaves))
    inside = [np.array([leaf]) for leaf in range(n_leaves)]
    for first, second, height in zip(top[:, 0].astype(int), top[:, 1].astype(int), top[:, 2], strict=True):
        found[np.ix_(inside[first], inside[second])] = height
        found[np.ix_(inside[second], inside[first])] = height
        inside.append(np.concatenate([inside[first], inside[second]]))
    return found
