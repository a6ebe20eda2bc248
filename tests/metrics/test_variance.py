from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ShapeError
from scamac_scale.metrics.variance import GroupSums
from tests.support.mathematics import LAWS


def by_definition(values: np.ndarray, batches: np.ndarray, clusters: np.ndarray) -> float:
    between = total = 0.0
    for cluster in np.unique(clusters):
        of_cluster = values[clusters == cluster]
        total += ((of_cluster - of_cluster.mean(axis=0)) ** 2).sum()
        for batch in np.unique(batches[clusters == cluster]):
            part = values[(clusters == cluster) & (batches == batch)]
            between += len(part) * ((part.mean(axis=0) - of_cluster.mean(axis=0)) ** 2).sum()
    return between / total


@LAWS
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([0.0, 1e5]))
def test_streamed_shares_are_those_of_all_cells_at_once(seed: int, block_cells: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    batches, clusters = rng.integers(0, 3, 150), rng.integers(0, 4, 150)
    values = rng.normal(size=(150, 4)) + batches[:, None] + 3 * clusters[:, None] + offset
    sums = GroupSums(12, 4)
    for start in range(0, 150, block_cells):
        block = slice(start, start + block_cells)
        sums.add(values[block], (3 * clusters + batches)[block])
    inner, outer = np.arange(12) % 3, np.arange(12) // 3
    assert sums.counts.sum() == 150
    # an offset of 1e5 costs 5 of 16 digits in the values themselves
    assert sums.share_between(inner) == pytest.approx(by_definition(values, batches, 0 * batches), rel=1e-8)
    assert sums.share_between(inner, outer) == pytest.approx(by_definition(values, batches, clusters), rel=1e-8)


def test_batches_that_are_points_have_all_of_the_variance_and_batches_alike_none() -> None:
    sums = GroupSums(2, 1)
    sums.add(np.array([[0.0], [0.0], [4.0], [4.0]]), np.array([0, 0, 1, 1]))
    assert sums.share_between(np.arange(2)) == 1.0
    alike = GroupSums(2, 1)
    alike.add(np.array([[0.0], [4.0], [0.0], [4.0]]), np.array([0, 0, 1, 1]))
    assert alike.share_between(np.arange(2)) == 0.0


def test_without_variance_there_is_no_share() -> None:
    sums = GroupSums(2, 3)
    assert sums.share_between(np.arange(2)) is None
    sums.add(np.full((6, 3), 0.1, dtype=np.float32), np.arange(6) % 2)
    sums.add(np.empty((0, 3)), np.empty(0, dtype=int))
    assert sums.share_between(np.arange(2)) is None


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, 3\)"):
        GroupSums(2, 3).add(np.zeros((4, 2)), np.zeros(4, dtype=int))
