import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from scamac_scale.errors import ConfigError, ShapeError
from scamac_scale.ops.linkage import clusters_below, cut, leaf_order, weighted_linkage


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a[None]) == (b[:, None] == b[None])).all())


def values_of(points: np.ndarray, method: str) -> np.ndarray:
    return points if method == "ward" else squareform(pdist(points))


def random_points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)) * np.array([3.0, 1.0, 0.3])


@pytest.mark.parametrize("method", ["average", "ward"])
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_a_tree_of_weights_is_scipys_of_repeated_points(method: str, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(size=(n, 3)), rng.integers(1, 6, n)
    tree = weighted_linkage(values_of(points, method), weights.astype(float), method)
    repeated = np.repeat(points, weights, axis=0)
    if len(repeated) == 1:
        assert tree.shape == (0, 4)
        return
    expected = hierarchy.linkage(pdist(repeated), method)
    np.testing.assert_allclose(tree[:, 2], expected[len(repeated) - n :, 2], atol=1e-10, rtol=1e-10)
    assert tree[-1:, 3].sum() == pytest.approx(len(repeated) if n > 1 else 0)
    order = leaf_order(tree, weights)
    first = np.cumsum(weights) - weights
    for k in {1, (n + 1) // 2, n}:
        found = hierarchy.fcluster(expected, k, "maxclust")[first] if k > 1 else np.zeros(n)
        assert same_partition(cut(tree, k, order), found)


@pytest.mark.parametrize("method", ["average", "ward"])
def test_a_tree_of_weight_one_is_scipys(method: str) -> None:
    values = values_of(random_points(200, 3), method)
    tree = weighted_linkage(values, None, method)
    expected = hierarchy.linkage(values if method == "ward" else squareform(values), method)
    np.testing.assert_array_equal(tree[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(tree[:, 2], expected[:, 2], rtol=1e-10)


def test_ties_are_broken_as_scipy_breaks_them() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (120, 4))
    apart = np.array([[(a != b).sum() for b in codes] for a in codes]) / 4.0
    tree = weighted_linkage(apart, np.ones(120), "average")
    np.testing.assert_array_equal(tree, hierarchy.linkage(squareform(apart), "average"))


def test_a_tree_in_single_precision_is_near_that_in_double() -> None:
    values = values_of(random_points(80, 1), "average")
    tree = weighted_linkage(values.astype(np.float32), None, "average")
    np.testing.assert_allclose(tree[:, 2], weighted_linkage(values, None, "average")[:, 2], rtol=1e-5)


def test_given_dissimilarities_are_kept_unless_they_may_be_overwritten() -> None:
    values = values_of(random_points(20, 2), "average")
    before = values.copy()
    tree = weighted_linkage(values, None, "average")
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(weighted_linkage(values, None, "average", overwrite=True), tree)


def test_leaves_of_every_cluster_stand_together_and_the_heavier_side_comes_first() -> None:
    points, weights = random_points(40, 5), np.random.default_rng(5).integers(1, 9, 40).astype(float)
    tree = weighted_linkage(points, weights, "ward")
    order = leaf_order(tree, weights)
    assert sorted(order) == list(range(40))
    for k in range(1, 41):
        labels = cut(tree, k, order)
        assert (np.diff(labels[order]) >= 0).all()
        assert set(labels) == set(range(k))
    halves = np.bincount(cut(tree, 2, order), weights)
    assert halves[0] >= halves[1]


def test_clusters_of_a_coarser_cut_have_numbers_in_a_row() -> None:
    points = random_points(60, 8)
    tree = weighted_linkage(points, None, "ward")
    order = leaf_order(tree, np.ones(60))
    fine, coarse = cut(tree, 9, order), cut(tree, 4, order)
    above = [set(coarse[fine == k]) for k in range(9)]
    assert all(len(found) == 1 for found in above)
    assert (np.diff([found.pop() for found in above]) >= 0).all()


def test_a_cut_at_a_height_joins_what_is_joined_at_most_so_high() -> None:
    apart = np.array([[0, 0.2, 0.8], [0.2, 0, 0.8], [0.8, 0.8, 0]])
    tree = weighted_linkage(apart, None, "average")
    assert [clusters_below(tree, height) for height in (0.0, 0.1, 0.2, 0.5, 1.0)] == [3, 3, 2, 2, 1]


def test_points_without_end_between_them_are_joined_last() -> None:
    apart = np.full((4, 4), np.inf)
    apart[0, 1] = apart[1, 0] = 1.0
    tree = weighted_linkage(apart, None, "average")
    np.testing.assert_array_equal(tree[0], [0, 1, 1, 2])
    assert np.isinf(tree[1:, 2]).all()


@pytest.mark.parametrize("n_clusters", [0, 6, -1])
def test_a_tree_is_not_cut_into_more_clusters_than_points_or_fewer_than_one(n_clusters: int) -> None:
    tree = weighted_linkage(random_points(5, 0), None, "ward")
    with pytest.raises(ValueError, match="5 points cannot be cut"):
        cut(tree, n_clusters, leaf_order(tree, np.ones(5)))


def test_what_is_no_set_of_weighted_points_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected"):
        weighted_linkage(np.zeros((3, 2)), None, "average")
    with pytest.raises(ShapeError, match="expected"):
        weighted_linkage(np.zeros((3, 2)), np.ones(2), "ward")
    with pytest.raises(ValueError, match="positive"):
        weighted_linkage(np.zeros((3, 2)), np.array([1.0, 0.0, 2.0]), "ward")
    with pytest.raises(ConfigError, match="single"):
        weighted_linkage(np.zeros((3, 3)), None, "single")  # type: ignore[arg-type]  # not a choice
