from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from tests.support.mathematics import LAWS, matrix, normal

EPSILONS = st.floats(1e-3, 10.0)


@LAWS
@given(matrix(columns=3), matrix(columns=3))
def test_distances_do_not_depend_on_which_is_cell_and_which_center(z: torch.Tensor, c: torch.Tensor) -> None:
    torch.testing.assert_close(center_distance(z, c), center_distance(c, z).T, rtol=1e-12, atol=1e-12)


@LAWS
@given(matrix(columns=3), matrix(columns=3), matrix(rows=1, columns=3))
def test_shifting_cells_and_centers_together_changes_no_distance(
    z: torch.Tensor, c: torch.Tensor, shift: torch.Tensor
) -> None:
    torch.testing.assert_close(center_distance(z + shift, c + shift), center_distance(z, c), rtol=1e-9, atol=1e-9)


@LAWS
@given(matrix(columns=3), matrix(columns=3))
def test_distance_is_zero_exactly_at_the_center(z: torch.Tensor, c: torch.Tensor) -> None:
    assert (center_distance(z, torch.cat([c, z])).diagonal(len(c)) == 0).all()


@LAWS
@given(matrix(rows=1, low=0.0), EPSILONS)
def test_adaptive_distance_grows_with_the_distance_and_lies_below_its_far_limit(
    r: torch.Tensor, epsilon: float
) -> None:
    d = adaptive_distance(r.sort(dim=1).values, epsilon)
    assert (d.diff(dim=1) >= 0).all()
    assert (d <= (1 + epsilon) * r.sort(dim=1).values + 1e-12).all()


@LAWS
@given(st.floats(0.01, 10.0), EPSILONS)
def test_weight_is_the_slope_of_the_adaptive_distance_over_the_distance(r: float, epsilon: float) -> None:
    at = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(adaptive_distance(at, epsilon).sum(), at)
    torch.testing.assert_close(robust_weight(at.detach(), epsilon), slope / r, rtol=1e-9, atol=0)


@LAWS
@given(matrix(rows=1, low=0.0), EPSILONS)
def test_weight_falls_with_the_distance_from_its_value_at_the_center(r: torch.Tensor, epsilon: float) -> None:
    weight = robust_weight(r.sort(dim=1).values, epsilon)
    assert (weight.diff(dim=1) <= 0).all()
    assert (weight <= 2 * (1 + epsilon) / epsilon * (1 + 1e-12)).all()
    assert (weight > 0).all()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"z \(B, D\) came with shape \(3,\)"):
        center_distance(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="latent width D of z and c: got 3 and 4"):
        center_distance(torch.zeros(5, 3), torch.zeros(2, 4))


def test_one_double_argument_makes_the_distance_double() -> None:
    assert center_distance(normal(1, 3, 2).float(), normal(2, 2, 2)).dtype == torch.float64
