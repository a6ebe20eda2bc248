"""Blocks that go through the network side by side have the values and the gradient of their batch as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.blocks import Blocks, count_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.config.choices import Scale

G = 12
MODEL = ModelConfig(encoder_width=10, latent_width=4, bank_cells=6)


def network_of(**settings: Any) -> ScamacNetwork:
    torch.manual_seed(0)
    network = ScamacNetwork(G, replace(MODEL, **settings), InputConfig()).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.5)
    network.start_attention(torch.randn(6, G).double())
    return network


def gradients(network: ScamacNetwork) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("sizes", [[37], [8, 8, 8, 8], [10, 9, 9, 9], [3, 0, 2, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spatial_form": "batch"},
        {"channel_form": "batch"},
        {"has_synergy": False},
        {"has_integration": False, "fusion": "gated_sum"},
        {"scales": ("hidden",)},
    ],
)
def test_blocks_have_the_gradient_of_their_batch(sizes: Sequence[int], settings: dict[str, Any]) -> None:
    network, x = network_of(**settings), torch.randn(sum(sizes), G).double()
    pull = torch.randn(sum(sizes), 4).double()
    whole = network(x)
    ((whole.output**2).mean(dim=1) + (whole.latent * pull).sum(dim=1)).mean().backward()
    expected = gradients(network)
    blocks = Blocks(network, len(sizes), ALONE)
    counted = blocks.cut(torch.ones(len(x)).double(), sizes)
    layers, latent, product = blocks.forward(blocks.cut(x, sizes), counted, sizes, ALONE)
    assert latent is not None
    share = counted / sum(sizes)
    of_cells = (layers.output**2).mean(dim=2) + (latent * blocks.cut(pull, sizes)).sum(dim=2)
    losses = (of_cells * share).sum(dim=1)
    report = blocks.backward(losses, losses.detach()[:, None].float(), ALONE)
    found = gradients(network)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.is_contiguous(), name  # fused optimizers do not look
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(latent[counted > 0], whole.latent, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(report.double(), losses.sum()[None], rtol=1e-5, atol=0)  # float32
    if network.has_synergy:
        exact = network.synergy.channel_sum(network.layers(x).normalised) / len(x)
        torch.testing.assert_close(product, exact, rtol=1e-10, atol=1e-12)


def test_the_attention_is_left_out_where_no_term_looks_at_the_latent() -> None:
    network, x = network_of(), torch.randn(16, G).double()
    blocks = Blocks(network, 2, ALONE)
    args = blocks.cut(x, [8, 8]), blocks.cut(torch.ones(16).double(), [8, 8]), [8, 8], ALONE
    layers, latent, product = blocks.forward(*args, has_latent=False)
    others, _, same = blocks.forward(*args)
    assert latent is None
    assert torch.equal(layers.output, others.output)
    assert torch.equal(product, same)


def test_weights_that_a_step_has_moved_are_seen_by_the_blocks() -> None:
    network, x = network_of(), torch.randn(16, G).double()
    blocks = Blocks(network, 2, ALONE)
    args = blocks.cut(x, [8, 8]), blocks.cut(torch.ones(16).double(), [8, 8]), [8, 8], ALONE
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.5)
    network.refresh_bank()
    latent = blocks.forward(*args)[1]
    assert latent is not None
    torch.testing.assert_close(latent[:, :8].flatten(0, 1), network(x).latent, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 3])
def test_a_batch_is_cut_alike_on_ranks_that_divide_its_blocks(size: int) -> None:
    assert count_blocks(512, World(0, size), "blocks") == (8 if 8 % size == 0 else size)
    assert count_blocks(512, World(0, size), "ranks") == size


def in_groups(network: ScamacNetwork, x: torch.Tensor, n_together: int, precision: torch.dtype) -> list[torch.Tensor]:
    """Latents, outputs and gradients of the blocks of a batch, when so many go through the network together."""
    found: list[tuple[torch.Tensor, ...]] = []
    sizes = [x.shape[1]] * n_together
    for group in x.split(n_together):
        blocks = Blocks(network, n_together, ALONE)
        group = blocks.cut(group.flatten(0, 1), sizes)
        counted = blocks.cut(torch.ones(n_together * x.shape[1], device=x.device), sizes)
        with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
            layers, latent, _ = blocks.forward(group, counted, sizes, ALONE)
        assert latent is not None
        loss = ((layers.output.float().square().sum(dim=2) + latent.sum(dim=2)) * counted).sum()
        gradients = torch.autograd.grad(loss, blocks._weights, allow_unused=True)
        found.append((latent.detach(), layers.output.detach(), *(part for part in gradients if part is not None)))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("scales", [MODEL.scales, ("hidden",)])
@pytest.mark.parametrize("n_cells", [15, 58, 64])
@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_a_block_has_the_same_bits_however_many_go_with_it(
    n_cells: int, device: str, precision: torch.dtype, scales: tuple[Scale, ...]
) -> None:
    """Without the product of Eq. (11), which is a sum over all blocks."""
    network = network_of(scales=scales).float().to(device)
    network.mean_product.zero_()
    torch.manual_seed(1)
    x = torch.randn(8, n_cells, G, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ScamacNetwork, "followed_product", lambda self, batch: torch.zeros_like(batch))
            expected = in_groups(network, x, 8, precision)
            for n_together in (1, 2, 4):
                for found, wanted in zip(in_groups(network, x, n_together, precision), expected, strict=True):
                    assert torch.equal(found, wanted)
    finally:
        torch.set_num_threads(threads)
