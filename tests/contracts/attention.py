"""What every entry of `SPATIAL_FORMS` must do: subclass, name the form, inherit the suite."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch.autograd import gradcheck

from scamac_scale.errors import ShapeError
from scamac_scale.ops.attention import SPATIAL_FORMS
from tests.support.mathematics import EXACT, normal

S, B, M, D = 3, 7, 5, 4


class AttentionContract:
    name: ClassVar[str]

    def attend(self, *tensors: torch.Tensor) -> torch.Tensor:
        return SPATIAL_FORMS[self.name](*tensors)

    def inputs(self, with_self: bool, scale: float = 1.0) -> list[torch.Tensor]:
        shapes = [(S, B, D), (S, M, D), (S, M, D)] + ([(S, B, D), (S, B, D)] if with_self else [])
        return [scale * normal(index, *shape) for index, shape in enumerate(shapes)]

    def dense(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        """Softmax over the bank, or over the bank and self per cell, one cell at a time."""
        rows = []
        for b in range(q.shape[1]):
            keys = torch.cat([k, own[0][:, b : b + 1]], dim=1) if own else k
            values = torch.cat([v, own[1][:, b : b + 1]], dim=1) if own else v
            scores = torch.einsum("sd,smd->sm", q[:, b], keys) / math.sqrt(q.shape[2])
            rows.append(torch.einsum("sm,smd->sd", torch.softmax(scores, dim=1), values))
        return torch.stack(rows, dim=1)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_equals_dense_softmax(self, with_self: bool) -> None:
        tensors = self.inputs(with_self)
        torch.testing.assert_close(self.attend(*tensors), self.dense(*tensors), **EXACT)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_float32_equals_float64_to_its_precision(self, with_self: bool) -> None:
        tensors = self.inputs(with_self)
        low = self.attend(*(tensor.float() for tensor in tensors))
        assert low.dtype == torch.float32
        # Seven digits, of which the fast exponential of the fused kernel may cost one.
        torch.testing.assert_close(low.double(), self.dense(*tensors), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_gradient_equals_finite_differences(self, with_self: bool) -> None:
        assert gradcheck(self.attend, tuple(tensor.requires_grad_() for tensor in self.inputs(with_self)))

    @pytest.mark.parametrize("with_self", [False, True])
    def test_order_of_the_bank_does_not_matter(self, with_self: bool) -> None:
        q, k, v, *own = self.inputs(with_self)
        order = torch.tensor([3, 0, 4, 2, 1])
        torch.testing.assert_close(self.attend(q, k[:, order], v[:, order], *own), self.attend(q, k, v, *own), **EXACT)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_a_query_ignores_the_other_queries(self, with_self: bool) -> None:
        q, k, v, *own = self.inputs(with_self)
        alone = self.attend(q[:, 2:3], k, v, *(tensor[:, 2:3] for tensor in own))
        torch.testing.assert_close(alone, self.attend(q, k, v, *own)[:, 2:3], **EXACT)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_result_is_a_weighted_mean_of_the_values(self, with_self: bool) -> None:
        q, k, v, *own = self.inputs(with_self)
        ones = self.attend(q, k, torch.ones_like(v), *([own[0], torch.ones_like(own[1])] if own else []))
        torch.testing.assert_close(ones, torch.ones_like(q), **EXACT)

    @pytest.mark.parametrize("with_self", [False, True])
    def test_huge_scores_stay_finite(self, with_self: bool) -> None:
        tensors = [tensor.requires_grad_() for tensor in self.inputs(with_self, scale=1e3)]
        out = self.attend(*tensors)
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(tensor.grad).all() for tensor in tensors if tensor.grad is not None)

    def test_works_under_bf16_autocast(self) -> None:
        tensors = self.inputs(with_self=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.attend(*(tensor.float() for tensor in tensors))
        # bf16 has 8 bits of mantissa: scores and values are off by up to 0.4 % each.
        torch.testing.assert_close(out.double(), self.dense(*tensors), rtol=0.05, atol=0.05)

    def test_an_empty_bank_leaves_the_cell_itself(self) -> None:
        q, k, v, own_k, own_v = self.inputs(with_self=True)
        torch.testing.assert_close(self.attend(q, k[:, :0], v[:, :0], own_k, own_v), own_v, **EXACT)

    def test_wrong_shapes_are_named(self) -> None:
        q, k, v = self.inputs(with_self=False)
        with pytest.raises(ShapeError, match=r"q \(S, B, D\)"):
            self.attend(q[0], k, v)
        with pytest.raises(ShapeError, match=r"k .* and v .* same shape"):
            self.attend(q, k, v[:, :2])
        with pytest.raises(ShapeError, match="scales S of q and k: got 2 and 3"):
            self.attend(q[:2], k, v)
        with pytest.raises(ShapeError, match="latent width D of q and k"):
            self.attend(q[..., :2], k, v)
