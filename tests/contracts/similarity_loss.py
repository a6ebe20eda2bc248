"""What every entry of `SIMILARITY_LOSSES` must do: subclass, name the loss, inherit the suite."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.autograd import gradcheck

from scamac_scale.errors import ShapeError
from scamac_scale.losses.similarity import SIMILARITY_LOSSES
from tests.support.mathematics import EXACT, memberships, normal


class SimilarityLossContract:
    name: ClassVar[str]

    def loss(self, u: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return SIMILARITY_LOSSES[self.name](u, z)

    def dense(self, u: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Mean over all pairs, one pair at a time."""
        u, z = u / u.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
        pairs = [(u[i] @ u[j] - z[i] @ z[j]) ** 2 for i in range(len(u)) for j in range(len(u))]
        return torch.stack(pairs).mean()

    def gradient(self, value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, at)[0]

    @pytest.mark.parametrize("n_cells", [1, 3, 12])
    def test_equals_the_mean_over_pairs_with_its_gradient(self, n_cells: int) -> None:
        u, z = memberships(1, n_cells, 3), normal(2, n_cells, 4).requires_grad_()
        value, expected = self.loss(u, z), self.dense(u, z)
        torch.testing.assert_close(value, expected, **EXACT)
        torch.testing.assert_close(self.gradient(value, z), self.gradient(expected, z), **EXACT)

    def test_gradient_equals_finite_differences(self) -> None:
        u, z = memberships(1, 6, 3), normal(2, 6, 4).requires_grad_()
        assert gradcheck(lambda z: self.loss(u, z), (z,))

    def test_memberships_are_constant(self) -> None:
        u, z = memberships(1, 6, 3).requires_grad_(), normal(2, 6, 4).requires_grad_()
        self.loss(u, z).backward()
        assert u.grad is None
        assert z.grad is not None

    def test_permuting_cells_or_scaling_rows_changes_nothing(self) -> None:
        u, z = memberships(1, 6, 3), normal(2, 6, 4)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        factor = normal(3, 6, 1).abs() + 0.1
        torch.testing.assert_close(self.loss(3 * u[order], (factor * z)[order]), self.loss(u, z), **EXACT)

    def test_equal_similarities_cost_nothing_and_never_less(self) -> None:
        z = normal(2, 20, 4).float()
        value = self.loss(z, z)
        assert 0 <= float(value) < 1e-6

    def test_float32_stays_float32(self) -> None:
        assert self.loss(memberships(1, 6, 3).float(), normal(2, 6, 4).float()).dtype == torch.float32

    def test_wrong_shapes_are_named(self) -> None:
        with pytest.raises(ShapeError, match=r"u \(B, C\)"):
            self.loss(torch.ones(3), torch.ones(3, 2))
        with pytest.raises(ShapeError, match="cells of u and z: got 3 and 4"):
            self.loss(torch.ones(3, 2), torch.ones(4, 2))
