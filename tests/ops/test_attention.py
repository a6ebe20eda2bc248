from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.infer.attention import KEY_BLOCK
from scamac_scale.ops.attention import (
    BANK_FORMS,
    SPATIAL_FORMS,
    attention_parts,
    batch_attention,
    channel_attention,
    channel_product,
)
from tests.support.attention import attention_by_blocks
from tests.support.mathematics import LAWS, normal


@LAWS
@given(st.integers(0, 99), st.integers(1, 9))
def test_each_output_channel_is_a_weighted_mean_of_the_channels(seed: int, n_cells: int) -> None:
    v, product = normal(seed, 2, n_cells, 4), 5 * normal(seed + 1, 2, 4, 4)
    out = channel_attention(v, product)
    assert (out <= v.max(dim=-1, keepdim=True).values + 1e-9).all()
    assert (out >= v.min(dim=-1, keepdim=True).values - 1e-9).all()
    torch.testing.assert_close(channel_attention(torch.ones_like(v), product), torch.ones_like(v))


@LAWS
@given(st.integers(0, 99), st.integers(1, 12), st.integers(0, 12))
def test_channel_products_add_up_over_any_cut(seed: int, n_cells: int, cut: int) -> None:
    q, k = normal(seed, 3, n_cells, 4), normal(seed + 1, 3, n_cells, 4)
    parts = channel_product(q[:, :cut], k[:, :cut]) + channel_product(q[:, cut:], k[:, cut:])
    torch.testing.assert_close(parts, channel_product(q, k), rtol=1e-12, atol=1e-12)


def test_channel_attention_of_a_cell_ignores_its_batch_mates() -> None:
    v, product = normal(1, 3, 8, 4), normal(2, 3, 4, 4)
    torch.testing.assert_close(channel_attention(v[:, 2:3], product), channel_attention(v, product)[:, 2:3])


def test_bank_forms_are_known_forms() -> None:
    assert set(SPATIAL_FORMS) >= BANK_FORMS


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"q \(S, B, D\)"):
        channel_product(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="same shape"):
        channel_product(torch.zeros(1, 3, 4), torch.zeros(1, 3, 5))
    with pytest.raises(ShapeError, match=r"mean_product came with shape \(1, 4, 3\)"):
        channel_attention(torch.zeros(1, 3, 4), torch.zeros(1, 4, 3))


@LAWS
@given(st.integers(0, 99), st.integers(0, 40), st.integers(1, 17))
def test_parts_over_any_split_of_the_keys_add_up_in_any_order(seed: int, n_keys: int, size: int) -> None:
    q, k, v = normal(seed, 2, 5, 3), 20 * normal(seed + 1, 2, n_keys, 3), normal(seed + 2, 2, n_keys, 3)
    empty = attention_parts(q, k[:, :0], v[:, :0])
    parts = [attention_parts(q, k[:, rows], v[:, rows]) for rows in torch.arange(n_keys).split(size)]
    for found in (reduce(add, parts, empty), reduce(add, parts[::-1], empty), empty + reduce(add, parts, empty)):
        for ours, whole in zip(found, attention_parts(q, k, v), strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)
    if n_keys:
        torch.testing.assert_close(reduce(add, parts).value(), batch_attention(q, k, v), rtol=1e-10, atol=1e-10)


def test_parts_add_up_to_dense_softmax_over_5000_cells_in_float32() -> None:
    q, k, v = (scale * normal(index, 3, 5000, 32, dtype=torch.float32) for index, scale in enumerate((2, 2, 1)))
    rows = slice(0, 5000, 50)
    scores = q[:, rows].double() @ k.double().mT / 32**0.5
    expected = torch.softmax(scores, dim=-1) @ v.double()
    found = attention_by_blocks(q[:, rows], k, v, n_block=KEY_BLOCK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
