"""Samples of cells: rows and their input, the bank of the attention, k-means by faiss."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import MissingExtraError
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.ordered import RowsPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.randomness import integer_seed, numpy_generator
from scamac_scale.ranks.collectives import from_first
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import SWEEP_CELLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork

POINTS_PER_CENTER = 64
"""Cells that k-means looks at for each one it chooses."""

logger = logging.getLogger(__name__)


def sample_rows(n_cells: int, n_rows: int, seed: int, purpose: str) -> IntArray:
    """Draw rows without repeats, in ascending order; all of them where `n_rows` reaches `n_cells`."""
    if n_rows >= n_cells:
        return np.arange(n_cells)
    chosen = numpy_generator(seed, purpose).choice(n_cells, size=n_rows, replace=False, shuffle=False)
    return np.sort(chosen)


def read_cells(source: CellSource, rows: IntArray, network: ScamacNetwork) -> torch.Tensor:
    """Scaled input of some cells, (n, G) float32 on the CPU; for samples that fit memory."""
    return torch.cat([x.cpu() for x in _scaled(source, rows, network)])


def sample_batches(source: CellSource, rows: IntArray) -> Iterator[Batch]:
    """Read some cells, some at a time; as of `Feed.run`."""
    pieces = [rows[start : start + SWEEP_CELLS] for start in range(0, len(rows), SWEEP_CELLS)]
    with Feed(source) as feed:
        yield from feed.run(RowsPlan(pieces))


def _scaled(source: CellSource, rows: IntArray, network: ScamacNetwork) -> Iterator[torch.Tensor]:
    for batch in sample_batches(source, rows):
        yield network.cell_input(batch.values.to(network.gene_mean.device), levels_of(source, batch.rows))


def _random_rows(source: CellSource, network: ScamacNetwork, n_rows: int, seed: int, purpose: str) -> IntArray:
    return sample_rows(source.n_cells, n_rows, seed, purpose)


@torch.no_grad()
def embed_sample(source: CellSource, rows: IntArray, network: ScamacNetwork) -> torch.Tensor:
    """Latents of some cells, (n, D) float32 on the CPU; their input is never held together."""
    return torch.cat([network.embed(x).float().cpu() for x in _scaled(source, rows, network)])


def _kmeans_rows(source: CellSource, network: ScamacNetwork, n_rows: int, seed: int, purpose: str) -> IntArray:
    """Cells nearest to the centers of k-means on the latents of a sample, where sparse regions have more than their share."""
    rows = sample_rows(source.n_cells, POINTS_PER_CENTER * n_rows, seed, f"{purpose} points")
    if len(rows) <= n_rows:
        return rows
    points = embed_sample(source, rows, network).numpy()
    centers = faiss_kmeans(points, n_rows, integer_seed(seed, purpose)).centroids
    chosen = np.unique(_nearest_points(points, centers))
    # Two centers may have the same nearest cell: random ones make up the number.
    others = np.setdiff1d(np.arange(len(rows)), chosen, assume_unique=True)
    filled = numpy_generator(seed, f"{purpose} others").choice(others, n_rows - len(chosen), replace=False)
    found: IntArray = rows[np.sort(np.concatenate([chosen, filled]))]
    return found


def _nearest_points(points: FloatArray, centers: FloatArray) -> IntArray:
    index = import_faiss().IndexFlatL2(points.shape[1])
    index.add(points)
    nearest: IntArray = index.search(centers, 1)[1].ravel()
    return nearest


SELECTIONS: dict[str, Callable[[CellSource, ScamacNetwork, int, int, str], IntArray]] = {
    "random": _random_rows,
    "kmeans": _kmeans_rows,
}
"""Name to a function of source, network, number of rows, seed and purpose that gives ascending rows, no two alike: drawn at
random, or nearest to the centers of faiss k-means on latents, where sparse regions get more cells than their share."""


def choose_bank(
    source: CellSource,
    network: ScamacNetwork,
    choice: str,
    seed: int,
    world: World = ALONE,
) -> torch.Tensor:
    """Choose the cells of the bank.

    Parameters
    ----------
    source
        N cells.
    network
        Its bank says how many; its latents may serve the choice.
    choice
        Key of `SELECTIONS`; only random ones can be had before there are latents.
    seed
        Of the run.
    world
        This rank, and how many there are: rank 0 chooses.

    Returns
    -------
    Tensor
        (M, G) scaled input, on the CPU.
    """
    n_cells = len(network.bank_cells)
    rows = from_first(lambda: SELECTIONS[choice](source, network, n_cells, seed, "bank"), world)
    return read_cells(source, rows, network)


def faiss_kmeans(
    points: FloatArray, n_clusters: int, seed: int, *, n_runs: int = 1, weights: FloatArray | None = None
) -> Any:  # Any: faiss is not typed
    """k-means by faiss, on the GPU where faiss has one; for many points and many clusters.

    Parameters
    ----------
    points
        (n, D) float32.
    n_clusters
        Centers.
    seed
        Of the start: k-means++, by scikit-learn, since random points miss sparse regions.
    n_runs
        Starts; the best result is kept.
    weights
        (n,) how often each point counts; None counts them alike.

    Returns
    -------
    faiss.Kmeans
        With ``centroids`` and ``index``.

    Raises
    ------
    MissingExtraError
        If faiss is not installed.
    """
    from sklearn.cluster import kmeans_plusplus

    faiss = import_faiss()
    points = np.ascontiguousarray(points, dtype=np.float32)
    is_gpu = faiss_on_gpu()
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    best = None
    for run in range(n_runs):
        start, _ = kmeans_plusplus(points, n_clusters, sample_weight=weights, random_state=seed + run, n_local_trials=1)
        found = faiss.Kmeans(points.shape[1], n_clusters, niter=25, seed=seed, gpu=is_gpu, **limits)
        found.train(
            points, weights=None if weights is None else np.float32(weights), init_centroids=start.astype(np.float32)
        )
        if best is None or found.obj[-1] < best.obj[-1]:
            best = found
    return best


def faiss_on_gpu() -> bool:
    """Tell whether faiss is installed and sees a GPU."""
    try:
        import faiss
    except ImportError:
        return False
    return getattr(faiss, "get_num_gpus", lambda: 0)() > 0


def import_faiss() -> Any:  # Any: faiss is not typed
    """Import faiss, or say which extra brings it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "k-means by faiss (start.centers='faiss_kmeans', model.bank_choice='kmeans') needs faiss; "
            "install scamac-scale[cpu], or scamac-scale[gpu] where there is a GPU, or choose 'kmeans' for the centers and "
            "'random' for the bank."
        ) from error
    return faiss
