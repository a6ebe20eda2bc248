from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.config import ModelConfig
from scamac_scale.nn.fusion import GatedSum, ResidualFusion, ScaleProjection
from tests.support.mathematics import LAWS, normal


def test_scales_are_stacked_in_the_order_of_the_layers() -> None:
    torch.manual_seed(0)
    projection = ScaleProjection(ModelConfig(encoder_width=6, latent_width=4))
    encoding, hidden, decoding = (normal(s, 5, w, dtype=torch.float32) for s, w in ((1, 6), (2, 4), (3, 6)))
    stacked = projection(encoding, hidden, decoding)
    torch.testing.assert_close(stacked[0], projection.w11(encoding))
    torch.testing.assert_close(stacked[1], hidden, rtol=0, atol=0)
    torch.testing.assert_close(stacked[2], projection.w22(decoding))


@LAWS
@given(st.integers(0, 99), st.floats(0.5, 100.0), st.floats(-10, 10))
def test_normalising_takes_out_scale_and_shift_of_each_cell(seed: int, scale: float, shift: float) -> None:
    projection = ScaleProjection(ModelConfig(encoder_width=6, latent_width=16)).double()
    z = normal(seed, 3, 5, 16)
    y = projection.normalise(scale * z + shift)
    torch.testing.assert_close(y.mean(dim=-1), torch.zeros(3, 5, dtype=torch.float64), rtol=0, atol=1e-9)
    # The floor of 1e-5 beside the variance shows where the scale is small.
    torch.testing.assert_close(y, projection.normalise(z), rtol=1e-3, atol=1e-3)


@LAWS
@given(st.integers(0, 99))
def test_closed_gates_leave_the_projections_or_nothing(seed: int) -> None:
    projected, synergy, closed = normal(seed, 3, 5, 4), normal(seed + 1, 3, 5, 4), torch.zeros(3, 5).double()
    residual = ResidualFusion(4).double()
    torch.nn.init.normal_(residual.alpha)
    torch.testing.assert_close(residual(projected, synergy, closed), projected.mean(dim=0))
    assert (GatedSum(4)(projected, synergy, closed) == 0).all()
    opened = torch.ones_like(closed)
    torch.testing.assert_close(GatedSum(4)(projected, synergy, opened), synergy.sum(dim=0))
