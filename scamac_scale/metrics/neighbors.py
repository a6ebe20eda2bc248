"""Exact nearest neighbours of the cells of a sample, by scikit-learn, or by faiss where it is installed and cells are many."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAISS_CELLS = 20_000
"""Cells from which on faiss searches, where it is installed: below, both take seconds."""
SPARE = 8
"""Candidates beyond those asked for: a search tells distances that nearly agree apart by float32 or cancelled sums only, so
some more are found, and ordered by distances taken anew."""
_BLOCK_VALUES = 2**22
"""Values of a block of differences, 32 MiB."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Nearest other cells.

    Attributes
    ----------
    distances
        (N, k) Euclidean, float64, nearest first.
    indices
        (N, k) rows; a cell is not its own neighbour.
    by
        What searched: ``scikit-learn`` or ``faiss``.
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]
    by: str

    def nearest(self, k: int) -> Neighbors:
        """Keep the `k` nearest."""
        return Neighbors(self.distances[:, :k], self.indices[:, :k], self.by)


def find_neighbors(points: NDArray[Any], k: int) -> Neighbors:
    """Find the nearest other cells of each cell, exactly.

    Parameters
    ----------
    points
        (N, D), finite.
    k
        Neighbours of a cell, itself not counted; N - 1 where there are fewer.

    Returns
    -------
    Neighbors
        Distances are taken anew in float64 from the differences, so that the cells of one place are at distance 0.

    Raises
    ------
    ShapeError
        If `points` is no matrix.
    InputError
        If there is one cell only, or a value that is not finite.
    """
    if points.ndim != 2:
        raise ShapeError(f"points {points.shape} must have the shape (N, D).")
    if len(points) < 2:
        raise InputError(f"{len(points)} cells have no neighbours; give at least 2.")
    if not np.isfinite(points).all():
        raise InputError("the points hold values that are not finite; leave these cells out.")
    centered = points.astype(np.float64)
    centered -= centered.mean(axis=0)
    k = min(k, len(points) - 1)
    n_candidates = min(k + 1 + SPARE, len(points))
    faiss = _faiss() if len(points) >= FAISS_CELLS else None
    if faiss is None:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=n_candidates, algorithm="brute").fit(centered)
        candidates = search.kneighbors(centered, return_distance=False)
    else:
        rows = np.ascontiguousarray(centered, dtype=np.float32)
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows)
        candidates = index.search(rows, n_candidates)[1]
    distances, indices = _ordered(centered, candidates, k)
    return Neighbors(distances, indices, "scikit-learn" if faiss is None else "faiss")


def _faiss() -> Any:  # Any: faiss is not typed
    """Faiss, or None where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def _ordered(
    points: NDArray[np.float64], candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances to the candidates anew, the `k` nearest in order; a cell itself comes last."""
    distances = np.empty((len(points), k))
    indices = np.empty((len(points), k), dtype=np.int64)
    size = max(1, _BLOCK_VALUES // max(1, candidates.shape[1] * points.shape[1]))
    for start in range(0, len(points), size):
        rows = np.arange(start, min(start + size, len(points)))
        found = candidates[rows]
        apart = np.sqrt(((points[rows, None, :] - points[found]) ** 2).sum(axis=2))
        apart[found == rows[:, None]] = np.inf
        order = np.argsort(apart, axis=1, kind="stable")[:, :k]
        distances[rows] = np.take_along_axis(apart, order, axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
    return distances, indices
