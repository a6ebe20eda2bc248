"""Every op equals the loops of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scamac_scale.ops.adaptive import adaptive_distance, center_distance, robust_weight
from scamac_scale.ops.attention import SPATIAL_FORMS, channel_attention, channel_product
from scamac_scale.ops.fuzzy import center_sums, centers_from_sums, membership, relative_temperature
from scamac_scale.ops.similarity import gram_matrices, pair_means, similarity_from_means, unit_rows
from tests.parity import reference
from tests.support.attention import attention_by_blocks
from tests.support.mathematics import assert_exact, memberships, normal

Z, C = normal(1, 11, 4), normal(2, 3, 4)


@pytest.mark.parametrize("epsilon", [0.01, 1.0])
def test_adaptive_distance_equals_the_text_under_eq_14(epsilon: float) -> None:
    ours = adaptive_distance(center_distance(Z, C), epsilon)
    assert_exact(ours, reference.adaptive_distance(Z.numpy(), C.numpy(), epsilon))


@pytest.mark.parametrize("epsilon", [0.01, 1.0])
def test_robust_weight_equals_the_text_under_eq_12(epsilon: float) -> None:
    ours = robust_weight(center_distance(Z, C), epsilon)
    assert_exact(ours, reference.robust_weight(Z.numpy(), C.numpy(), epsilon))


@pytest.mark.parametrize("gap", [1e-9, 1e-3, 1e6])
def test_small_and_large_distances_keep_their_digits(gap: float) -> None:
    z = C[:1] + gap
    assert_exact(center_distance(z, C), [[reference.distance(z[0].numpy(), c.numpy()) for c in C]])


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_membership_equals_eq_14(temperature: float) -> None:
    d = reference.adaptive_distance(Z.numpy(), C.numpy(), 0.01)
    assert_exact(membership(torch.from_numpy(d), temperature), reference.membership(d, temperature))


def test_relative_temperature_is_gamma_times_the_mean_gap() -> None:
    d = reference.adaptive_distance(Z.numpy(), C.numpy(), 0.01)
    gaps = [sorted(row)[1] - sorted(row)[0] for row in d]
    assert relative_temperature(torch.from_numpy(d), 0.1) == pytest.approx(0.1 * sum(gaps) / len(gaps), rel=1e-12)


def test_centers_equal_eq_13() -> None:
    u, h = memberships(3, 11, 3), normal(4, 11, 3).abs()
    ours = centers_from_sums(center_sums(Z, u, h), C)
    assert_exact(ours, reference.centers(Z.numpy(), u.numpy(), h.numpy()))


FORMS = {**SPATIAL_FORMS, "parts": attention_by_blocks}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_self", [False, True])
def test_spatial_attention_equals_eq_10(form: str, with_self: bool) -> None:
    q, k, v = normal(5, 3, 6, 4), normal(6, 3, 5, 4), normal(7, 3, 5, 4)
    own = (normal(8, 3, 6, 4), normal(9, 3, 6, 4)) if with_self else ()
    expected = [reference.spatial_attention(*(tensor[s].numpy() for tensor in (q, k, v, *own))) for s in range(3)]
    assert_exact(FORMS[form](q, k, v, *own), np.array(expected))


def test_channel_attention_equals_eq_11() -> None:
    q, k, v = normal(5, 3, 6, 4), normal(6, 3, 6, 4), normal(7, 3, 6, 4)
    products = np.array([reference.channel_product(q[s].numpy(), k[s].numpy()) for s in range(3)])
    assert_exact(channel_product(q, k), products)
    expected = [reference.channel_attention(v[s].numpy(), products[s] / 6) for s in range(3)]
    assert_exact(channel_attention(v, channel_product(q, k) / 6), np.array(expected))


def test_unit_rows_equal_im_of_eq_15() -> None:
    x = torch.cat([Z, torch.zeros(1, 4, dtype=torch.float64)])
    assert_exact(unit_rows(x), np.array([reference.unit(row) for row in x.numpy()]))


def test_gram_form_equals_eq_15_over_all_pairs() -> None:
    u = memberships(3, 11, 3)
    ours = similarity_from_means(pair_means(gram_matrices(unit_rows(u), unit_rows(Z))))
    assert_exact(ours, reference.similarity_loss(u.numpy(), Z.numpy()) / 11)


def test_adaptive_distance_has_the_limits_printed_under_eq_14() -> None:
    epsilon = 0.01
    near, far = torch.tensor([1e-8], dtype=torch.float64), torch.tensor([1e8], dtype=torch.float64)
    torch.testing.assert_close(adaptive_distance(near, epsilon), (1 + epsilon) / epsilon * near**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(adaptive_distance(far, epsilon), (1 + epsilon) * far, rtol=1e-5, atol=0)
