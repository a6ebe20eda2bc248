from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from scamac_scale.ops.tree import Tree, check_tree, drawing, joined_at
from tests.support.trees import some_tree


def test_a_finer_cluster_lies_in_one_coarser() -> None:
    tree = some_tree()
    for fine, coarse in ((12, 5), (5, 5), (40, 1)):
        np.testing.assert_array_equal(tree.coarser(fine, coarse)[tree.labels(fine)], tree.labels(coarse))


def test_a_cut_at_a_height_has_the_clusters_that_are_joined_below() -> None:
    tree = some_tree()
    for height in (0.2, 0.5, 0.7):
        expected = hierarchy.fcluster(tree.top(len(tree)), height, "distance")
        assert tree.count_at(height) == expected.max()
    assert tree.count_at(1.0) == 1


def test_the_top_of_a_tree_is_a_tree_of_clusters() -> None:
    tree = some_tree()
    top = tree.top(9)
    assert hierarchy.is_valid_linkage(top)
    below = tree.labels(9)
    joined = joined_at(top)
    np.testing.assert_allclose(joined, squareform(hierarchy.cophenet(top)))
    number = tree.labels(len(tree))  # of each landmark, from left to right
    cophenetic = squareform(hierarchy.cophenet(tree.top(len(tree))))[number[:, None], number[None]]
    apart = below[:, None] != below[None]
    np.testing.assert_allclose(joined[below[:, None], below[None]][apart], cophenetic[apart])
    assert tree.top(1).shape == (0, 4)
    np.testing.assert_allclose(tree.top(len(tree))[:, 2], tree.merges[:, 2])


def test_a_dendrogram_is_drawn_as_scipy_draws_it() -> None:
    top = some_tree().top(9)
    found, expected = drawing(top), hierarchy.dendrogram(top, no_plot=True)
    order = np.argsort(top[:, 2], kind="stable")
    assert set(found) == set(expected)
    assert sorted(found["leaves"]) == sorted(expected["leaves"])
    heights = np.sort(np.array(expected["dcoord"])[:, 1])
    np.testing.assert_allclose(found["dcoord"][order, 1], heights)
    assert found["icoord"].min() == 5.0
    assert found["icoord"].max() == 85.0
    assert (found["icoord"][:, 0] < found["icoord"][:, 2]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda merges: merges[:-1],
        lambda merges: merges[:, :3],
        lambda merges: np.where(merges == merges[5, 0], 1e6, merges),
        lambda merges: np.where(merges == merges[5, 0], merges[7, 0], merges),
        lambda merges: np.where(merges == merges[5, 0], 0.5, merges),
        lambda merges: merges * np.array([1, 1, -1, 1]),
        lambda merges: merges * np.array([1, 1, 3, 1]),
        lambda merges: merges * np.array([1, 1, np.nan, 1]),
        lambda merges: merges[::-1],
    ],
)
def test_what_is_no_tree_is_refused(change: object) -> None:
    tree = some_tree()
    check_tree(tree.merges, tree.weights)
    assert callable(change)
    with pytest.raises(ValueError, match="tree"):
        check_tree(change(tree.merges.copy()), tree.weights)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.inf])
def test_landmarks_that_weigh_nothing_are_refused(weight: float) -> None:
    tree = some_tree()
    with pytest.raises(ValueError, match="positive"):
        check_tree(tree.merges, np.where(np.arange(40) == 3, weight, tree.weights))


def test_a_tree_of_one_landmark_has_one_cluster() -> None:
    tree = Tree(np.zeros((0, 4)), np.ones(1))
    check_tree(tree.merges, tree.weights)
    np.testing.assert_array_equal(tree.labels(1), [0])
    assert tree.count_at(0.5) == 1
    assert replace(tree).top(1).shape == (0, 4)
