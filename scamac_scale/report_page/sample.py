"""Cells that stand for all in a picture, their latents, and where they lie in two dimensions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import choose
from scamac_scale.host.compiled import kept_for_libraries
from scamac_scale.infer.output.table import LATENT_KEY
from scamac_scale.ingestion.files import place_of
from scamac_scale.ingestion.open import open_obsm
from scamac_scale.metrics.neighbors import find_neighbors
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.report_page.gather import ResultFacts

NEIGHBORS = 15
"""Of a cell in UMAP, itself counted; its default."""
MIN_DIST = 0.5
"""Of UMAP, as scanpy has it: with its own default, clusters are dots far apart."""
LEAST_CELLS = 50
"""Of each cluster that are drawn before shares are by the square root; all of a smaller one."""
FEW_CELLS = 10
"""Up to here no layout is made, cells lie by their first two principal components."""


def draw_by_root(codes: IntArray, size: int, seed: int = 0) -> IntArray:
    """Draw cells of all clusters, each with a share by the square root of its size.

    Parameters
    ----------
    codes
        (N,) cluster of each cell.
    size
        Cells to draw.
    seed
        The same cells for the same seed.

    Returns
    -------
    IntArray
        (at most `size`,) rows, in order: a small cluster keeps all its cells before a large one fills the picture.
    """
    if len(codes) <= size:
        return np.arange(len(codes))
    counts = np.bincount(codes)
    taken = quotas(counts, size)
    order = numpy_generator(seed, "report sample").permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    place = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: IntArray = np.sort(order[place < np.repeat(taken, counts)])
    return rows


def quotas(counts: IntArray, size: int) -> IntArray:
    """Give (K,) cells of each cluster, at most `size` in all: `LEAST_CELLS` of it, as far as there is room, the rest by square roots."""
    own = np.minimum(counts, min(LEAST_CELLS, size // max(2 * int((counts > 0).sum()), 1)))
    more, room = counts - own, float(size - own.sum())
    taken: IntArray = own.astype(np.int64)
    is_open = more > 0
    while is_open.any():
        share = room * np.sqrt(more) / np.sqrt(more[is_open]).sum()
        full = is_open & (share >= more)
        if not full.any():
            taken[is_open] += np.floor(share[is_open]).astype(np.int64)
            break
        taken[full] += more[full]
        room -= float(more[full].sum())
        is_open &= ~full
    return taken


def read_latent(result: ResultFacts, rows: IntArray) -> FloatArray:
    """(n, D) latents of some cells, (n,) in ascending order, by blocks of all."""
    points = []
    with (
        open_obsm(place_of(result.path), LATENT_KEY) as latent,
        track("read latents", result.n_cells, "cells") as progress,
    ):
        for start, block in latent.blocks():
            low, high = np.searchsorted(rows, (start, start + len(block)))
            points.append(block[rows[low:high] - start])
            progress.advance(len(block))
    return np.concatenate(points)


def lay_out(points: FloatArray, layout: str, seed: int = 0) -> FloatArray:
    """Lay cells out in two dimensions.

    Parameters
    ----------
    points
        (n, D) latents.
    layout
        A key of `LAYOUTS`.
    seed
        The same picture for the same seed, on one kind of machine.

    Returns
    -------
    FloatArray
        (n, 2) float32.
    """
    make = choose(LAYOUTS, layout, "layout")
    if len(points) <= FEW_CELLS:
        return _principal(points)
    found: FloatArray = np.asarray(make(points, seed), dtype=np.float32)
    return found


def _principal(points: FloatArray) -> FloatArray:
    """(n, 2) first two principal components, the first of standard deviation 1."""
    centered = np.asarray(points, dtype=np.float64) - points.mean(axis=0)
    covariance = centered.T @ centered
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :2]
    found = np.zeros((len(points), 2))
    found[:, : axes.shape[1]] = centered @ axes
    return (found / max(float(found[:, 0].std()), 1e-12)).astype(np.float32)


def _umap(points: FloatArray, seed: int) -> Any:  # Any: as umap gives it
    """UMAP of exact neighbours, begun with the principal components: an approximate search would be compiled first."""
    k = min(NEIGHBORS, len(points)) - 1
    near = find_neighbors(points, k)
    own = np.arange(len(points))[:, None]
    indices = np.hstack([own, near.indices])
    distances = np.hstack([np.zeros((len(points), 1)), near.distances]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one thread is used, and that other points could not be placed
        with kept_for_libraries():
            from umap import UMAP

        made = UMAP(
            n_neighbors=k + 1,
            min_dist=MIN_DIST,
            precomputed_knn=(indices, distances, None),
            init=10 * _principal(points),
            random_state=seed,
            n_jobs=1,
        )
        return made.fit_transform(np.asarray(points, dtype=np.float32))


def _tsne(points: FloatArray, seed: int) -> Any:  # Any: as scikit-learn gives it
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TSNE(2, init=_principal(points) * 1e-4, perplexity=perplexity, random_state=seed).fit_transform(points)


LAYOUTS = {"umap": _umap, "tsne": _tsne}
"""Ways to lay cells out, by the names of `config.Layout`."""
