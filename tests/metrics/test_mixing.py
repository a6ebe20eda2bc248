"""Scores of mixing against slow references, cases with a known answer, and the numbers of scib-metrics and scanpy."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.mixing import (
    graph_connectivity,
    kbet_accepted,
    lisi,
    mean_by,
    own_batch,
    scaled_clisi,
    scaled_ilisi,
)
from scamac_scale.metrics.neighbors import Neighbors, find_neighbors
from tests.support.mixing import waves

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCIB_METRICS = {
    "waves": {
        "lisi_first": [2.9410204581330106, 2.780982197484728, 2.8137244244339, 2.9392493718708826],
        "lisi_mean": 2.79513345130031,
        "lisi_median": 2.8042323022948206,
        "ilisi_knn": 0.9021161511474103,
        "clisi_median": 1.9256843039863394,
        "clisi_knn": 0.6914385653378868,
        "kbet": 0.995,
        "kbet_statistic_mean": 0.9802401526203569,
        "connectivity": 1.0,
    },
    "mix_cel_4batch": {
        "lisi_first": [1.012811629830952, 1.004273556682304, 1.0005688775502537, 1.0053198139146748],
        "lisi_mean": 1.700600213141399,
        "lisi_median": 1.5854900967558727,
        "ilisi_knn": 0.1951633655852909,
        "clisi_median": 1.0008923458929957,
        "clisi_knn": 0.9997769135267511,
        "kbet": 0.0,
        "kbet_statistic_mean": 59.871585353977984,
        "connectivity": 0.7228374756335283,
    },
    "mix_cel_4batch, batches permuted": {
        "lisi_first": [3.228188306906282, 3.671347238839056, 2.5069478338127222, 3.426411572646025],
        "lisi_mean": 3.3333795379921325,
        "lisi_median": 3.3649474432406343,
        "ilisi_knn": 0.7883158144135448,
        "clisi_median": 1.0008923458929957,
        "clisi_knn": 0.9997769135267511,
        "kbet": 0.93711467324291,
        "kbet_statistic_mean": 2.7172243196476327,
        "connectivity": 0.7228374756335283,
    },
}
"""scib-metrics 0.5.10 with JAX_ENABLE_X64=1, jax 0.10.2, on 90 neighbours of scikit-learn 1.9.1
(``NearestNeighbors(n_neighbors=90, algorithm="brute").fit(z).kneighbors(z)``, each cell its own first), as ``NeighborsResults``:
``lisi_knn``, ``ilisi_knn``, ``clisi_knn`` at their defaults (perplexity 30), ``kbet`` of ``subset_neighbors(50)``.

z of the real set: counts to 10,000 a cell, log1p, ``PCA(20, svd_solver="full")`` in float64; batches ``batch``, labels ``cell_type``,
permuted with ``np.random.default_rng(0).permutation(batch)``. ``connectivity`` is scIB's: scanpy 1.11.5,
``pp.neighbors(n_neighbors=15)`` and strongly connected parts of ``obsp["connectivities"]`` in each label; scib-metrics' own, of directed
neighbours, is 0.7142 of the real set.
"""


def slow_lisi(
    distances: NDArray[np.float64], indices: NDArray[np.int64], codes: NDArray[np.int64], perplexity: float
) -> list[float]:
    """Korsunsky et al. 2019, online methods, in loops: weights exp(-beta d) of entropy log(perplexity), then 1 / sum of squared shares."""
    found = []
    for row in range(len(indices)):

        def soft(beta: float, row: int = row) -> list[float]:
            raw = [math.exp(-beta * (d - min(distances[row]))) for d in distances[row]]
            return [value / sum(raw) for value in raw]

        low, high = 0.0, 1e6
        for _ in range(100):
            beta = (low + high) / 2
            entropy = -sum(p * math.log(p) for p in soft(beta) if p > 0)
            low, high = (beta, high) if entropy > math.log(perplexity) else (low, beta)
        shares: dict[int, float] = {}
        for p, other in zip(soft(low), indices[row], strict=True):
            shares[codes[other]] = shares.get(codes[other], 0.0) + p
        found.append(1 / sum(share**2 for share in shares.values()))
    return found


@cache
def real() -> tuple[NDArray[np.float64], ad.AnnData]:
    """Principal components and cells of the real set."""
    from sklearn.decomposition import PCA

    path = Path(os.environ.get("SCAMAC_DATA", "")) / "mix_cel_4batch.h5ad"
    if "SCAMAC_DATA" not in os.environ or not path.is_file():
        pytest.skip("SCAMAC_DATA names no folder with mix_cel_4batch.h5ad")
    adata = ad.read_h5ad(path)
    counts = adata.X.toarray().astype(np.float64)
    points = PCA(20, svd_solver="full").fit_transform(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)))
    return points, adata


def cells_of(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Points, batches and labels that the peers were run on."""
    if name == "waves":
        return waves()
    points, adata = real()
    batches, labels = (adata.obs[column].to_numpy() for column in ("batch", "cell_type"))
    if name.endswith("permuted"):
        batches = np.random.default_rng(0).permutation(batches)
    return points, np.unique(batches, return_inverse=True)[1], np.unique(labels, return_inverse=True)[1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name.startswith("mix_cel") else name for name in SCIB_METRICS],
)
def test_scores_are_those_of_scib_metrics_and_scib(name: str) -> None:
    points, batches, labels = cells_of(name)
    expected = SCIB_METRICS[name]
    neighbors = find_neighbors(points, 89)
    of_batches = lisi(neighbors.distances, neighbors.indices, batches)
    of_labels = lisi(neighbors.distances, neighbors.indices, labels)
    accepted, statistic = kbet_accepted(neighbors.nearest(49).indices, batches)
    found = {
        "lisi_first": of_batches[:4].tolist(),
        "lisi_mean": of_batches.mean(),
        "lisi_median": np.median(of_batches),
        "ilisi_knn": scaled_ilisi(of_batches, batches.max() + 1),
        "clisi_median": np.median(of_labels),
        "clisi_knn": scaled_clisi(of_labels, labels.max() + 1),
        "kbet": accepted,
        "kbet_statistic_mean": statistic.mean(),
        "connectivity": graph_connectivity(neighbors.nearest(14).indices, labels),
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key  # the tolerance of the entropy; both bisect alike


def test_lisi_is_that_of_the_paper() -> None:
    points, batches, _ = waves()
    neighbors = find_neighbors(points[:60], 30)
    found = lisi(neighbors.distances, neighbors.indices, batches[:60], perplexity=12)
    expected = slow_lisi(neighbors.distances, neighbors.indices, batches[:60], 12)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # the entropy is met within 1e-5, theirs within rounding


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_lisi_has_no_unit_and_bears_far_neighbours(scale: float, offset: float) -> None:
    """Distances of 10,000 and more would leave every weight 0 at the first beta."""
    distances = np.sort(np.random.default_rng(0).exponential(size=(50, 89)), axis=1)
    indices = np.tile(np.arange(89), (50, 1))
    codes = np.arange(89) % 3
    rows = np.zeros((89 - 50, 89))
    expected = lisi(np.vstack([distances, rows]), np.vstack([indices, indices[:39]]), codes)[:50]
    found = lisi(np.vstack([(distances + offset) * scale, rows]), np.vstack([indices, indices[:39]]), codes)[:50]
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # the entropy within 1e-5, from another first beta


def separate(n_levels: int = 3, n_cells: int = 300) -> tuple[Neighbors, NDArray[np.int64]]:
    codes = np.arange(n_cells) % n_levels
    points = np.random.default_rng(1).normal(size=(n_cells, 2)) + 1e3 * codes[:, None]
    return find_neighbors(points, 89), codes


def test_levels_that_lie_apart_score_as_apart() -> None:
    neighbors, codes = separate()
    values = lisi(neighbors.distances, neighbors.indices, codes)
    np.testing.assert_allclose(values, 1.0)
    assert scaled_ilisi(values, 3) == pytest.approx(0.0)
    assert scaled_clisi(values, 3) == pytest.approx(1.0)
    assert kbet_accepted(neighbors.nearest(49).indices, codes)[0] == 0.0
    assert graph_connectivity(neighbors.nearest(14).indices, codes) == 1.0
    np.testing.assert_allclose(own_batch(neighbors.indices, codes, np.zeros_like(codes)).excess, 1.0)


def test_neighbours_of_all_batches_alike_score_as_mixed() -> None:
    """Points on a ring in which the batches take turns, all at one distance."""
    row = np.arange(90)
    indices = np.stack([(row + step) % 90 for step in (*range(1, 31), *range(-30, 0))], axis=1)
    codes = row % 3
    values = lisi(np.ones(indices.shape), indices, codes, perplexity=20)
    np.testing.assert_allclose(values, 3.0)
    assert scaled_ilisi(values, 3) == pytest.approx(1.0)
    assert kbet_accepted(indices, codes)[0] == 1.0
    own = own_batch(indices, codes, np.zeros_like(codes))
    np.testing.assert_allclose(own.found, 1 / 3)
    np.testing.assert_allclose(own.expected, 29 / 89)  # the cell itself is never a neighbour


def test_a_label_in_two_parts_is_connected_by_the_larger() -> None:
    """Label 0: a chain of three and a pair; label 1: one cell, whose neighbours are of label 0."""
    indices = np.array([[1], [0], [1], [4], [3], [0]])
    assert graph_connectivity(indices, np.array([0, 0, 0, 0, 0, 1])) == pytest.approx((3 / 5 + 1) / 2)


def test_kbet_is_the_test_of_scipy() -> None:
    from scipy.stats import chisquare

    points, batches, _ = waves()
    indices = find_neighbors(points, 24).indices
    accepted, statistic = kbet_accepted(indices, batches)
    expected = 25 * np.bincount(batches) / len(batches)
    tests = [
        chisquare(np.bincount(batches[[row, *indices[row]]], minlength=3), expected) for row in range(len(batches))
    ]
    np.testing.assert_allclose(statistic, [test.statistic for test in tests], rtol=1e-10)
    assert accepted == pytest.approx(np.mean([test.pvalue >= 0.05 for test in tests]))


def test_a_type_that_one_batch_alone_has_does_not_count_against_it() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], [300, 200])
    batches = np.where(groups == 1, 0, np.arange(500) % 2)  # group 1 is of batch 0 only
    neighbors = find_neighbors(rng.normal(size=(500, 3)) + 100 * groups[:, None], 50)
    aware, unaware = (own_batch(neighbors.indices, batches, known).excess for known in (groups, 0 * groups))
    np.testing.assert_allclose(aware, 0.0, atol=0.05)  # neighbours are a sample
    assert unaware[0] > 0.25
    assert np.isnan(own_batch(neighbors.indices, groups, groups).excess).all()  # nothing could mix


def test_own_neighbours_are_counted_as_in_a_loop() -> None:
    points, batches, labels = waves()
    indices = find_neighbors(points, 7).indices
    found = own_batch(indices, batches, labels)
    own, expected = np.zeros(400), np.zeros(400)
    for cell in range(400):
        others = np.arange(400) != cell
        own[cell] = np.mean([batches[other] == batches[cell] for other in indices[cell]])
        expected[cell] = np.mean(
            [np.mean(batches[others & (labels == labels[other])] == batches[cell]) for other in indices[cell]]
        )
    for values, mean in ((own, found.found), (expected, found.expected)):
        np.testing.assert_allclose(mean, [values[batches == batch].mean() for batch in range(3)], rtol=1e-10)


def test_a_level_without_cells_has_no_mean() -> None:
    np.testing.assert_array_equal(mean_by(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2])), [2.0, np.nan, 5.0])


def test_what_does_not_fit_is_refused() -> None:
    indices = np.zeros((4, 3), dtype=int)
    with pytest.raises(ShapeError, match=r"codes \(5,\)"):
        graph_connectivity(indices, np.zeros(5, dtype=int))
    with pytest.raises(ShapeError, match=r"distances \(4, 2\)"):
        lisi(np.zeros((4, 2)), indices, np.zeros(4, dtype=int))
    with pytest.raises(InputError, match="too few for a perplexity of 30"):
        lisi(np.zeros((4, 3)), indices, np.zeros(4, dtype=int), perplexity=30)
    with pytest.raises(InputError, match="one batch only"):
        kbet_accepted(indices, np.zeros(4, dtype=int))
