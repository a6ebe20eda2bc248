"""Gradients: equal to finite differences for every op and loss, and finite where the formulas have a corner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.autograd import gradcheck

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, atlas_similarity
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from scamac_scale.ops.attention import SPATIAL_FORMS, channel_attention, channel_product
from scamac_scale.ops.corruption import corrupt, uniform_noise
from scamac_scale.ops.fuzzy import center_sums, centers_from_sums, membership
from scamac_scale.ops.similarity import gram_matrices, pair_means, similarity_from_means, unit_rows
from tests.support.attention import attention_by_blocks
from tests.support.mathematics import memberships, normal

if TYPE_CHECKING:
    from collections.abc import Callable

Z, C = normal(1, 5, 3), normal(2, 2, 3)
U, H = memberships(3, 5, 2), normal(4, 5, 2).abs()
Q, K, V = normal(5, 2, 4, 3), normal(6, 2, 4, 3), normal(7, 2, 4, 3)
BANK_K, BANK_V = normal(8, 2, 6, 3), normal(9, 2, 6, 3)


def noisy(x: torch.Tensor) -> torch.Tensor:
    return corrupt(x, uniform_noise(torch.empty_like(x), 0.0, 1.0, torch.Generator().manual_seed(0)))


ATTENTIONS = {**SPATIAL_FORMS, "parts": attention_by_blocks}
CASES: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = {
    "corrupt": (noisy, (Z,)),
    "center_distance": (center_distance, (Z, C)),
    "adaptive_distance": (lambda r: adaptive_distance(r, 0.01), (H,)),
    "robust_weight": (lambda r: robust_weight(r, 0.1), (H,)),
    "membership": (lambda d: membership(d, 0.5), (H,)),
    "membership of cells": (lambda z, c: membership(adaptive_distance(center_distance(z, c), 0.01)), (Z, C)),
    "center_sums": (lambda z, u, h: tuple(center_sums(z, u, h)), (Z, U, H)),
    "centers": (lambda z, u, h: centers_from_sums(center_sums(z, u, h), C), (Z, U, H)),
    "unit_rows": (unit_rows, (Z,)),
    "grams": (lambda u, z: tuple(gram_matrices(u, z)[:3]), (U, Z)),
    "similarity_from_grams": (
        lambda u, z: similarity_from_means(pair_means(gram_matrices(unit_rows(u), unit_rows(z)))),
        (U, Z),
    ),
    "channel_product": (channel_product, (Q, K)),
    "channel_attention": (channel_attention, (V, normal(10, 2, 3, 3))),
    "reconstruction mean": (RECONSTRUCTIONS["mean"], (Z, Z + 1)),
    "reconstruction sum_genes": (RECONSTRUCTIONS["sum_genes"], (Z, Z + 1)),
    "reconstruction poisson": (lambda output: RECONSTRUCTIONS["poisson"](Z.abs().mul(3).round(), output), (Z,)),
    **{f"clustering {name}": (lambda z, f=form: f(z, C, U, H), (Z,)) for name, form in CLUSTERINGS.items()},
    **{f"similarity {name}": (lambda z, f=form: f(U, z), (Z,)) for name, form in SIMILARITY_LOSSES.items()},
    **{f"attention {name}": (form, (Q, BANK_K, BANK_V)) for name, form in ATTENTIONS.items()},
    **{f"attention {name} with self": (form, (Q, BANK_K, BANK_V, K, V)) for name, form in ATTENTIONS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name: str) -> None:
    function, inputs = CASES[name]
    assert gradcheck(function, tuple(tensor.clone().requires_grad_() for tensor in inputs))


@pytest.mark.parametrize("form", ["batch", "landmark"])
def test_network_gradient_equals_finite_differences(form: str) -> None:
    torch.manual_seed(0)
    # channel_form="atlas" takes its value from elsewhere: see test_network.
    forms = {"spatial_form": form, "channel_form": "batch"}
    config = ModelConfig(encoder_width=4, latent_width=3, bank_cells=2, encoder_activation="linear", **forms)
    network = ScamacNetwork(5, config, InputConfig()).double()
    torch.nn.init.normal_(network.get_parameter("fusion.alpha"))
    network.bank_cells.copy_(normal(2, 2, 5))
    network.refresh_bank()
    x = normal(3, 4, 5).requires_grad_()
    assert gradcheck(lambda x: tuple(network(x)), (x,))


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
def test_gradients_are_finite_where_cells_lie_on_centers(dtype: torch.dtype) -> None:
    z = torch.cat([C, C + 1e-20, C + 1]).to(dtype).requires_grad_()
    c = C.to(dtype).requires_grad_()
    r = center_distance(z, c)
    u, h = membership(adaptive_distance(r, 0.01), 1e-3), robust_weight(r, 0.01)
    total = r.sum() + (u * h).sum() + CLUSTERINGS["mean"](z, c, u, h)
    for found in torch.autograd.grad(total, (z, c)):
        assert torch.isfinite(found).all()


@DTYPES
def test_clustering_pulls_nowhere_at_the_center_itself(dtype: torch.dtype) -> None:
    z = C.to(dtype).clone().requires_grad_()
    loss = CLUSTERINGS["sum"](z, C.to(dtype), torch.eye(2, dtype=dtype), torch.ones(2, 2, dtype=dtype))
    (found,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=0)


@DTYPES
@pytest.mark.parametrize("form", [*SIMILARITY_LOSSES, "atlas"])
def test_similarity_gradient_is_zero_at_zero_rows_and_finite_beside_them(form: str, dtype: torch.dtype) -> None:
    z = torch.cat([torch.zeros(2, 3), torch.full((1, 3), 1e-30), torch.full((1, 3), 1e30), Z]).to(dtype)
    z[-1] = 0
    u = memberships(1, len(z), 4).to(dtype)
    u[0] = 0
    z.requires_grad_()
    if form == "atlas":
        loss = atlas_similarity(u, z, pair_means(gram_matrices(unit_rows(u), unit_rows(z).detach())))
    else:
        loss = SIMILARITY_LOSSES[form](u, z)
    (found,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(found).all()
    assert (found[:2] == 0).all()
    assert (found[4:-1] != 0).any(dim=1).all()


@pytest.mark.parametrize("form", ["batch", "landmark"])
@pytest.mark.parametrize("fusion", ["residual", "gated_sum"])
def test_network_gradients_are_finite_for_empty_cells(form: str, fusion: str) -> None:
    torch.manual_seed(0)
    network = ScamacNetwork(
        6, ModelConfig(encoder_width=8, latent_width=4, bank_cells=3, spatial_form=form, fusion=fusion), InputConfig()
    )
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.bias.zero_()  # then every layer of an empty cell is exactly 0
    network.refresh_bank()
    out = network(network.scale_input(torch.zeros(4, 6)))
    loss = out.output.square().sum() + SIMILARITY_LOSSES["auto"](torch.eye(4), out.latent)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
