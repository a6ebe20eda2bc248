from __future__ import annotations

import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.errors import ConfigError, ShapeError
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.nn.synergy import Bank
from tests.support.mathematics import normal

G, M = 40, 12


def make_network(input_config: InputConfig | None = None, **settings: object) -> ScamacNetwork:
    """Float32 network whose attention matters: alpha is random, the bank and the mean product are set."""
    torch.manual_seed(0)
    network = ScamacNetwork(
        G,
        ModelConfig(**{"encoder_width": 24, "latent_width": 8, "bank_cells": M, **settings}),
        input_config or InputConfig(),
    )
    for name, parameter in network.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.normal_(parameter)
    network.bank_cells.copy_(normal(1, M, G))
    network.refresh_bank()
    network.mean_product.copy_(normal(2, 3, 8, 8)[: len(network.mean_product)])
    return network


@pytest.mark.parametrize("fusion", ["residual", "gated_sum"])
def test_frozen_landmark_latent_ignores_batch_mates_and_batch_size(fusion: str) -> None:
    network = make_network(fusion=fusion)
    x = normal(3, 64, G, dtype=torch.float32)
    crowd = 100 * normal(4, 64, G, dtype=torch.float32)
    with torch.no_grad():
        together = network(x, frozen=True).latent
        alone = torch.cat([network(row[None], frozen=True).latent for row in x])
        pieces = torch.cat([network(piece, frozen=True).latent for piece in x.split(7)])
        crowded = network(torch.cat([crowd, x, crowd]), frozen=True).latent[64:128]
    for other in (alone, pieces, crowded):
        # Matrix kernels add in another order for another batch size.
        torch.testing.assert_close(other, together, rtol=1e-6, atol=1e-6)


def test_batch_attention_and_products_of_the_batch_do_see_the_batch() -> None:
    x = normal(3, 10, G, dtype=torch.float32)
    for network, frozen in ((make_network(spatial_form="batch"), True), (make_network(channel_form="batch"), False)):
        with torch.no_grad():
            apart = network(x[:5], frozen=frozen).latent
            assert (apart - network(x, frozen=frozen).latent[:5]).abs().max() > 1e-4


def test_a_step_of_training_sees_what_inference_sees() -> None:
    network = make_network().double()
    x = normal(3, 10, G)
    inferred = network.eval()(x, frozen=True).latent
    torch.testing.assert_close(network.train()(x).latent, inferred, rtol=0, atol=0)


def test_the_running_product_follows_the_batches_that_it_is_told() -> None:
    network = make_network().double()
    cells = normal(3, 400, G)
    wanted = network.channel_sum(cells) / len(cells)
    before = network.mean_product.clone()
    network(cells[:50])
    torch.testing.assert_close(network.mean_product, before, rtol=0, atol=0)
    for step in range(80):
        network.follow_product(network.channel_sum(cells[50 * (step % 8) :][:50]) / 50)
    error = (network.mean_product - wanted).norm() / wanted.norm()
    assert error < 0.05  # batches of 50 cells, averaged over about ten


def test_the_attention_starts_from_the_cells_of_the_bank() -> None:
    network = make_network().double()
    cells = normal(7, M, G)
    network.start_attention(cells)
    torch.testing.assert_close(network.mean_product, network.channel_sum(cells) / M)
    torch.testing.assert_close(network.bank_cells, cells)
    other = make_network().double()
    other.bank_cells.copy_(cells)
    other.refresh_bank()
    torch.testing.assert_close(network.bank_k, other.bank_k)


@pytest.mark.parametrize("fusion", ["residual", "gated_sum"])
def test_parts_of_the_attention_can_be_left_out(fusion: str) -> None:
    x = normal(3, 10, G)
    whole = make_network(fusion=fusion).double()
    out = whole(x, frozen=True)
    y = whole.projection.normalise(out.projected)
    product = whole.mean_product
    synergy = whole.synergy(y, product, Bank(whole.bank_k, whole.bank_v))
    ones = torch.ones(3, 10, dtype=torch.float64)
    expected = {
        (False, True): (y, whole.integration(y)),
        (True, False): (synergy, ones),
        (False, False): (y, ones),
    }
    for (has_synergy, has_integration), (attended, gate) in expected.items():
        part = make_network(fusion=fusion, has_synergy=has_synergy, has_integration=has_integration).double()
        part.load_state_dict(whole.state_dict())
        wanted = whole.fusion(out.projected, whole.synergy_norm(attended), gate)
        torch.testing.assert_close(part(x, frozen=True).latent, wanted)


def test_scales_can_be_left_out() -> None:
    x = normal(3, 10, G)
    projected = make_network().double()(x).projected
    for scales, kept in ((("decoding", "encoding"), [0, 2]), (("hidden",), [1])):
        network = make_network(scales=scales).double()
        torch.testing.assert_close(network(x).projected, projected[kept])
    hidden = make_network(scales=("hidden",), has_synergy=False, has_integration=False).double()
    torch.nn.init.zeros_(hidden.fusion.alpha)
    torch.testing.assert_close(hidden(x).latent, hidden(x).hidden)
    with pytest.raises(ConfigError, match=r"model\.scales='hiden'.*mean 'hidden'"):
        make_network(scales=("hiden",))


def test_permuting_cells_permutes_latents() -> None:
    x = normal(3, 10, G)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for form in ("batch", "landmark"):
        network = make_network(spatial_form=form).double().eval()
        torch.testing.assert_close(network(x[order]).latent, network(x).latent[order])


def test_latent_starts_as_the_mean_of_the_projected_scales() -> None:
    torch.manual_seed(0)
    network = ScamacNetwork(G, ModelConfig(bank_cells=M), InputConfig())
    out = network(normal(3, 10, G, dtype=torch.float32))
    torch.testing.assert_close(out.latent, out.projected.mean(dim=0), rtol=0, atol=0)


def test_bank_is_encoded_as_the_batch_would_be() -> None:
    network = make_network().double()
    network.bank_cells.copy_(normal(5, M, G))
    before = network.bank_k.clone()
    network.refresh_bank()
    assert not torch.equal(before, network.bank_k)
    normalised = network.projection.normalise(network(network.bank_cells).projected)
    bank = network.synergy.project_bank(normalised)
    torch.testing.assert_close(network.bank_k, bank.k)
    torch.testing.assert_close(network.bank_v, bank.v)
    assert not network.bank_k.requires_grad


def test_refreshing_the_bank_leaves_the_batch_form_alone() -> None:
    network = make_network(spatial_form="batch")
    assert not network.has_bank
    assert (network.bank_k == 0).all()


def test_every_weight_gets_a_gradient_from_output_and_latent() -> None:
    for settings in ({}, {"fusion": "gated_sum", "spatial_form": "batch"}):
        network = make_network(**settings)
        out = network(normal(3, 10, G, dtype=torch.float32))
        (out.output.square().sum() + (out.latent * normal(4, 10, 8, dtype=torch.float32)).sum()).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("unit_norm", [False, True])
def test_unscaling_undoes_scaling(unit_norm: bool) -> None:
    network = make_network(InputConfig(unit_norm=unit_norm)).double()
    values = normal(5, 7, G).abs()
    network.gene_mean.copy_(normal(6, G))
    network.input_scale.fill_(3.0)
    norm = values.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.unscale(network.scale_input(values), norm), values)


def test_input_is_unit_norm_minus_gene_mean_times_scale() -> None:
    network = make_network()
    network.gene_mean.copy_(normal(6, G))
    network.input_scale.fill_(2.0)
    values = normal(5, 7, G, dtype=torch.float32).abs()
    expected = (values / values.norm(dim=1, keepdim=True) - network.gene_mean) * 2.0
    torch.testing.assert_close(network.scale_input(values), expected)


def test_an_empty_cell_is_a_zero_cell() -> None:
    network = make_network()
    network.gene_mean.copy_(normal(6, G))
    x = network.scale_input(torch.zeros(1, G))
    torch.testing.assert_close(x, -network.gene_mean[None] * network.input_scale)
    assert (network.unscale(x, torch.zeros(1, 1)) == 0).all()
    assert torch.isfinite(network(x, frozen=True).latent).all()


def test_scaling_keeps_no_graph() -> None:
    assert not make_network().scale_input(torch.ones(2, G, requires_grad=True)).requires_grad


def test_the_state_holds_all_that_inference_needs() -> None:
    network = make_network()
    other = ScamacNetwork(G, ModelConfig(encoder_width=24, latent_width=8, bank_cells=M), InputConfig())
    other.load_state_dict(network.state_dict())
    x = normal(3, 10, G, dtype=torch.float32)
    torch.testing.assert_close(other(x, frozen=True).latent, network(x, frozen=True).latent, rtol=0, atol=0)


def test_another_number_of_genes_is_refused() -> None:
    network = make_network()
    for call in (network, network.embed, network.channel_sum, network.scale_input):
        with pytest.raises(ShapeError, match=rf"expects \(B, {G}\)"):
            call(torch.zeros(3, G + 1))
