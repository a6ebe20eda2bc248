from __future__ import annotations

import pytest
import torch
from hypothesis import given

from scamac_scale.errors import ShapeError
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from tests.support.mathematics import LAWS, matrix, normal


@LAWS
@given(matrix())
def test_perfect_reconstruction_costs_nothing(x: torch.Tensor) -> None:
    for form in RECONSTRUCTIONS.values():
        assert form(x, x) == 0


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


def test_unlike_shapes_are_refused_instead_of_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\) and output \(1, 3\)"):
        RECONSTRUCTIONS["mean"](torch.zeros(4, 3), torch.zeros(1, 3))
