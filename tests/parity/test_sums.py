"""Sums over the atlas do not depend on the order of the cells, the size of the batches or the number of ranks."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.ops.attention import channel_product
from scamac_scale.ops.fuzzy import center_sums
from scamac_scale.ops.similarity import gram_matrices, unit_rows
from scamac_scale.ranks.collectives import tree_sum
from tests.support.mathematics import LAWS, memberships, normal


def within(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    # float32 cells, float64 sums: a millionth of the Frobenius norm.
    return bool((ours.double() - expected).norm() <= 1e-6 * expected.norm())


@LAWS
@given(
    st.integers(0, 99),
    st.integers(1, 400),
    st.integers(1, 150),
    st.sampled_from([1, 2, 4]),
    st.randoms(use_true_random=False),
)
@pytest.mark.slow
def test_order_batches_and_ranks_change_nothing(
    seed: int, n_cells: int, size: int, n_ranks: int, random: object
) -> None:
    z, u = normal(seed, n_cells, 6, dtype=torch.float32), memberships(seed, n_cells, 4, torch.float32)
    h = normal(seed + 1, n_cells, 4, dtype=torch.float32).abs() + 0.1
    q, k = normal(seed + 2, 3, n_cells, 5, dtype=torch.float32), normal(seed + 3, 3, n_cells, 5, dtype=torch.float32)
    order = list(range(n_cells))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    batches = torch.tensor(order).split(size)
    shares = [[rows[rank::n_ranks] for rows in batches] for rank in range(n_ranks)]  # some may be without a cell

    def over_ranks(part: object) -> object:
        return tree_sum([reduce(add, [part(rows) for rows in rank]) for rank in shares])  # type: ignore[operator]

    z_hat, u_hat = unit_rows(z.double()), unit_rows(u.double())
    expected = {
        "zz": z_hat.T @ z_hat,
        "uz": u_hat.T @ z_hat,
        "uu": u_hat.T @ u_hat,
        "weighted": (u.double() * h.double()).T @ z.double(),
        "weight": (u.double() * h.double()).sum(dim=0),
    }
    for precise in (False, True):
        dtype = torch.float64 if precise else torch.float32
        grams = over_ranks(
            lambda rows, dtype=dtype: gram_matrices(unit_rows(u[rows].to(dtype)), unit_rows(z[rows].to(dtype)))
        )
        assert all(within(getattr(grams, name), expected[name]) for name in ("zz", "uz", "uu"))
        assert float(grams.n_cells) == n_cells  # type: ignore[attr-defined]
    centers = over_ranks(lambda rows: center_sums(z[rows], u[rows], h[rows]))
    assert all(within(getattr(centers, name), expected[name]) for name in ("weighted", "weight"))
    product = over_ranks(lambda rows: channel_product(q[:, rows], k[:, rows]).double())
    assert within(product, q.double().mT @ k.double())  # type: ignore[arg-type]
