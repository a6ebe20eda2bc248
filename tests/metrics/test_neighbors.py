from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics import neighbors
from scamac_scale.metrics.neighbors import find_neighbors


def slow(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(apart, axis=1)[:, :k]
    return np.take_along_axis(apart, order, axis=1), order


@pytest.mark.parametrize("by", ["scikit-learn", "faiss"])
def test_the_nearest_others_are_found_even_far_from_the_origin(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(neighbors, "FAISS_CELLS", 2)
    points = np.random.default_rng(0).normal(size=(500, 7)) + 1e4  # sums of squares cancel here
    found = find_neighbors(points, 20)
    distances, indices = slow(points, 20)
    assert found.by == by
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9)  # points at 1e4 have 12 digits left
    np.testing.assert_array_equal(found.nearest(5).indices, indices[:, :5])


def test_cells_of_one_place_are_neighbours_at_distance_zero_and_none_is_its_own() -> None:
    found = find_neighbors(np.repeat([[0.1, 0.2], [5.0, 5.0]], 30, axis=0), 10)
    assert (found.distances == 0).all()
    assert (found.indices != np.arange(60)[:, None]).all()
    assert (found.indices[:30] < 30).all()


def test_there_are_no_more_neighbours_than_other_cells() -> None:
    assert find_neighbors(np.arange(5.0)[:, None], 90).indices.shape == (5, 4)


def test_without_faiss_scikit_learn_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(neighbors, "FAISS_CELLS", 2)
    monkeypatch.setattr(importlib, "import_module", absent)
    assert find_neighbors(np.arange(30.0)[:, None], 3).by == "scikit-learn"


def test_points_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        find_neighbors(np.zeros(4), 2)
    with pytest.raises(InputError, match="at least 2"):
        find_neighbors(np.zeros((1, 2)), 2)
    with pytest.raises(InputError, match="not finite"):
        find_neighbors(np.array([[0.0], [np.nan], [1.0]]), 2)
