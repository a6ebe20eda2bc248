from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.ops.corruption import corrupt, uniform_noise
from tests.support.mathematics import LAWS, matrix, normal


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@LAWS
@given(st.integers(0, 99), st.floats(-5, 5), st.floats(0, 5))
def test_noise_stays_within_its_bounds(seed: int, low: float, width: float) -> None:
    noise = uniform_noise(torch.empty(20, 3).double(), low, low + width, generator(seed))
    assert (noise >= low - 1e-12).all()
    assert (noise <= low + width + 1e-12).all()


@LAWS
@given(matrix(), st.integers(0, 99))
def test_corrupted_input_is_input_plus_noise(x: torch.Tensor, seed: int) -> None:
    before = x.clone()
    noise = uniform_noise(torch.empty_like(x), 0.0, 1.0, generator(seed))
    expected = x + noise
    torch.testing.assert_close(corrupt(x, noise), expected, rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_noise_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = uniform_noise(torch.empty(4, 5), 0.0, 1.0, generator(3))
    torch.manual_seed(2)
    torch.testing.assert_close(uniform_noise(torch.empty(4, 5), 0.0, 1.0, generator(3)), first, rtol=0, atol=0)
    assert not torch.equal(uniform_noise(torch.empty(4, 5), 0.0, 1.0, generator(4)), first)


def test_noise_has_the_moments_of_the_uniform_distribution() -> None:
    noise = uniform_noise(torch.empty(20_000).double(), -1.0, 3.0, generator(0))
    # Standard error of the mean: (3 + 1) / sqrt(12 * 20000) = 0.008.
    assert abs(float(noise.mean()) - 1.0) < 0.04
    assert abs(float(noise.var()) - 16 / 12) < 0.05


def test_corruption_passes_the_gradient_unchanged() -> None:
    x = normal(1, 3, 4).requires_grad_()
    corrupt(x, torch.ones(3, 4).double()).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=0, atol=0)
