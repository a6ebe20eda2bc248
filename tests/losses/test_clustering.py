from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.losses.clustering import CLUSTERINGS
from tests.support.mathematics import LAWS, memberships, normal


@LAWS
@given(st.integers(0, 99), st.integers(1, 9))
def test_the_sum_is_the_mean_times_the_cells(seed: int, n_cells: int) -> None:
    z, c = normal(seed, n_cells, 3), normal(seed + 1, 2, 3)
    u, h = memberships(seed + 2, n_cells, 2), normal(seed + 3, n_cells, 2).abs()
    torch.testing.assert_close(CLUSTERINGS["sum"](z, c, u, h), CLUSTERINGS["mean"](z, c, u, h) * n_cells)


def test_only_the_latent_gets_a_gradient() -> None:
    z, c, u, h = (
        tensor.requires_grad_() for tensor in (normal(1, 5, 3), normal(2, 2, 3), normal(3, 5, 2), normal(4, 5, 2))
    )
    CLUSTERINGS["sum"](z, c, u, h).backward()
    assert c.grad is u.grad is h.grad is None
    assert z.grad is not None
    w = (u * h).detach()
    torch.testing.assert_close(z.grad, 2 * (w.sum(1, keepdim=True) * z.detach() - w @ c.detach()))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"\(B, K\) = \(5, 2\)"):
        CLUSTERINGS["mean"](torch.zeros(5, 3), torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5, 2))
