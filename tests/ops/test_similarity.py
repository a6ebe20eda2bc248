from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.ops.similarity import Codes, follow_batch, gram_matrices, pair_means, similarity_from_means, unit_rows
from tests.support.mathematics import LAWS, matrix, memberships, normal


@LAWS
@given(matrix())
def test_rows_have_length_one_or_zero(x: torch.Tensor) -> None:
    lengths = unit_rows(x).norm(dim=1)
    expected = (x.norm(dim=1) > 0).double()
    torch.testing.assert_close(lengths, expected)


@LAWS
@given(matrix(low=0.1), st.floats(1e-3, 1e3))
def test_the_length_of_a_row_does_not_matter(x: torch.Tensor, factor: float) -> None:
    torch.testing.assert_close(unit_rows(x * factor), unit_rows(x), rtol=1e-12, atol=1e-12)


@LAWS
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40))
def test_grams_of_any_split_add_up_to_the_whole(seed: int, n_cells: int, size: int) -> None:
    u, z = memberships(seed, n_cells, 3), normal(seed, n_cells, 4)
    parts = [gram_matrices(u[rows], z[rows]) for rows in torch.arange(n_cells).split(size)]
    for found, whole in zip(reduce(add, parts), gram_matrices(u, z), strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


@LAWS
@given(st.integers(0, 99), st.integers(1, 20))
def test_loss_is_zero_where_similarities_agree_and_never_negative(seed: int, n_cells: int) -> None:
    z_hat = unit_rows(normal(seed, n_cells, 3))
    rotation = torch.linalg.qr(normal(seed + 1, 3, 3)).Q
    value = similarity_from_means(pair_means(gram_matrices(z_hat @ rotation, z_hat)))
    assert value >= 0
    # The three squared norms cancel to the last digits of float64.
    assert value < 1e-14


def test_grams_are_double_whatever_the_input() -> None:
    grams = gram_matrices(torch.ones(4, 2), torch.ones(4, 3))
    assert all(field is not None and field.dtype == torch.float64 for field in grams)
    assert float(grams.n_cells) == 4


def codes(seed: int, n_cells: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.stack([torch.randint(low, low + 4, (n_cells,), generator=generator) for low in (0, 4, 8)], dim=1)
    return Codes(columns, torch.tensor([0.5, 0.5, 0.5**0.5], dtype=torch.float64), 12)


def test_codes_are_the_dense_rows_without_their_zeros() -> None:
    u, z = codes(1, 40), normal(2, 40, 4)
    torch.testing.assert_close(u.dense().square().sum(dim=1), torch.ones(40, dtype=torch.float64))
    coded, dense = gram_matrices(u, z), gram_matrices(u.dense(), z)
    torch.testing.assert_close(coded.uz, dense.uz, rtol=1e-12, atol=1e-12)
    assert dense.uu is not None
    known = pair_means(coded, dense.uu.square().sum())
    for found, expected in zip(known, pair_means(dense), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_grams_of_codes_need_the_square_of_the_memberships() -> None:
    with pytest.raises(ShapeError, match="pass uu_square"):
        pair_means(gram_matrices(codes(1, 5), normal(2, 5, 4)))


def test_means_follow_a_batch_by_their_momentum() -> None:
    u, z = unit_rows(memberships(1, 30, 3)), unit_rows(normal(2, 30, 4))
    means, batch = pair_means(gram_matrices(u, z)), gram_matrices(u[:7], z[:7])
    for found, before in zip(follow_batch(means, batch, 0.0), means, strict=True):
        torch.testing.assert_close(found, before, rtol=0, atol=0)
    followed = follow_batch(means, batch, 0.25)
    torch.testing.assert_close(followed.zz, 0.75 * means.zz + 0.25 * batch.zz / 7)
    torch.testing.assert_close(followed.uz, 0.75 * means.uz + 0.25 * batch.uz / 7)
    assert followed.uu_square == means.uu_square


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"x \(B, D\)"):
        unit_rows(torch.zeros(3))
    with pytest.raises(ShapeError, match="cells of u_hat and z_hat: got 3 and 4"):
        gram_matrices(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="cells of u_hat and z_hat: got 5 and 4"):
        gram_matrices(codes(1, 5), torch.zeros(4, 2))
