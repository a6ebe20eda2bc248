"""The mathematics gives the same numbers on CUDA as on the CPU."""

from __future__ import annotations

import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, atlas_similarity
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from scamac_scale.ops.corruption import corrupt, uniform_noise
from scamac_scale.ops.fuzzy import center_sums, centers_from_sums, membership
from scamac_scale.ops.similarity import gram_matrices, pair_means, unit_rows
from tests.support.mathematics import memberships, normal


def compute(device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(encoder_width=16, latent_width=6, bank_cells=5)
    network = ScamacNetwork(20, config, InputConfig()).double()
    network.bank_cells.copy_(normal(1, 5, 20))
    network = network.to(device)
    network.refresh_bank()
    x = network.scale_input(normal(2, 30, 20).abs().to(device))
    out = network(corrupt(x, uniform_noise(torch.empty(x.shape), 0.0, 1.0, torch.Generator().manual_seed(3)).to(x)))
    z, c, target = out.latent, normal(4, 3, 6).to(device), memberships(5, 30, 9).to(device)
    r = center_distance(z, c)
    u, h = membership(adaptive_distance(r, 0.01), 0.1), robust_weight(r, 0.01)
    centers = centers_from_sums(center_sums(z, u, h), c)
    grams = gram_matrices(unit_rows(target), unit_rows(z.detach()))
    losses = [form(target, z) for form in SIMILARITY_LOSSES.values()]
    losses.append(atlas_similarity(target, z, pair_means(grams)))
    losses.append(CLUSTERINGS["mean"](z, c, u, h))
    torch.stack(losses).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return [tensor.detach().cpu() for tensor in (*out, u, h, centers, *grams, *losses, *gradients)]


@pytest.mark.gpu
def test_cuda_equals_cpu_in_float64() -> None:
    for ours, expected in zip(compute("cuda"), compute("cpu"), strict=True):
        # Both in float64; only the order of additions differs.
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
