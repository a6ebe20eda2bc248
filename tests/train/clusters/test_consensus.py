import numpy as np
import pytest

from scamac_scale.train.clusters.consensus import (
    Consensus,
    Member,
    build_spaces,
    cluster_means,
    co_association,
    consensus_tree,
    find_consensus,
    noise_whitening,
    principal_axes,
)
from tests.support.points import blobs

TRUTH = np.repeat(np.arange(4), 40)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a[None]) == (b[:, None] == b[None])).all())


def test_principal_axes_are_orthonormal_and_sorted_by_variance() -> None:
    points = blobs()
    mean, axes = principal_axes(points, 4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-12)
    variance = ((points - mean) @ axes).var(axis=0)
    assert (np.diff(variance) <= 0).all()


def test_whitening_makes_the_local_noise_the_identity() -> None:
    points = blobs() * np.array([1, 5, 0.2, 1, 3, 1])
    from scamac_scale.train.clusters.graph import nearest_neighbors

    _, indices = nearest_neighbors(points, 10)
    noise = (points - points[indices].mean(axis=1)) @ noise_whitening(points)
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(6), atol=1e-8)


def test_spaces_beyond_the_rank_are_dropped() -> None:
    spaces = build_spaces({"input": blobs(width=6)}, (4, 10, 40))
    assert [len(space.mixing) for space in spaces] == [4, 4, 6, 6]


def test_co_association_is_the_weighted_share_of_members() -> None:
    members = (
        Member(0, "ward", np.array([0, 0, 1]), 1.0),
        Member(0, "leiden", np.array([0, 1, 1]), 3.0),
    )
    np.testing.assert_allclose(co_association(members), [[1, 0.25, 0], [0.25, 1, 0.75], [0, 0.75, 1]])


@pytest.mark.parametrize("n_clusters", [1, 4, 9])
def test_the_tree_is_cut_into_exactly_the_clusters_asked_for(n_clusters: int) -> None:
    points = blobs()
    consensus = find_consensus({"input": points}, n_clusters, components=(4,), cut_height=0.6, seed=0)
    assert consensus.n_clusters == n_clusters
    np.testing.assert_array_equal(consensus.labels, consensus.tree.labels(n_clusters))


def test_cut_at_a_height_separates_what_no_member_joins() -> None:
    tree = consensus_tree([Member(0, "ward", np.repeat(np.arange(3), 5), 1.0)])
    assert tree.count_at(0.6) == 3
    assert same_partition(tree.labels(3), np.repeat(np.arange(3), 5))


def test_neighbours_on_the_tree_have_neighbouring_numbers_and_the_larger_side_comes_first() -> None:
    labels = [[0, 0, 0, 1, 1, 2, 3, 3, 3, 3], [0, 0, 0, 1, 1, 1, 3, 3, 3, 3], [3, 3, 3, 1, 1, 1, 3, 3, 3, 3]]
    tree = consensus_tree([Member(0, "ward", np.array(member), 1.0) for member in labels])
    np.testing.assert_array_equal(tree.labels(4), [1, 1, 1, 2, 2, 3, 0, 0, 0, 0])
    heavy = consensus_tree(
        [Member(0, "ward", np.array(member), 1.0) for member in labels], np.where(np.arange(10) < 3, 9.0, 1.0)
    )
    np.testing.assert_array_equal(heavy.labels(4), [0, 0, 0, 2, 2, 3, 1, 1, 1, 1])  # weights count, not landmarks


def test_a_landmark_that_stands_for_many_is_many_landmarks() -> None:
    rng = np.random.default_rng(4)
    codes, weights = rng.integers(0, 4, (30, 9)), rng.integers(1, 5, 30)
    members = [Member(0, "ward", column, 1.0) for column in codes.T]
    repeated = [Member(0, "ward", np.repeat(column, weights), 1.0) for column in codes.T]
    tree, expected = consensus_tree(members, weights), consensus_tree(repeated)
    np.testing.assert_allclose(tree.merges[:, 2], expected.merges[-29:, 2], atol=1e-10)
    np.testing.assert_array_equal(tree.merges[-1, 3], weights.sum())


def test_a_consensus_comes_back_from_plain_data() -> None:
    found = find_consensus({"input": blobs()}, 4, components=(4,), cut_height=0.6, seed=0)
    again = Consensus.from_plain(found.to_plain())
    np.testing.assert_array_equal(again.tree.merges, found.tree.merges)
    np.testing.assert_array_equal(again.tree.labels(4), found.labels)


def test_a_number_that_is_found_gives_what_the_same_number_told_gives() -> None:
    sources = {"input": blobs()}
    found = find_consensus(sources, None, components=(3, 6), cut_height=0.6, seed=0)
    told = find_consensus(sources, found.n_clusters, components=(3, 6), cut_height=0.6, seed=0)
    np.testing.assert_array_equal(found.labels, told.labels)
    np.testing.assert_array_equal(found.tree.merges, told.tree.merges)
    for one, other in zip(found.members, told.members, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def test_consensus_finds_the_groups_without_being_told_their_number() -> None:
    consensus = find_consensus({"input": blobs()}, None, components=(3, 6), cut_height=0.6, seed=0)
    assert same_partition(consensus.labels, TRUTH)
