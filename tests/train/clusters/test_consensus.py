import numpy as np
import pytest

from scamac_scale.train.clusters.association import Member, co_association, consensus_tree
from scamac_scale.train.clusters.consensus import (
    METHODS,
    Consensus,
    build_spaces,
    cluster_means,
    cluster_members,
    find_consensus,
    noise_whitening,
    principal_axes,
)
from tests.support.points import blobs

TRUTH = np.repeat(np.arange(4), 40)
ALIKE = np.ones(160)
"""Weights of `blobs`, each point one cell."""


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a[None]) == (b[:, None] == b[None])).all())


def test_principal_axes_are_orthonormal_and_sorted_by_variance() -> None:
    points = blobs()
    mean, axes = principal_axes(points, 4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-12)
    variance = ((points - mean) @ axes).var(axis=0)
    assert (np.diff(variance) <= 0).all()


@pytest.mark.parametrize(
    ("n_points", "width", "rank"),
    [(40, 7, 7), (12, 30, 12), (40, 7, 3), (12, 30, 4), (12, 12, 12), (5, 4, 0), (2, 5, 2)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_axes_of_weighted_points_are_those_of_repeated_points(
    n_points: int, width: int, rank: int, scale: float
) -> None:
    rng = np.random.default_rng(n_points + rank)
    spread = 3.0 ** -np.arange(rank)
    points = scale * (rng.normal(size=(n_points, rank)) * spread @ rng.normal(size=(rank, width)) + 2.0)
    weights = rng.integers(1, 6, n_points)
    mean, axes = principal_axes(points, 6, weights.astype(np.float64))
    repeated = np.repeat(points, weights, axis=0)
    n_axes = min(6, n_points - 1, width)
    assert axes.shape == (width, n_axes)
    np.testing.assert_allclose(axes.T @ axes, np.eye(n_axes), atol=1e-9)
    np.testing.assert_allclose(mean, repeated.mean(axis=0), rtol=1e-12)
    n_sound = min(n_axes, rank)  # beyond the rank any axis will do
    expected = np.linalg.svd(repeated - repeated.mean(axis=0), full_matrices=False)[2][:n_sound].T
    np.testing.assert_allclose(np.abs((axes[:, :n_sound] * expected).sum(axis=0)), 1, atol=1e-7)
    largest = np.abs(axes).argmax(axis=0)
    assert (axes[largest, np.arange(n_axes)] > 0).all()
    variance = (((repeated - mean) @ axes) ** 2).sum(axis=0)
    assert (np.diff(variance) <= 1e-9 * max(float(variance.max()), 1e-300)).all()


def test_axes_that_are_lost_in_squares_are_found_all_the_same() -> None:
    points = np.random.default_rng(0).normal(size=(60, 3)) * np.array([1.0, 1e-3, 1e-6])
    _, axes = principal_axes(points, 3, np.arange(60) % 3 + 1.0)
    np.testing.assert_allclose(np.abs(np.diag(axes)), 1, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_clusters_of_weighted_points_are_those_of_repeated_points(name: str) -> None:
    points, weights = blobs(n_per=15), np.random.default_rng(1).integers(1, 6, 60)
    repeated = np.repeat(np.arange(60), weights)
    for n_clusters in (2, 4) if name == "kmeans" else (2, 4, 7):  # k-means starts at random: only clear groups are sure
        found = METHODS[name](points, weights.astype(np.float64), n_clusters, 0)
        expected = METHODS[name](points[repeated], np.ones(len(repeated)), n_clusters, 0)
        assert same_partition(found[repeated], expected)


def test_weights_move_what_the_members_find() -> None:
    points = np.array([[0.0], [1.0], [1.9], [10.0]])
    light, heavy = np.ones(4), np.array([1.0, 1.0, 100.0, 1.0])
    assert METHODS["ward"](points, light, 3, 0)[1] == METHODS["ward"](points, light, 3, 0)[2]
    found = METHODS["ward"](points, heavy, 3, 0)
    assert found[0] == found[1] != found[2]


def test_plain_spaces_of_weighted_points_are_those_of_repeated_points() -> None:
    points, weights = blobs(), np.random.default_rng(2).integers(1, 4, 160)
    spaces, found = build_spaces({"input": points}, weights.astype(np.float64), (4,))
    repeated = np.repeat(points, weights, axis=0)
    others, expected = build_spaces({"input": repeated}, np.ones(len(repeated)), (4,))
    projected = [one.project(parts["input"]) for one, parts in ((spaces[0], found), (others[0], expected))]
    np.testing.assert_allclose(np.repeat(projected[0], weights, axis=0), projected[1], atol=1e-8)


@pytest.mark.parametrize(("noise", "is_alike"), [(0.0, True), (1e-7, True), (1e-3, False)])
def test_rounding_of_landmarks_that_are_alike_is_no_structure(noise: float, is_alike: bool) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=6) + noise * rng.normal(size=(50, 6))
    found = build_spaces({"input": points}, np.ones(50), (4,))[1]["input"]
    assert bool((found == 0).all()) is is_alike


def test_every_space_has_a_member_of_leiden_and_one_of_each_method() -> None:
    spaces, found = build_spaces({"input": blobs(), "latent": blobs()[:, :4]}, ALIKE, (3, 6))
    members = cluster_members(found, ALIKE, spaces, 4, 0)
    assert [(member.space, member.method) for member in members] == [
        (space, method) for space in range(len(spaces)) for method in ("leiden", *METHODS)
    ]
    assert all(member.n_clusters == 4 for member in members if member.method != "leiden")
    assert {member.weight for member in members if member.method == "leiden"} == {3.0}


def test_means_of_weighted_points_are_those_of_repeated_points() -> None:
    points, labels = blobs(), TRUTH
    weights = np.random.default_rng(3).integers(1, 4, 160)
    found = cluster_means(points, labels, 4, weights.astype(np.float64))
    expected = cluster_means(np.repeat(points, weights, axis=0), np.repeat(labels, weights), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_whitening_makes_the_local_noise_the_identity() -> None:
    points = blobs() * np.array([1, 5, 0.2, 1, 3, 1])
    from scamac_scale.train.clusters.graph import nearest_neighbors

    _, indices = nearest_neighbors(points, 10)
    noise = (points - points[indices].mean(axis=1)) @ noise_whitening(points)
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(6), atol=1e-8)


def test_spaces_beyond_the_rank_are_dropped() -> None:
    spaces = build_spaces({"input": blobs(width=6)}, ALIKE, (4, 10, 40))[0]
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
    consensus = find_consensus({"input": points}, ALIKE, n_clusters, components=(4,), cut_height=0.6, seed=0)
    assert consensus.n_clusters == n_clusters
    np.testing.assert_array_equal(consensus.labels, consensus.tree.labels(n_clusters))


def test_cut_at_a_height_separates_what_no_member_joins() -> None:
    tree = consensus_tree([Member(0, "ward", np.repeat(np.arange(3), 5), 1.0)], np.ones(15))
    assert tree.count_at(0.6) == 3
    assert same_partition(tree.labels(3), np.repeat(np.arange(3), 5))


def test_neighbours_on_the_tree_have_neighbouring_numbers_and_the_larger_side_comes_first() -> None:
    labels = [[0, 0, 0, 1, 1, 2, 3, 3, 3, 3], [0, 0, 0, 1, 1, 1, 3, 3, 3, 3], [3, 3, 3, 1, 1, 1, 3, 3, 3, 3]]
    tree = consensus_tree([Member(0, "ward", np.array(member), 1.0) for member in labels], np.ones(10))
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
    tree, expected = consensus_tree(members, weights), consensus_tree(repeated, np.ones(weights.sum()))
    np.testing.assert_allclose(tree.merges[:, 2], expected.merges[-29:, 2], atol=1e-10)
    np.testing.assert_array_equal(tree.merges[-1, 3], weights.sum())


def test_a_consensus_comes_back_from_plain_data() -> None:
    found = find_consensus({"input": blobs()}, ALIKE, 4, components=(4,), cut_height=0.6, seed=0)
    again = Consensus.from_plain(found.to_plain())
    np.testing.assert_array_equal(again.tree.merges, found.tree.merges)
    np.testing.assert_array_equal(again.tree.labels(4), found.labels)


@pytest.mark.parametrize("cut_height", [None, 0.6])
def test_a_number_that_is_found_gives_what_the_same_number_told_gives(cut_height: float | None) -> None:
    sources = {"input": blobs() + np.repeat(np.eye(4, 6) * 12, 40, axis=0)}
    found = find_consensus(sources, ALIKE, None, components=(3, 6), cut_height=cut_height, seed=0)
    told = find_consensus(sources, ALIKE, found.n_clusters, components=(3, 6), cut_height=cut_height, seed=0)
    assert len(told.counted) == 0
    assert (len(found.counted) > 0) == (cut_height is None)
    np.testing.assert_array_equal(found.labels, told.labels)
    np.testing.assert_array_equal(found.tree.merges, told.tree.merges)
    for one, other in zip(found.members, told.members, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("cut_height", [None, 0.6])
def test_consensus_finds_the_groups_without_being_told_their_number(cut_height: float | None) -> None:
    points = blobs()
    points[:40, :2] += 12.0  # off the line on which all four lie: on it, directions are two
    points[120:, 2:4] -= 15.0
    consensus = find_consensus({"input": points}, ALIKE, None, components=(3, 6), cut_height=cut_height, seed=0)
    assert same_partition(consensus.labels, TRUTH)
