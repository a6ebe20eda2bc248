"""Few cells that lie apart are a cluster of their own, where they are asked for."""

import numpy as np

from scamac_scale.cells.arrays import FloatArray, IntArray
from scamac_scale.train.clusters.apart import groups_apart, member_apart
from scamac_scale.train.clusters.consensus import find_consensus

RARE = slice(70, 74)


def landmarks(gap: float) -> tuple[FloatArray, IntArray]:
    """Two common kinds of 35 and 40 landmarks, and four landmarks of a rare one within the second, beside it by `gap`."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(79, 6))
    points[:35, 0] += 12.0
    points[RARE, 1] += gap
    return points, np.where((np.arange(79) >= 70) & (np.arange(79) < 74), 12, 100)


def test_a_small_group_behind_a_gap_is_found_and_a_common_kind_is_not() -> None:
    points, weights = landmarks(12.0)
    found = groups_apart(points, weights)
    np.testing.assert_array_equal(np.flatnonzero(found), np.arange(79)[RARE])
    assert set(found.tolist()) == {0, 1}
    assert not groups_apart(points, np.full(79, 100)).any()  # 5 % of the cells
    assert not groups_apart(points, np.where(weights == 12, 2, 100)).any()  # 8 cells
    assert not groups_apart(landmarks(0.0)[0], weights).any()
    points[72:74] = points[60:62]  # two landmarks are left
    assert not groups_apart(points, weights).any()


def test_groups_are_numbered_by_their_first_landmarks() -> None:
    points, weights = landmarks(12.0)
    points[2:5, 2], weights[2:5] = 40.0, 10
    found = groups_apart(points, weights)
    assert found[2:5].tolist() == [1, 1, 1]
    assert found[RARE].tolist() == [2] * 4
    assert np.count_nonzero(found) == 7


def test_the_same_group_in_another_order_of_landmarks() -> None:
    points, weights = landmarks(12.0)
    order = np.random.default_rng(1).permutation(79)
    np.testing.assert_array_equal(groups_apart(points[order], weights[order]), groups_apart(points, weights)[order])


def test_one_of_the_clusters_that_are_told_is_the_rare_one_only_where_it_is_asked_for() -> None:
    points, weights = landmarks(12.0)
    points[:18, 3] += 8.0  # three common kinds
    sources, rare = {"input": points}, np.isin(np.arange(79), np.arange(79)[RARE])

    assert member_apart(points, weights.astype(float), (), 2) is None  # a single one would be left for the rest

    def is_found(finds_rare: bool) -> bool:
        found = find_consensus(
            sources, weights.astype(float), 3, components=(4,), cut_height=None, seed=0, finds_rare=finds_rare
        )
        assert found.n_clusters == 3
        np.testing.assert_array_equal(found.tree.labels(3), found.labels)  # a cut of the tree that is kept
        of = found.labels[rare]
        return len(set(of.tolist())) == 1 and not (found.labels[~rare] == of[0]).any()

    assert not is_found(False)
    assert is_found(True)
