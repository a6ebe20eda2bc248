from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from tests.support.mathematics import LAWS, matrix, normal


@LAWS
@given(matrix())
def test_perfect_reconstruction_costs_nothing(x: torch.Tensor) -> None:
    for name in ("mean", "sum_genes"):
        assert RECONSTRUCTIONS[name](x, x) == 0


@LAWS
@given(matrix(), st.floats(-3, 3))
def test_expected_counts_cost_nothing_and_others_something(x: torch.Tensor, shift: float) -> None:
    counts, loss = x.abs().round() + 1, RECONSTRUCTIONS["poisson"]
    torch.testing.assert_close(loss(counts, counts.log() + shift), torch.zeros(()).double(), rtol=0, atol=1e-9)
    assert loss(counts, x) >= -1e-9


def test_the_gradient_of_counts_is_expected_minus_seen() -> None:
    counts, output = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0]]).double(), normal(1, 2, 3).requires_grad_()
    RECONSTRUCTIONS["poisson"](counts, output).backward()
    expected = counts.sum(dim=1, keepdim=True) * output.detach().softmax(dim=1)
    torch.testing.assert_close(output.grad, 2 * (expected - counts) / 6)  # an empty cell does not pull


@LAWS
@given(matrix(), matrix(rows=1, columns=1))
def test_the_forms_differ_by_the_number_of_genes(x: torch.Tensor, shift: torch.Tensor) -> None:
    mean, summed = (RECONSTRUCTIONS[name](x, x + shift) for name in ("mean", "sum_genes"))
    torch.testing.assert_close(summed, mean * x.shape[1])
    torch.testing.assert_close(mean, shift.square().squeeze())


def test_the_loss_pulls_on_both_layers() -> None:
    encoding, decoding = normal(1, 4, 3).requires_grad_(), normal(2, 4, 3).requires_grad_()
    RECONSTRUCTIONS["mean"](encoding, decoding).backward()
    assert encoding.grad is not None
    assert decoding.grad is not None
    torch.testing.assert_close(encoding.grad, -decoding.grad)


@pytest.mark.parametrize("form", RECONSTRUCTIONS)
def test_unlike_shapes_are_refused_instead_of_broadcast(form: str) -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\) and output \(1, 3\)"):
        RECONSTRUCTIONS[form](torch.zeros(4, 3), torch.zeros(1, 3))
