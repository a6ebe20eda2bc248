"""Counts are found again in log-normalised values, and dealt out by chance alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.cells.normalisation import normalise_values
from scamac_scale.ops.thinning import counts_of, thin, values_of
from tests.support.mathematics import LAWS


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@LAWS
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=20), st.floats(0.01, 1000))
def test_counts_come_back_from_their_values(counts: list[int], scale: float) -> None:
    raw, factor = np.array(counts), np.array([scale])
    values = torch.from_numpy(normalise_values(np.array([0, raw.size]), raw, factor))[None]
    found = counts_of(values, torch.from_numpy(factor).float()[:, None])
    assert found[0].tolist() == counts
    torch.testing.assert_close(values_of(found, torch.tensor([[scale]])), values)


def test_molecules_are_drawn_each_with_the_same_chance() -> None:
    counts = torch.arange(6.0).repeat(20_000, 1)
    drawn = thin(counts, 0.2, generator(0))
    assert ((drawn >= 0) & (drawn <= counts) & (drawn == drawn.round())).all()
    n = torch.arange(6.0)
    torch.testing.assert_close(drawn.mean(dim=0), 0.2 * n, rtol=0, atol=0.02)  # 3 standard errors of the largest
    torch.testing.assert_close(drawn.var(dim=0), 0.16 * n, rtol=0.05, atol=0)


def test_the_two_parts_of_poisson_counts_are_independent() -> None:
    counts = torch.poisson(torch.full((50_000, 1), 4.0), generator=generator(1))
    drawn = thin(counts, 0.5, generator(2))
    correlation = torch.corrcoef(torch.stack([drawn.ravel(), (counts - drawn).ravel()]))[0, 1]
    assert abs(float(correlation)) < 0.02  # 4 standard errors; counts that are halved in place of dealt out have 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_draw_depends_on_the_generator_alone(threads: int) -> None:
    counts, before = torch.full((200, 30), 7.0), torch.get_num_threads()
    expected = thin(counts, 0.3, generator(3))
    try:
        torch.set_num_threads(threads)
        assert torch.equal(thin(counts, 0.3, generator(3)), expected)
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(thin(counts, 0.3, generator(4)), expected)
