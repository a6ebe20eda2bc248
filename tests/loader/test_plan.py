from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scamac_scale.errors import PlanError
from scamac_scale.loader.plan import WINDOW_CELLS, EpochPlan, SweepPlan, window_for
from scamac_scale.world import World

sizes = st.fixed_dictionaries(
    {
        "n_cells": st.integers(1, 300),
        "batch_cells": st.integers(1, 70),
        "window_cells": st.integers(1, 100),
        "block_cells": st.integers(1, 40),
        "seed": st.integers(0, 5),
    }
)


def epoch_of(plan: EpochPlan, epoch: int = 0) -> list[np.ndarray]:
    return [plan.rows(epoch, index) for index in range(plan.n_batches)]


@settings(deadline=None)
@given(sizes, st.integers(0, 3))
def test_epoch_has_every_cell_exactly_once(size: dict[str, int], epoch: int) -> None:
    plan = EpochPlan(**size)
    np.testing.assert_array_equal(np.sort(np.concatenate(epoch_of(plan, epoch))), np.arange(size["n_cells"]))


@settings(deadline=None)
@given(sizes)
def test_epoch_batches_differ_by_at_most_one_cell_and_fit(size: dict[str, int]) -> None:
    plan = EpochPlan(**size)
    lengths = [rows.size for rows in epoch_of(plan)]
    assert plan.n_batches == -(-size["n_cells"] // size["batch_cells"])
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= size["batch_cells"]
    assert min(lengths) >= 1


@settings(deadline=None)
@given(sizes, st.integers(1, 5), st.integers(0, 2))
def test_ranks_together_read_the_same_global_batches(size: dict[str, int], world: int, epoch: int) -> None:
    whole = EpochPlan(**size)
    ranks = [EpochPlan(**size, world=World(rank, world)) for rank in range(world)]
    assert {plan.n_batches for plan in ranks} == {whole.n_batches}
    for index in range(whole.n_batches):
        parts = [plan.rows(epoch, index) for plan in ranks]
        np.testing.assert_array_equal(np.concatenate(parts), whole.rows(epoch, index))
        assert max(part.size for part in parts) - min(part.size for part in parts) <= 1


@settings(deadline=None)
@given(sizes, st.data())
def test_a_jump_to_any_batch_gives_the_batch_of_an_unbroken_run(size: dict[str, int], data: st.DataObject) -> None:
    unbroken = EpochPlan(**size)
    batches = [epoch_of(unbroken, epoch) for epoch in range(2)]
    epoch, index = data.draw(st.integers(0, 1)), data.draw(st.integers(0, unbroken.n_batches - 1))
    np.testing.assert_array_equal(EpochPlan(**size).rows(epoch, index), batches[epoch][index])


def test_small_atlas_is_permuted_in_full() -> None:
    plan = EpochPlan(20_000, 20_000, 0)
    rows = plan.rows(0, 0)
    # of a full permutation, neighbours lie a third of the atlas apart on average; within blocks it would be 0.017
    assert np.abs(np.diff(rows)).mean() / 20_000 == pytest.approx(1 / 3, abs=0.01)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [EpochPlan(1000, 1000, seed).rows(epoch, 0) for seed in (0, 1) for epoch in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).mean() < 0.02


def test_windows_hold_whole_blocks_of_consecutive_rows() -> None:
    plan = EpochPlan(1000, 50, 3, window_cells=100, block_cells=10)
    for window in range(10):
        rows = np.sort(np.concatenate([plan.rows(0, 2 * window), plan.rows(0, 2 * window + 1)]))
        np.testing.assert_array_equal(rows % 10, np.tile(np.arange(10), 10))


def test_cells_of_neighbouring_batches_mix_between_epochs() -> None:
    plan = EpochPlan(4096, 64, 0, window_cells=512, block_cells=16)
    batch = np.empty((2, 4096), int)
    for epoch in (0, 1):
        for index, rows in enumerate(epoch_of(plan, epoch)):
            batch[epoch, rows] = index
    order = np.argsort(batch[0], kind="stable").reshape(64, 64)
    again = sum((batch[1, cells][:, None] == batch[1, cells]).sum() - 64 for cells in order)
    assert again / (64 * 64 * 63) < 1.3 * 63 / 4095  # chance; ten standard errors below 1.3


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
def test_sweep_reads_rows_in_order(n_cells: int, batch_cells: int, world: int) -> None:
    ranks = [SweepPlan(n_cells, batch_cells, World(rank, world)) for rank in range(world)]
    rows = [plan.rows(index) for index in range(ranks[0].n_batches) for plan in ranks]
    assert ranks[0].n_batches == -(-n_cells // batch_cells)
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(n_cells))


@pytest.mark.parametrize("index", [-1, 4])
def test_batch_beyond_the_epoch_is_refused(index: int) -> None:
    with pytest.raises(PlanError, match="batches 0 to 3"):
        EpochPlan(100, 25, 0).rows(0, index)
    with pytest.raises(PlanError, match="batches 0 to 3"):
        SweepPlan(100, 25).rows(index)


def test_plan_of_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="n_cells=0"):
        EpochPlan(0, 10, 0)
    with pytest.raises(PlanError, match="batch_cells=0"):
        SweepPlan(10, 0)


def test_rows_handed_out_do_not_change_the_plan() -> None:
    plan = EpochPlan(100, 100, 0)
    first = plan.rows(0, 0).copy()
    handed = plan.rows(0, 0)
    handed[:] = 0
    np.testing.assert_array_equal(plan.rows(0, 0), first)


@given(st.integers(1, 10**9), st.integers(1, 10**5), st.integers(2**20, 2**32))
def test_two_windows_fit_in_what_is_kept(n_cells: int, cell_bytes: int, kept_bytes: int) -> None:
    window = window_for(n_cells, n_cells * cell_bytes, kept_bytes)
    assert window % 1024 == 0
    assert 1024 <= window <= WINDOW_CELLS
    if n_cells * cell_bytes <= kept_bytes:
        assert window == WINDOW_CELLS
    elif 1024 < window < WINDOW_CELLS:
        assert 2 * window * cell_bytes <= kept_bytes < 2 * (window + 1024) * cell_bytes
    elif window == WINDOW_CELLS:
        assert 2 * window * cell_bytes <= kept_bytes


def test_cells_of_an_ordinary_atlas_mix_in_full_windows() -> None:
    assert window_for(10**7, 10**7 * 300 * 6) == WINDOW_CELLS
    assert window_for(10**7, 10**7 * 1000 * 6) == 21 * 1024
