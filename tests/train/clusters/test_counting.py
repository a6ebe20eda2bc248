import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from scamac_scale.train.clusters import counting
from scamac_scale.train.clusters.association import Member, co_association
from scamac_scale.train.clusters.counting import (
    agreement_silhouette,
    columns_of,
    cosine_silhouette,
    count_clusters,
    numbers_to_try,
    unit_rows,
)
from tests.support.points import blobs

LABELS = np.random.default_rng(3).integers(0, 4, 60)
WEIGHTS = np.random.default_rng(4).integers(1, 5, 60)


def spread_blobs(n_blobs: int, n_per: int = 30, width: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 6.0, (n_blobs, width))
    return np.repeat(middles, n_per, axis=0) + rng.normal(size=(n_blobs * n_per, width))


def some_members(n_points: int = 60) -> list[Member]:
    codes = np.random.default_rng(5).integers(0, 3, (6, n_points))
    return [Member(0, "ward", column, weight) for column, weight in zip(codes, (1, 1, 2, 3, 1, 1), strict=True)]


def test_separation_is_the_silhouette_by_cosine() -> None:
    points = np.random.default_rng(0).normal(size=(60, 5))
    found = cosine_silhouette(unit_rows(points), LABELS, np.ones(60))
    assert found == pytest.approx(silhouette_score(points, LABELS, metric="cosine"), abs=1e-10)


def test_agreement_is_the_silhouette_by_co_association() -> None:
    members = some_members()
    expected = silhouette_score(1 - co_association(members).astype(float), LABELS, metric="precomputed")
    assert agreement_silhouette(members, LABELS, np.ones(60)) == pytest.approx(expected, abs=1e-6)  # float32


def test_a_landmark_of_weight_three_counts_as_three() -> None:
    points, members = unit_rows(np.random.default_rng(0).normal(size=(60, 5))), some_members()
    repeated = [Member(0, "ward", np.repeat(member.labels, WEIGHTS), member.weight) for member in members]
    many, ones = np.repeat(LABELS, WEIGHTS), np.ones(WEIGHTS.sum())
    weights = WEIGHTS.astype(float)
    expected = cosine_silhouette(np.repeat(points, WEIGHTS, axis=0), many, ones)
    assert cosine_silhouette(points, LABELS, weights) == pytest.approx(expected, abs=1e-10)
    expected = agreement_silhouette(repeated, many, ones)
    assert agreement_silhouette(members, LABELS, weights) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n_blobs", [2, 3, 7, 12])
def test_clear_groups_are_counted(n_blobs: int) -> None:
    points = spread_blobs(n_blobs)
    communities = np.repeat(np.arange(n_blobs), 30)
    finer = 2 * communities + np.arange(len(communities)) % 2  # Leiden that finds too many
    for found in (communities, finer):
        assert count_clusters([points, points[:, :5]], [found, found]).n_clusters == n_blobs


def test_weights_and_the_order_of_landmarks_do_not_move_clear_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    points, communities = spread_blobs(6), np.repeat(np.arange(6), 30)
    order = np.random.default_rng(1).permutation(180)
    weights = np.random.default_rng(2).integers(1, 900, 180).astype(float)
    assert count_clusters([points[order]], [communities[order]], weights).n_clusters == 6
    monkeypatch.setattr(counting, "MOST_LANDMARKS", 90)  # every other one
    assert count_clusters([points[order]], [communities[order]], weights).n_clusters == 6


def test_numbers_are_tried_one_by_one_then_by_tenths_as_far_as_landmarks_and_communities_allow() -> None:
    one = [np.zeros(1000, dtype=np.int64)]
    assert numbers_to_try(1000, one).tolist()[:19] == list(range(2, 21))
    assert numbers_to_try(1000, one).max() <= 30
    assert numbers_to_try(90, one).max() == 18
    many = numbers_to_try(4000, [np.arange(4000) % 150])
    assert 270 < many.max() <= 300
    assert (np.diff(many) > 0).all()
    assert len(many) < 60
    assert numbers_to_try(1, one).tolist() == [1]
    assert numbers_to_try(3, one).tolist() == [2]


def test_two_landmarks_or_one_and_equal_cells_do_no_harm() -> None:
    for n in (1, 2, 5):
        found = count_clusters([np.ones((n, 3))], [np.zeros(n, dtype=np.int64)])
        assert 1 <= found.n_clusters <= n
        assert np.isfinite(found.table).all()


def test_the_curve_is_a_table_with_its_highest_score_at_the_number() -> None:
    found = count_clusters([blobs()], [np.repeat(np.arange(4), 40)])
    columns = columns_of(found.table)
    assert list(columns) == ["n_clusters", "agreement", "separation", "score"]
    assert len({len(column) for column in columns.values()}) == 1
    assert columns["n_clusters"][int(np.argmax(columns["score"]))] == found.n_clusters
