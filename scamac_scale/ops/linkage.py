"""Trees of weighted points: agglomerative clustering by chains of nearest neighbours, in time that grows with the square of M.

A point stands for as many as its weight says: the tree is that of the points repeated so often. Lance and Williams' formulas give
the dissimilarity of a new cluster to each other one from those of its two parts:

    average   d(ij, k) = (w_i d(i, k) + w_j d(j, k)) / (w_i + w_j)
    Ward      d(ij, k) = ((w_i + w_k) d(i, k) + (w_j + w_k) d(j, k) - w_k d(i, j)) / (w_i + w_j + w_k)

References
----------
Müllner, arXiv:1109.2378, 2011, for the chains; Murtagh and Legendre, J. Classification 2014, for Ward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scamac_scale.errors import ShapeError, choose
from scamac_scale.host.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

Linkage = Literal["average", "ward"]
BLOCK_POINTS = 512


def weighted_linkage(
    values: Floats, weights: Floats | None, method: Linkage, *, overwrite: bool = False
) -> NDArray[np.float64]:
    """Tree of weighted points.

    Parameters
    ----------
    values
        ``average``: (M, M) symmetric dissimilarities, float32 or float64; the diagonal is not read. ``ward``: (M, W) points.
    weights
        (M,) positive: how many points each one stands for; None takes ones.
    method
        ``average`` (UPGMA) or ``ward``.
    overwrite
        Whether dissimilarities may be overwritten, which spares a copy.

    Returns
    -------
    NDArray
        (M - 1, 4) float64 as scipy's: the two clusters that are joined (the smaller number first; cluster M + i is that of row i), their
        height, and the weight of both together. Heights ascend; those of Ward are sqrt(2 w_i w_j / (w_i + w_j)) ||x_i - x_j|| for two points.

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there is no point.
    ValueError
        If a weight is not positive and finite.

    Notes
    -----
    O(M^2) time and memory. Of equal dissimilarities the point that comes first is taken, so equal input gives the same tree; with weights of
    one it is scipy's. The tree is of the precision of `values`: float32 halves the memory.
    """
    make = choose(DISSIMILARITIES, method, "method")
    n_points = len(values)
    sizes = np.ones(n_points) if weights is None else np.array(weights, dtype=np.float64)
    if n_points == 0 or values.ndim != 2 or sizes.shape != (n_points,):
        raise ShapeError(
            f"values came with shape {values.shape} and weights with {sizes.shape}, expected (M, M) or (M, W) and (M,)."
        )
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("weights must be positive, finite numbers.")
    merges = _merges(make(values, sizes, overwrite), sizes.copy(), method == "ward")
    tree: NDArray[np.float64] = merges[np.argsort(merges[:, 2], kind="stable")]
    _name_clusters(tree, sizes)
    if method == "ward":
        tree[:, 2] = np.sqrt(tree[:, 2])
    return tree


def _given(values: Floats, sizes: NDArray[np.float64], overwrite: bool) -> Floats:
    if values.shape[0] != values.shape[1]:
        raise ShapeError(f"dissimilarities came with shape {values.shape}, expected (M, M).")
    dtype = values.dtype if values.dtype in (np.float32, np.float64) else np.float64
    make = np.asarray if overwrite else np.array
    return make(values, dtype=dtype, order="C")


def _of_points(values: Floats, sizes: NDArray[np.float64], overwrite: bool) -> Floats:
    """(M, M) of Ward: 2 w_i w_j / (w_i + w_j) ||x_i - x_j||^2."""
    from scipy.spatial.distance import cdist

    found: Floats = np.empty((len(values), len(values)), values.dtype if values.dtype == np.float32 else np.float64)
    for start in range(0, len(values), BLOCK_POINTS):  # no (M, M) float64 beside
        found[start : start + BLOCK_POINTS] = cdist(values[start : start + BLOCK_POINTS], values, "sqeuclidean")
    _weigh(found, sizes)
    return found


DISSIMILARITIES = {"average": _given, "ward": _of_points}
"""Method to a function of values, weights and whether to overwrite, that gives the (M, M) dissimilarities it begins with."""


@compiled
def _weigh(squares: Any, sizes: Any) -> None:  # Any: numba's arrays are not typed
    for i in range(len(sizes)):
        for j in range(len(sizes)):
            squares[i, j] *= 2.0 * sizes[i] * sizes[j] / (sizes[i] + sizes[j])


@compiled
def _merges(d: Any, sizes: Any, is_ward: bool) -> Any:  # Any: numba's arrays are not typed
    """Join mutual nearest neighbours until one cluster is left; overwrites `d` and `sizes`.

    Row k of the result: two points, one of each cluster that is joined; the dissimilarity; the weight.
    """
    n_points = len(sizes)
    merges = np.empty((n_points - 1, 4))
    alive = np.arange(n_points)  # clusters that are left, in order; the larger point of two stands for both
    chain = np.empty(n_points, dtype=np.int64)
    length, n_alive = 0, n_points
    for k in range(n_points - 1):
        if length == 0:
            chain[0], length = alive[0], 1
        while True:
            x = chain[length - 1]
            y, least = -1, np.inf
            if length > 1:  # of equals the one before, or the chain might go in circles
                y = chain[length - 2]
                least = d[x, y]
            for at in range(n_alive):
                i = alive[at]
                if i != x and d[x, i] < least:
                    y, least = i, d[x, i]
            if y < 0:  # nothing is nearer than infinitely far
                y = alive[0] if alive[0] != x else alive[1]
                least = d[x, y]
            if length > 1 and y == chain[length - 2]:
                break
            chain[length] = y
            length += 1
        length -= 2
        x, y = min(x, y), max(x, y)
        w_x, w_y = sizes[x], sizes[y]
        merges[k, 0], merges[k, 1], merges[k, 2], merges[k, 3] = x, y, least, w_x + w_y
        to = 0
        for at in range(n_alive):
            i = alive[at]
            if i == x:
                continue
            alive[to] = i
            to += 1
            if i == y:
                continue
            if is_ward:
                w_i = sizes[i]
                joined = ((w_x + w_i) * d[x, i] + (w_y + w_i) * d[y, i] - w_i * least) / (w_x + w_y + w_i)
            else:
                joined = (w_x * d[x, i] + w_y * d[y, i]) / (w_x + w_y)
            d[y, i] = joined
            d[i, y] = joined
        n_alive -= 1
        sizes[y] = w_x + w_y
    return merges


@compiled
def _name_clusters(tree: Any, sizes: Any) -> None:  # Any: numba's arrays are not typed
    """Put the numbers of clusters in place of points of them, in rows that are in order, and what both weigh."""
    n_points = len(sizes)
    parent = np.arange(2 * n_points - 1)
    weight = np.empty(2 * n_points - 1)
    weight[:n_points] = sizes
    for k in range(n_points - 1):
        first, second = int(tree[k, 0]), int(tree[k, 1])
        while parent[first] != first:
            parent[first] = parent[parent[first]]
            first = parent[first]
        while parent[second] != second:
            parent[second] = parent[parent[second]]
            second = parent[second]
        both = n_points + k
        parent[first] = parent[second] = both
        weight[both] = weight[first] + weight[second]
        tree[k, 0], tree[k, 1], tree[k, 3] = min(first, second), max(first, second), weight[both]


def leaf_order(tree: NDArray[np.float64], weights: Floats) -> NDArray[np.int64]:
    """Points as a tree has them from left to right: of two clusters that are joined the heavier first.

    Parameters
    ----------
    tree
        (M - 1, 4), of `weighted_linkage`.
    weights
        (M,), of its points.

    Returns
    -------
    NDArray
        (M,) points; those of any cluster of the tree stand together. Of two clusters of equal weight, the one with the smaller number comes first.
    """
    n_points = len(tree) + 1
    order: NDArray[np.int64] = _leaves(
        tree, np.concatenate([np.asarray(weights, dtype=np.float64), tree[:, 3]]), n_points
    )
    return order


@compiled
def _leaves(tree: Any, weight: Any, n_points: int) -> Any:  # Any: numba's arrays are not typed
    order = np.empty(n_points, dtype=np.int64)
    left = np.empty(2 * n_points, dtype=np.int64)  # clusters that are to be opened, the next one last
    left[0], n_left, n_found = 2 * n_points - 2, 1, 0
    while n_left:
        n_left -= 1
        node = left[n_left]
        if node < n_points:
            order[n_found] = node
            n_found += 1
            continue
        first, second = int(tree[node - n_points, 0]), int(tree[node - n_points, 1])
        if weight[second] > weight[first]:
            first, second = second, first
        left[n_left], left[n_left + 1] = second, first
        n_left += 2
    return order


def clusters_below(tree: NDArray[np.float64], height: float) -> int:
    """Count the clusters that a cut at a height leaves: those that are joined at most so high are one."""
    return len(tree) + 1 - int(np.searchsorted(tree[:, 2], height, side="right"))


def cut(tree: NDArray[np.float64], n_clusters: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut a tree into clusters, by undoing its last merges.

    Parameters
    ----------
    tree
        (M - 1, 4), of `weighted_linkage`.
    n_clusters
        K, 1 to M.
    order
        (M,) points from left to right, of `leaf_order`.

    Returns
    -------
    NDArray
        (M,) cluster of each point, 0 to K - 1 from left to right: clusters with numbers side by side are neighbours, and the clusters that
        make up one of a coarser cut have numbers in a row.

    Raises
    ------
    ValueError
        If a tree of M points has no such cut.
    """
    n_points = len(tree) + 1
    if not 1 <= n_clusters <= n_points:
        raise ValueError(f"a tree of {n_points} points cannot be cut into {n_clusters} clusters.")
    cluster = _clusters(tree, n_points - n_clusters, n_points)
    ordered = cluster[order]
    number = np.empty(n_points, dtype=np.int64)
    number[order] = np.cumsum(np.concatenate([[False], ordered[1:] != ordered[:-1]]))
    return number


@compiled
def _clusters(tree: Any, n_merges: int, n_points: int) -> Any:  # Any: numba's arrays are not typed
    """(M,) cluster of each point once the first merges are done, by the number of `tree`."""
    parent = np.arange(n_points + n_merges)
    for k in range(n_merges - 1, -1, -1):  # from the top: a cluster is named before its parts
        parent[int(tree[k, 0])] = parent[int(tree[k, 1])] = parent[n_points + k]
    return parent[:n_points]
