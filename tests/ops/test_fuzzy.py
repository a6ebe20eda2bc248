from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from scamac_scale.ops.fuzzy import (
    TINY,
    center_sums,
    centers_from_sums,
    membership,
    relative_temperature,
    soft_assignment,
)
from tests.support.mathematics import LAWS, matrix, memberships, normal

TEMPERATURES = st.floats(1e-3, 10.0)


@LAWS
@given(matrix(low=0.0), TEMPERATURES)
def test_membership_rows_sum_to_one_and_are_not_negative(distance: torch.Tensor, temperature: float) -> None:
    u = membership(distance, temperature)
    torch.testing.assert_close(u.sum(dim=1), torch.ones(len(u), dtype=u.dtype))
    assert (u >= 0).all()


@LAWS
@given(matrix(low=0.0), st.randoms())
def test_permuting_cells_permutes_memberships(distance: torch.Tensor, random: object) -> None:
    order = list(range(len(distance)))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis draws a random.Random
    torch.testing.assert_close(membership(distance[order]), membership(distance)[order], rtol=0, atol=0)


@LAWS
@given(matrix(columns=3), matrix(columns=3), matrix(rows=1, columns=3))
def test_shifting_cells_and_centers_together_changes_no_membership(
    z: torch.Tensor, c: torch.Tensor, shift: torch.Tensor
) -> None:
    moved = membership(adaptive_distance(center_distance(z + shift, c + shift), 0.01))
    torch.testing.assert_close(moved, membership(adaptive_distance(center_distance(z, c), 0.01)), rtol=1e-7, atol=1e-9)


@LAWS
@given(matrix(low=0.0), TEMPERATURES)
def test_the_nearest_center_has_the_largest_membership(distance: torch.Tensor, temperature: float) -> None:
    u = membership(distance, temperature)
    nearest = distance.argmin(dim=1, keepdim=True)
    assert (u.gather(1, nearest).squeeze(1) >= u.max(dim=1).values - 1e-12).all()


def test_memberships_of_far_cells_stay_finite() -> None:
    u = membership(torch.tensor([[1e4, 1e4 + 1, 2e4], [3e30, 1e30, 2e30]]), 1.0)
    assert torch.isfinite(u).all()
    torch.testing.assert_close(u.sum(dim=1), torch.ones(2))


@LAWS
@given(matrix(columns=4, low=0.0), st.floats(0.5, 8.0))
def test_relative_temperature_scales_with_the_latent(distance: torch.Tensor, factor: float) -> None:
    base = relative_temperature(distance, 0.1)
    assert relative_temperature(distance * factor, 0.1) == pytest.approx(
        max(base * factor, TINY), rel=1e-9, abs=10 * TINY
    )


@LAWS
@given(st.integers(0, 99), TEMPERATURES, st.floats(1e-3, 1.0))
def test_soft_assignment_gives_memberships_and_weights_of_the_same_distances(
    seed: int, temperature: float, epsilon: float
) -> None:
    z, centers = normal(seed, 12, 3), normal(seed + 1, 4, 3)
    u, h = soft_assignment(z, centers.float(), temperature, epsilon)
    r = center_distance(z, centers.float().double())
    torch.testing.assert_close(u, membership(adaptive_distance(r, epsilon), temperature), rtol=0, atol=0)
    torch.testing.assert_close(h, robust_weight(r, epsilon), rtol=0, atol=0)


def test_soft_assignment_follows_the_nearest_center() -> None:
    z, centers = normal(1, 50, 4), normal(2, 3, 4)
    u, h = soft_assignment(z, centers, 0.1, 0.01)
    torch.testing.assert_close(u.sum(dim=1), torch.ones(50, dtype=u.dtype))
    assert torch.equal(u.argmax(dim=1), torch.cdist(z, centers).argmin(dim=1))
    assert (h > 0).all()


def test_relative_temperature_of_one_cluster_is_one() -> None:
    assert relative_temperature(torch.zeros(5, 1), 0.1) == 1.0


def test_relative_temperature_of_equal_centers_is_the_floor_and_gives_even_memberships() -> None:
    distance = torch.ones(5, 3)
    temperature = relative_temperature(distance, 0.1)
    assert temperature == TINY
    torch.testing.assert_close(membership(distance, temperature), torch.full((5, 3), 1 / 3))


@LAWS
@given(st.integers(0, 99), st.integers(1, 40), st.data())
def test_center_sums_of_any_split_add_up_to_the_whole(seed: int, n_cells: int, data: st.DataObject) -> None:
    z, u, h = normal(seed, n_cells, 3), memberships(seed + 1, n_cells, 4), normal(seed + 2, n_cells, 4).abs()
    cuts = sorted(data.draw(st.lists(st.integers(0, n_cells), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, n_cells], strict=True))
    parts = [center_sums(z[start:stop], u[start:stop], h[start:stop]) for start, stop in bounds]
    for found, whole in zip(reduce(add, parts), center_sums(z, u, h), strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


@LAWS
@given(st.integers(0, 99))
def test_centers_lie_within_the_range_of_the_cells(seed: int) -> None:
    z = normal(seed, 12, 3)
    r = center_distance(z, normal(seed + 1, 4, 3))
    sums = center_sums(z, membership(adaptive_distance(r, 0.01)), robust_weight(r, 0.01))
    centers = centers_from_sums(sums, torch.zeros(4, 3, dtype=torch.float64))
    assert (centers >= z.min(dim=0).values - 1e-9).all()
    assert (centers <= z.max(dim=0).values + 1e-9).all()


def test_a_sweep_lowers_the_robust_distance_that_it_reweighs() -> None:
    z = torch.cat([normal(1, 30, 2), normal(2, 30, 2) + 4])
    centers = normal(3, 2, 2)
    u = membership(adaptive_distance(center_distance(z, centers), 0.01))

    def cost(c: torch.Tensor) -> float:
        return float((u * adaptive_distance(center_distance(z, c), 0.01)).sum())

    moved = centers_from_sums(center_sums(z, u, robust_weight(center_distance(z, centers), 0.01)), centers)
    assert cost(moved) < cost(centers)


def test_an_empty_cluster_keeps_its_previous_center() -> None:
    z, previous = normal(1, 6, 2), normal(2, 3, 2).float()
    u = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 2, 2, 2]]
    centers = centers_from_sums(center_sums(z, u, torch.ones_like(u)), previous)
    torch.testing.assert_close(centers[1], previous[1], rtol=0, atol=0)
    torch.testing.assert_close(centers[0], z[:3].mean(dim=0).float())
    assert centers.dtype == torch.float32


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"distance \(B, K\)"):
        membership(torch.zeros(3))
    with pytest.raises(ShapeError, match="at least one cell"):
        relative_temperature(torch.zeros(0, 3), 0.1)
    with pytest.raises(ShapeError, match="same shape"):
        center_sums(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="cells of z and u: got 4 and 5"):
        center_sums(torch.zeros(4, 2), torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ShapeError, match="shape of the sums"):
        centers_from_sums(center_sums(torch.zeros(4, 2), torch.ones(4, 3), torch.ones(4, 3)), torch.zeros(2, 2))
