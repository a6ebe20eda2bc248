"""Harmony by sums over blocks of cells, r never kept, equals Harmony with all of r in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scamac_scale.config import CorrectionConfig
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.ops.harmony import Design, Layer, Reference, corrected, map_levels, soft_clusters
from scamac_scale.train.correction.harmony import Harmony
from scamac_scale.train.correction.points import Points, block_of
from tests.parity import harmony_reference as reference

WIDTH, CLUSTERS = 5, 7


def cells(n_cells: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Three types, shifted by the levels of each covariate; the last type is of level 0 only."""
    draw = np.random.default_rng(n_cells)
    levels = np.stack([draw.integers(0, count, n_cells) for count in counts], axis=1)
    types = np.where(levels[:, 0] == 0, draw.integers(0, 3, n_cells), draw.integers(0, 2, n_cells))
    z = draw.normal(size=(3, WIDTH))[types] * 3 + draw.normal(size=(n_cells, WIDTH))
    for column, count in enumerate(counts):
        z += draw.normal(size=(count, WIDTH))[levels[:, column]]
    return z - z.mean(axis=0), levels + np.cumsum([0, *counts[:-1]])


def one_hot(levels: np.ndarray, n_levels: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=n_levels) for row in levels]).astype(np.float64)


def run(
    z: np.ndarray, levels: np.ndarray, counts: tuple[int, ...], config: CorrectionConfig, device: str = "cpu"
) -> tuple[list[Layer], Reference, np.ndarray]:
    """Our layers, what they keep of the cells, and the first centers."""
    n_cells = len(z)
    points = Points(SweepPlan(n_cells, 64), levels, WIDTH, 3, dtype=np.float64)
    for start in range(0, n_cells, 64):
        points.write(np.arange(start, min(start + 64, n_cells)), z[start : start + 64])
    design = Design(counts, torch.from_numpy(np.bincount(levels.ravel(), minlength=sum(counts))).double().to(device))
    start_centers = np.random.default_rng(1).normal(size=(CLUSTERS, WIDTH))
    layers, kept = Harmony(points, design, config).run(torch.from_numpy(start_centers))
    return layers, kept, start_centers


@pytest.mark.parametrize(("counts", "rounds"), [((2,), 1), ((4,), 10), ((3, 2), 10)])
def test_layers_equal_the_form_with_all_of_r(counts: tuple[int, ...], rounds: int) -> None:
    z, levels = cells(300, counts)
    layers, kept, start = run(z, levels, counts, CorrectionConfig(rounds=rounds))
    slow = reference.Harmony(z, one_hot(levels, sum(counts)), counts, block_of(np.arange(len(z)), 3))
    expected = slow.run(start, rounds, 4)
    assert slow.n_rounds == len(layers)
    ours = corrected(torch.from_numpy(z), torch.from_numpy(levels), layers, 0.1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kept.sizes.numpy(), slow.r.sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(kept.sums.numpy(), slow.r.T @ expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_more_than_one_round_is_taken_and_the_stop_is_before_the_last() -> None:
    z, levels = cells(600, (4,))
    n_layers = len(run(z, levels, (4,), CorrectionConfig())[0])
    assert 1 < n_layers < 10


@pytest.mark.slow
def test_batches_are_made_alike_and_a_type_of_one_batch_stays_apart() -> None:
    z, levels = cells(900, (3,))
    layers, _, _ = run(z, levels, (3,), CorrectionConfig())
    ours = corrected(torch.from_numpy(z), torch.from_numpy(levels), layers, 0.1).numpy()

    def between(points: np.ndarray) -> float:
        own = levels[:, 0]
        means = np.stack([points[own == level].mean(axis=0) for level in range(3)])
        return float(((means - points.mean(axis=0)) ** 2).sum() / points.var(axis=0).sum())

    assert between(ours) < 0.2 * between(z)


@pytest.mark.parametrize("n_new", [1, 2])
def test_unknown_levels_equal_symphony(n_new: int) -> None:
    z, levels = cells(600, (2,))
    layers, kept, _ = run(z, levels, (2,), CorrectionConfig())
    draw = np.random.default_rng(0)
    new = draw.normal(size=(200, WIDTH)) + 1.0
    phi = one_hot(draw.integers(0, n_new, (200, 1)), n_new)
    expected = reference.symphony(new, phi, layers[-1].centers.numpy(), kept.sizes.numpy(), kept.sums.numpy())
    none = torch.zeros(len(new), 0, dtype=torch.int64)
    r = soft_clusters(torch.from_numpy(new), none, layers[-1].centers, layers[-1].penalty, 0.1)
    weighted = torch.einsum("bq,bl,bd->qld", r, torch.from_numpy(phi), torch.from_numpy(new))
    beta = map_levels(r.T @ torch.from_numpy(phi), weighted, kept)
    found = new - torch.einsum("bq,bl,lqd->bd", r, torch.from_numpy(phi), beta).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("counts", [(4,), (3, 2)])
def test_cuda_equals_cpu_in_float64(counts: tuple[int, ...]) -> None:
    z, levels = cells(600, counts)
    ours, expected = (run(z, levels, counts, CorrectionConfig(), device)[0] for device in ("cuda", "cpu"))
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        for part, like in zip(one, other, strict=True):
            torch.testing.assert_close(part.cpu(), like, rtol=1e-8, atol=1e-9)
