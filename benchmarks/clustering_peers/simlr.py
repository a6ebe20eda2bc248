"""SIMLR: a similarity of cells learned from many Gaussian kernels, then k-means on its leading eigenvectors. Told K.

From the text of the paper: 55 kernels (11 numbers of neighbours, 5 widths); in turn the similarity S (rows on the
simplex), the eigenvectors L of S, the weights of the kernels, and a diffusion of S over its nearest neighbours, until the
gap after the Cth eigenvalue grows (10 rounds at least, 30 at most).

Where we differ: kernels are scaled to 1 on the diagonal; the entropy weight is set so that the weights of the kernels
count for 20 of them; the diffusion is summed to its end in closed form; k-means runs on L, not on a t-SNE made of S. So
it is "like" SIMLR. It holds 55 N x N matrices, hence the limit of `MAX_CELLS`.

References
----------
Wang et al., Visualization and analysis of single-cell RNA-seq data by kernel-based similarity learning, Nature Methods 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clustering_peers.cells import Cells, Found

Matrix = NDArray[np.floating]

MAX_CELLS = 1500
KERNEL_NEIGHBORS = range(10, 31, 2)
WIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0)
N_NEIGHBORS = 10
EFFECTIVE_KERNELS = 20
DIFFUSION = 0.8
ROUNDS = (10, 30)
SETTINGS: dict[str, object] = {
    "kernel_neighbors": [*KERNEL_NEIGHBORS],
    "widths": [*WIDTHS],
    "n_neighbors": N_NEIGHBORS,
    "effective_kernels": EFFECTIVE_KERNELS,
    "diffusion": DIFFUSION,
    "rounds": [*ROUNDS],
    "max_cells": MAX_CELLS,
}


def simlr_like(cells: Cells, seed: int) -> Found:
    """Labels by k-means on L, and L."""
    from sklearn.cluster import KMeans

    latent = learn(cells.values, cells.n_clusters)
    labels = KMeans(cells.n_clusters, n_init=10, random_state=seed).fit_predict(latent)
    return labels.astype(np.int64), latent


def learn(values: NDArray[np.float32], n_clusters: int) -> Matrix:
    """The leading eigenvectors of the learned similarity; (N, G) to (N, K)."""
    distances = kernel_distances(values)  # (55, N, N)
    weights = np.full(len(distances), 1 / len(distances))
    combined = np.tensordot(weights, distances, axes=1)
    beta = row_penalty(combined)
    vectors, gap = leading(diffuse(combined.max() - combined), n_clusters)
    for step in range(ROUNDS[1]):
        spread = 0.5 * ((vectors[:, None, :] - vectors[None]) ** 2).sum(axis=2)
        similarity = simplex_rows(-(combined + beta * spread) / (2 * beta))
        similarity = diffuse(0.5 * (similarity + similarity.T))
        earlier = vectors, gap
        vectors, gap = leading(similarity, n_clusters)
        if step >= ROUNDS[0] and gap > 1.01 * earlier[1]:
            return earlier[0]
        weights = kernel_weights(np.tensordot(distances, similarity, axes=((1, 2), (0, 1))))
        combined = np.tensordot(weights, distances, axes=1)
    return vectors


def kernel_distances(values: NDArray[np.float32]) -> Matrix:
    """1 - K of every Gaussian kernel; (N, G) to (55, N, N)."""
    from sklearn.metrics import pairwise_distances

    distance = pairwise_distances(values.astype(np.float64))
    ordered = np.sort(distance, axis=1)
    kernels = []
    for count in KERNEL_NEIGHBORS:
        mean = ordered[:, 1 : min(count, len(values) - 1) + 1].mean(axis=1)
        for width in WIDTHS:
            scale = np.maximum(width * 0.5 * (mean[:, None] + mean[None]), 1e-12)
            kernel = np.exp(-0.5 * (distance / scale) ** 2) / scale
            own = np.sqrt(np.diag(kernel))
            kernels.append((1.0 - kernel / own[:, None] / own[None]).astype(np.float32))
    return np.stack(kernels)


def row_penalty(distance: Matrix) -> float:
    """The beta that leaves about `N_NEIGHBORS` entries in a row of S, mean over the rows."""
    near = np.sort(distance, axis=1)[:, 1 : N_NEIGHBORS + 2]
    return max(float((0.5 * (N_NEIGHBORS * near[:, -1] - near[:, :-1].sum(axis=1))).mean()), 1e-8)


def simplex_rows(points: Matrix) -> Matrix:
    """Nearest point of the simplex to every row, nothing on the diagonal; (N, N)."""
    points = points.copy()
    np.fill_diagonal(points, -np.inf)
    ordered = np.sort(points, axis=1)[:, ::-1][:, :-1]
    sums = np.cumsum(ordered, axis=1) - 1.0
    counts = np.arange(1, ordered.shape[1] + 1)
    last = (ordered - sums / counts > 0).sum(axis=1) - 1
    cut = sums[np.arange(len(points)), last] / (last + 1)
    found: Matrix = np.maximum(points - cut[:, None], 0.0)
    return found


def diffuse(similarity: Matrix) -> Matrix:
    """The fixed point of H = tau H P + (1 - tau) I, made symmetric; P has the nearest cells of each row."""
    n_cells = len(similarity)
    kept = similarity.copy()
    np.fill_diagonal(kept, 0.0)
    floor = np.partition(kept, n_cells - N_NEIGHBORS, axis=1)[:, n_cells - N_NEIGHBORS]
    kept[kept < floor[:, None]] = 0.0
    step = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12)
    found: Matrix = (1 - DIFFUSION) * np.linalg.inv(np.eye(n_cells) - DIFFUSION * step)
    return 0.5 * (found + found.T)


def leading(similarity: Matrix, n_clusters: int) -> tuple[Matrix, float]:
    """The first K eigenvectors of S, and the gap after the Kth eigenvalue."""
    from scipy.linalg import eigh

    n_cells = len(similarity)
    values, vectors = eigh(similarity, subset_by_index=[n_cells - n_clusters - 1, n_cells - 1])
    return vectors[:, :0:-1], float(values[1] - values[0])


def kernel_weights(costs: Matrix) -> Matrix:
    """Softmax of -cost, as sharp as makes the weights count for `EFFECTIVE_KERNELS` kernels."""
    from scipy.optimize import brentq
    from scipy.special import entr, softmax

    spread = max(float(np.ptp(costs)), 1e-12)

    def excess(log_sharpness: float) -> float:
        return float(entr(softmax(-np.exp(log_sharpness) * costs / spread)).sum() - np.log(EFFECTIVE_KERNELS))

    sharpness = brentq(excess, -5.0, 12.0) if excess(-5.0) > 0 > excess(12.0) else 0.0
    found: Matrix = softmax(-np.exp(sharpness) * costs / spread)
    return found
