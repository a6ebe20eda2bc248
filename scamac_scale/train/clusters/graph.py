"""Nearest-neighbour graph and Leiden communities on a few thousand cells.

The weights are UMAP's fuzzy simplicial set, as in ``scanpy.pp.neighbors``, and the communities igraph's Leiden, as in
``scanpy.tl.leiden(flavor="igraph")``. scanpy itself compiles for 15 s in every new process before its first graph, which is
more than the rest of a small fit; tests hold the two equal.
"""

from __future__ import annotations

import importlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray

N_NEIGHBORS = 15
_BISECTIONS = 64


def nearest_neighbors(points: FloatArray, n_neighbors: int) -> tuple[FloatArray, IntArray]:
    """Distances to, and indices of, the nearest other points.

    Parameters
    ----------
    points
        (M, D).
    n_neighbors
        Neighbours per point, the point itself not counted; at most M - 1 are returned.

    Returns
    -------
    tuple of FloatArray, IntArray
        Both (M, n_neighbors), nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(n_neighbors, len(points) - 1)
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors()
    return distances, indices


def fuzzy_graph(points: FloatArray, n_neighbors: int = N_NEIGHBORS) -> sparse.csr_matrix:
    """Symmetric neighbour graph with UMAP's weights.

    Parameters
    ----------
    points
        (M, D).
    n_neighbors
        As in scanpy: the point itself counts as one.

    Returns
    -------
    scipy.sparse.csr_matrix
        (M, M), weights in (0, 1], zero diagonal.

    References
    ----------
    McInnes, Healy, Melville 2018, section 3.1: rho is the distance to the nearest other point, sigma solves
    sum_j exp(-max(0, d_j - rho) / sigma) = log2(k), and the graph is A + A^T - A * A^T.
    """
    n_points = len(points)
    distances, indices = nearest_neighbors(points, n_neighbors - 1)
    k = distances.shape[1] + 1
    positive = np.where(distances > 0, distances, np.inf)
    rho = positive.min(axis=1, keepdims=True)
    rho[~np.isfinite(rho)] = 0.0
    excess = np.maximum(distances - rho, 0.0)
    low, high = np.zeros((n_points, 1)), np.full((n_points, 1), np.inf)
    sigma = np.ones((n_points, 1))
    for _ in range(_BISECTIONS):
        is_high = np.exp(-excess / sigma).sum(axis=1, keepdims=True) > np.log2(k)
        high = np.where(is_high, sigma, high)
        low = np.where(is_high, low, sigma)
        sigma = np.where(np.isfinite(high), (low + high) / 2, sigma * 2)
    own_mean = distances.sum(axis=1, keepdims=True) / k  # the point itself counts, at distance 0
    floor = 1e-3 * np.where(rho > 0, own_mean, distances.sum() / (n_points * k))
    weights = np.exp(-excess / np.maximum(np.maximum(sigma, floor), np.finfo(float).tiny))
    rows = np.repeat(np.arange(n_points), distances.shape[1])
    directed = sparse.csr_matrix((weights.ravel(), (rows, indices.ravel())), shape=(n_points, n_points))
    transposed = directed.T.tocsr()
    graph: sparse.csr_matrix = (directed + transposed - directed.multiply(transposed)).tocsr()
    graph.eliminate_zeros()
    return graph


def leiden(graph: sparse.csr_matrix, resolution: float, seed: int) -> IntArray:
    """Leiden communities by modularity.

    Parameters
    ----------
    graph
        (M, M), symmetric weights.
    resolution
        Higher gives more communities.
    seed
        Of igraph's generator, which is put back to Python's `random` module afterwards.

    Returns
    -------
    IntArray
        (M,) community of each point, largest community first.
    """
    igraph = _import_igraph()
    upper = sparse.triu(graph, k=1).tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([upper.row, upper.col]))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = network.community_leiden(
            objective_function="modularity", weights=upper.data.tolist(), resolution=resolution, n_iterations=2
        )
    finally:
        igraph.set_random_number_generator(random)
    membership = np.asarray(found.membership)
    order = np.argsort(-np.bincount(membership), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ranked: IntArray = rank[membership].astype(np.int64)
    return ranked


def _import_igraph() -> Any:  # Any: igraph is not typed
    """Import igraph in a thread: what it looks for in vain keeps the frames that it was asked from, and with them a whole fit."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(importlib.import_module, "igraph").result()
