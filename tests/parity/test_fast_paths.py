"""Every fast path equals its slow one: cut into blocks, Gram form, half precision."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, atlas_similarity, direct_similarity, gram_similarity
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.adaptive import adaptive_distance, center_distance
from scamac_scale.ops.attention import channel_product
from scamac_scale.ops.fuzzy import center_sums, centers_from_sums, membership
from scamac_scale.ops.similarity import gram_matrices, pair_means, similarity_from_means, unit_rows
from tests.support.mathematics import EXACT, memberships, normal


def gradient(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, at)[0]


@pytest.mark.parametrize(("n_cells", "width", "columns"), [(5, 8, 3), (40, 4, 12), (16, 16, 1)])
def test_gram_and_auto_form_equal_the_direct_form_in_value_and_gradient(n_cells: int, width: int, columns: int) -> None:
    u, z = memberships(1, n_cells, columns), normal(2, n_cells, width).requires_grad_()
    direct = direct_similarity(u, z)
    for form in ("gram", "auto"):
        fast = SIMILARITY_LOSSES[form](u, z)
        torch.testing.assert_close(fast, direct, **EXACT)
        torch.testing.assert_close(gradient(fast, z), gradient(direct, z), **EXACT)
        direct = direct_similarity(u, z)


def test_gradient_is_the_closed_form_of_the_gram_matrices() -> None:
    u, z = memberships(1, 30, 5), normal(2, 30, 4).requires_grad_()
    u_hat, z_hat = unit_rows(u), unit_rows(z).detach()
    g_zz, g_zu = z_hat.T @ z_hat, z_hat.T @ u_hat
    at_unit = 4 * (z_hat @ g_zz.T - u_hat @ g_zu.T) / 30**2
    expected = (at_unit - z_hat * (z_hat * at_unit).sum(1, keepdim=True)) / z.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(gram_similarity(u, z), z), expected, **EXACT)


def test_batches_against_the_atlas_average_to_the_loss_and_gradient_of_all_pairs() -> None:
    u, z = memberships(1, 60, 5), normal(2, 60, 4).requires_grad_()
    whole = direct_similarity(u, z)
    atlas = pair_means(gram_matrices(unit_rows(u), unit_rows(z).detach()))
    losses = [atlas_similarity(u[rows], z[rows], atlas) for rows in torch.arange(60).split(15)]
    average = torch.stack(losses).mean()
    torch.testing.assert_close(average, whole, **EXACT)
    torch.testing.assert_close(gradient(average, z), gradient(whole, z), **EXACT)


def test_blocked_grams_equal_whole_grams() -> None:
    u, z = unit_rows(memberships(1, 101, 5)), unit_rows(normal(2, 101, 4))
    blocks = [gram_matrices(u[rows], z[rows]) for rows in torch.arange(101).split(7)]
    whole = gram_matrices(u, z)
    for ours, expected in zip(reduce(add, blocks), whole, strict=True):
        torch.testing.assert_close(ours, expected, **EXACT)
    torch.testing.assert_close(
        similarity_from_means(pair_means(reduce(add, blocks))), similarity_from_means(pair_means(whole)), **EXACT
    )


def test_blocked_center_sums_equal_the_full_batch() -> None:
    z, u, h = normal(1, 101, 4, dtype=torch.float32), memberships(2, 101, 3), normal(3, 101, 3).abs()
    blocks = [center_sums(z[rows], u[rows], h[rows]) for rows in torch.arange(101).split(8)]
    previous = torch.zeros(3, 4, dtype=torch.float64)
    whole = centers_from_sums(center_sums(z, u, h), previous)
    torch.testing.assert_close(centers_from_sums(reduce(add, blocks), previous), whole, **EXACT)


def test_blocked_channel_products_equal_the_whole() -> None:
    q, k = normal(1, 3, 50, 4), normal(2, 3, 50, 4)
    blocks = [channel_product(q[:, rows], k[:, rows]) for rows in torch.arange(50).split(7)]
    torch.testing.assert_close(reduce(add, blocks), channel_product(q, k), **EXACT)


def test_float32_losses_equal_float64_within_their_precision() -> None:
    # float32 has 7 digits; sums of some thousand entries lose one or two of them.
    u, z, c = memberships(1, 200, 30), normal(2, 200, 16), normal(3, 7, 16)
    h = normal(4, 200, 7).abs()
    low = z.float()
    for form in SIMILARITY_LOSSES.values():
        torch.testing.assert_close(form(u.float(), low).double(), form(u, z), rtol=1e-5, atol=1e-6)
    ours = CLUSTERINGS["mean"](low, c.float(), u[:, :7].float(), h.float())
    torch.testing.assert_close(ours.double(), CLUSTERINGS["mean"](z, c, u[:, :7], h), rtol=1e-5, atol=0)


def test_sums_over_cells_keep_their_digits_under_bf16_autocast() -> None:
    u, z, c = memberships(1, 64, 5, torch.float32), normal(2, 64, 8, dtype=torch.float32), normal(3, 5, 8).float()
    h = torch.ones_like(u)

    def compute() -> list[torch.Tensor]:
        r = center_distance(z, c)
        grams = gram_matrices(unit_rows(u), unit_rows(z))
        return [
            r,
            membership(adaptive_distance(r, 0.01), 0.3),
            *center_sums(z, u, h),
            *grams,
            direct_similarity(u, z),
            gram_similarity(u, z),
            atlas_similarity(u, z, pair_means(grams)),
            CLUSTERINGS["mean"](z, c, u, h),
            RECONSTRUCTIONS["mean"](z, z + 1),
            channel_product(z[None], z[None]),
        ]

    plain = compute()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = compute()
    for ours, expected in zip(cast, plain, strict=True):
        # Same float32 kernels on both sides.
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    u, z = memberships(1, 64, 5).to(dtype), normal(2, 64, 8).to(dtype)
    for form in SIMILARITY_LOSSES.values():
        value = form(u, z)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, form(u.float(), z.float()), rtol=1e-6, atol=0)
    assert center_distance(z, z[:3]).dtype == torch.float32
    assert membership(z).dtype == torch.float32
    assert RECONSTRUCTIONS["mean"](z, z).dtype == torch.float32


def test_bf16_autocast_network_stays_near_float32() -> None:
    torch.manual_seed(0)
    network = ScamacNetwork(50, ModelConfig(encoder_width=32, latent_width=8, bank_cells=6), InputConfig())
    network.bank_cells.copy_(normal(1, 6, 50))
    network.refresh_bank()
    x = normal(2, 20, 50, dtype=torch.float32)
    exact = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x)
        kept = network.bank_k.clone()
        network.refresh_bank()
    assert half.encoding.dtype == torch.bfloat16
    assert half.latent.dtype == half.projected.dtype == half.hidden.dtype == torch.float32
    # bf16 has 8 bits of mantissa: 2^-8 = 0.4 % per product, a few per cent of the spread of the latent after four.
    error = (half.latent - exact.latent).norm() / exact.latent.norm()
    assert error < 0.02
    torch.testing.assert_close(network.bank_k, kept, rtol=0, atol=0)


def test_embedding_without_the_output_equals_the_forward_pass() -> None:
    torch.manual_seed(0)
    network = ScamacNetwork(50, ModelConfig(encoder_width=32, latent_width=8, bank_cells=6), InputConfig()).double()
    x = normal(2, 20, 50)
    latent, product = network.embed_and_sum(x)
    expected = network(x, frozen=True).latent
    torch.testing.assert_close(latent, expected, **EXACT)
    torch.testing.assert_close(network.embed(x), expected, **EXACT)
    torch.testing.assert_close(product, network.channel_sum(x), **EXACT)
    assert product.dtype == torch.float64


def test_atlas_similarity_is_the_double_loop_over_all_pairs_of_2000_cells() -> None:
    n_cells, batch = 2000, 250
    u, z = memberships(1, n_cells, 20), 3 * normal(2, n_cells, 32)
    u_hat, z_hat = unit_rows(u), unit_rows(z)
    total = sum(float(((u_hat @ u_hat[i] - z_hat @ z_hat[i]) ** 2).sum()) for i in range(n_cells))
    blocks = [gram_matrices(u_hat[rows], z_hat[rows]) for rows in torch.arange(n_cells).split(300)]
    grams = reduce(add, blocks)
    assert grams.uu is not None
    found = float(similarity_from_means(pair_means(grams))) * n_cells**2
    scale = float(grams.uu.square().sum() + grams.zz.square().sum())
    assert abs(found - total) <= 1e-9 * scale

    whole = z.float().requires_grad_()
    expected = gradient(direct_similarity(u.float(), whole), whole)
    atlas = pair_means(grams)
    for rows in torch.arange(n_cells).split(batch):
        part = z[rows].float().requires_grad_()
        # The batch stands for all cells: its gradient is N / B times its share of the whole.
        ours = gradient(atlas_similarity(u[rows].float(), part, atlas), part) * (batch / n_cells)
        error = (ours - expected[rows]).norm() / expected[rows].norm()
        assert error < 1e-5  # float32: seven digits less what the two terms of the gradient cancel
