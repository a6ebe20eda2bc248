from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scamac_scale.cells.buffer import rows_of
from scamac_scale.errors import PlanError
from scamac_scale.loader.ordered import RowsPlan, SweepPlan
from scamac_scale.loader.plan import (
    LANES,
    MIN_NEIGHBOR_CELLS,
    NEIGHBOR_CELLS,
    WINDOW_CELLS,
    EpochPlan,
    Plan,
    window_sizes,
)
from scamac_scale.loader.weighted import WeightedPlan, balanced_weights
from scamac_scale.ranks.world import World

sizes = st.fixed_dictionaries(
    {
        "n_cells": st.integers(1, 300),
        "batch_cells": st.integers(1, 60),
        "window_cells": st.integers(1, 130),
        "block_cells": st.integers(1, 30),
        "seed": st.integers(0, 5),
    }
)


def epoch_of(plan: EpochPlan, epoch: int = 0) -> list[np.ndarray]:
    return [plan.rows(epoch, index) for index in range(plan.n_batches)]


def loaded_rows(plan: Plan, step: int) -> np.ndarray:
    """Rows of a step as a feed finds them: from what the parts load, at the places that are named."""
    pieces = plan.share(step).pieces
    windows = range(*plan.windows(step))
    assert all(piece.window in windows and 0 <= piece.part < plan.n_parts for piece in pieces)
    rows = [rows_of(*plan.runs(piece.window, piece.part))[piece.places] for piece in pieces]
    return np.concatenate([np.empty(0, np.int64), *rows])


@settings(deadline=None, max_examples=15)
@given(sizes, st.integers(0, 3))
def test_epoch_has_every_cell_exactly_once(size: dict[str, int], epoch: int) -> None:
    plan = EpochPlan(**size)
    np.testing.assert_array_equal(np.sort(np.concatenate(epoch_of(plan, epoch))), np.arange(size["n_cells"]))


@settings(deadline=None, max_examples=15)
@given(sizes)
def test_epoch_batches_differ_by_at_most_one_cell_and_fit(size: dict[str, int]) -> None:
    plan = EpochPlan(**size)
    lengths = [rows.size for rows in epoch_of(plan)]
    assert plan.n_batches == -(-size["n_cells"] // size["batch_cells"])
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= size["batch_cells"]
    assert min(lengths) >= 1


@settings(deadline=None, max_examples=12)
@given(sizes, st.sampled_from([2, 4, 8]), st.integers(0, 2))
@pytest.mark.slow
def test_ranks_put_together_are_one_process_cell_by_cell(size: dict[str, int], world: int, epoch: int) -> None:
    whole = EpochPlan(**size)
    ranks = [EpochPlan(**size, world=World(rank, world)) for rank in range(world)]
    assert {plan.n_batches for plan in ranks} == {whole.n_batches}
    for index in range(whole.n_batches):
        parts = [plan.rows(epoch, index) for plan in ranks]
        np.testing.assert_array_equal(np.concatenate(parts), whole.rows(epoch, index))


@settings(deadline=None, max_examples=10)
@given(sizes, st.sampled_from([3, 5, 16, 63, 64]))
def test_any_number_of_ranks_has_the_cells_of_one_process(size: dict[str, int], world: int) -> None:
    whole = EpochPlan(**size)
    ranks = [EpochPlan(**size, world=World(rank, world)) for rank in range(world)]
    for index in range(whole.n_batches):
        parts = np.concatenate([plan.rows(0, index) for plan in ranks])
        np.testing.assert_array_equal(np.sort(parts), np.sort(whole.rows(0, index)))


@settings(deadline=None, max_examples=15)
@given(sizes, st.integers(1, 9), st.data())
def test_a_feed_finds_the_rows_where_the_plan_says(size: dict[str, int], world: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, world - 1))
    plan = EpochPlan(**size, world=World(rank, world))
    for step in range(2 * plan.n_batches):
        np.testing.assert_array_equal(loaded_rows(plan, step), plan.share(step).rows)


@settings(deadline=None, max_examples=15)
@given(sizes, st.integers(1, 9))
@pytest.mark.slow
def test_ranks_read_what_they_deliver_and_nothing_else(size: dict[str, int], world: int) -> None:
    for rank in range(world):
        plan = EpochPlan(**size, world=World(rank, world))
        n_windows = plan.windows(plan.n_batches - 1)[1]
        runs = [plan.runs(window, part) for window in range(n_windows) for part in range(plan.n_parts)]
        read = np.concatenate([rows_of(*run) for run in runs])
        np.testing.assert_array_equal(np.sort(read), np.sort(np.concatenate(epoch_of(plan))))


@settings(deadline=None)
@given(sizes)
def test_windows_never_come_earlier_in_later_steps(size: dict[str, int]) -> None:
    plan = EpochPlan(**size)
    windows = [plan.windows(step) for step in range(3 * plan.n_batches)]
    assert all(a[0] <= b[0] <= a[1] <= b[1] for a, b in itertools.pairwise(windows))


@settings(deadline=None, max_examples=12)
@given(sizes, st.data())
@pytest.mark.slow
def test_a_jump_to_any_batch_gives_the_batch_of_an_unbroken_run(size: dict[str, int], data: st.DataObject) -> None:
    unbroken = EpochPlan(**size)
    batches = [epoch_of(unbroken, epoch) for epoch in range(2)]
    epoch, index = data.draw(st.integers(0, 1)), data.draw(st.integers(0, unbroken.n_batches - 1))
    np.testing.assert_array_equal(EpochPlan(**size).rows(epoch, index), batches[epoch][index])


def test_a_new_process_gives_the_same_batch() -> None:
    code = (
        "from scamac_scale.loader.plan import EpochPlan\n"
        "print(EpochPlan(9000, 500, 3, window_cells=2048, block_cells=16).rows(2, 7).tolist())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(EpochPlan(9000, 500, 3, window_cells=2048, block_cells=16).rows(2, 7).tolist())


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [EpochPlan(1000, 1000, seed, block_cells=16).rows(epoch, 0) for seed in (0, 1) for epoch in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).mean() < 0.02


def test_every_batch_takes_alike_from_all_blocks_of_its_window() -> None:
    plan = EpochPlan(6400, 640, 3, window_cells=6400, block_cells=100)  # a lane is a block
    for rows in epoch_of(plan):
        np.testing.assert_array_equal(np.bincount(rows // 100), 10)


def test_ranks_exchange_cells_between_epochs() -> None:
    plan = EpochPlan(64_000, 1000, 0, World(0, 4), window_cells=6400, block_cells=100)
    cells = [np.concatenate(epoch_of(plan, epoch)) for epoch in range(2)]
    assert 0.15 < np.isin(cells[1], cells[0]).mean() < 0.35  # a quarter is chance


def recurrence(plan: EpochPlan) -> float:
    """How many times more often than by chance two cells that share a batch share one in the next epoch."""
    n_cells = plan.n_cells
    batch = np.empty((2, n_cells), int)
    for epoch in (0, 1):
        for index, rows in enumerate(epoch_of(plan, epoch)):
            batch[epoch, rows] = index
    sizes = np.bincount(batch[0])
    both = np.bincount(batch[0] * plan.n_batches + batch[1])
    pairs, again = (sizes * (sizes - 1)).sum(), (both * (both - 1)).sum()
    return float(again / pairs * n_cells * (n_cells - 1) / pairs)


def test_cells_of_a_batch_part_as_the_formula_says() -> None:
    # at most 1 + b N / W^2; less where a lane is one block, since a batch takes evenly from it
    assert 1.05 < recurrence(EpochPlan(65536, 256, 0, window_cells=4096, block_cells=64)) <= 1.25
    assert 1.15 < recurrence(EpochPlan(65536, 1024, 0, window_cells=4096, block_cells=64)) <= 1.25
    assert 1.0 < recurrence(EpochPlan(65536, 256, 0, window_cells=4096, block_cells=16)) < 1.08


@given(st.integers(1, 10**9), st.integers(1, 10**5), st.integers(2**10, 2**32))
def test_window_sizes_fit_their_bytes_and_keep_pairs_apart(n_cells: int, cell_bytes: int, window_bytes: int) -> None:
    found = window_sizes(n_cells, n_cells * cell_bytes, window_bytes)
    window, block = found["window_cells"], found["block_cells"]
    assert LANES <= window <= max(WINDOW_CELLS, 1 + (4 * MIN_NEIGHBOR_CELLS * n_cells) ** 0.5)
    assert window == LANES or window * cell_bytes <= window_bytes
    assert 1 <= block <= min(NEIGHBOR_CELLS, window // LANES)
    assert block & (block - 1) == 0
    assert block <= MIN_NEIGHBOR_CELLS or block * n_cells <= 0.25 * (window + block) ** 2


def test_usual_windows() -> None:
    assert window_sizes(300, 300 * 3008) == {"window_cells": WINDOW_CELLS, "block_cells": 512}
    assert window_sizes(10**6, 10**6 * 3008) == {"window_cells": WINDOW_CELLS, "block_cells": 256}
    assert window_sizes(10**7, 10**7 * 3008) == {"window_cells": 50_560, "block_cells": 64}
    assert window_sizes(10**9, 10**9 * 3008) == {"window_cells": 89_216, "block_cells": 64}  # as many as fit


def test_weighted_cells_come_as_often_as_they_should() -> None:
    weights = np.ones(2000)
    weights[:20] = 50.0
    weights[20:100] = 0.0
    plan = WeightedPlan(weights, 128, 0, window_cells=512, block_cells=8)
    counts = np.zeros(2000)
    for epoch in range(4):
        rows = np.concatenate(epoch_of(plan, epoch))
        assert rows.size == 2000
        counts += np.bincount(rows, minlength=2000)
    expected = 4 * 2000 * weights / weights.sum()
    assert np.abs(counts - expected).max() <= 4  # each epoch rounds up or down
    assert counts[20:100].sum() == 0


def test_weighted_draws_of_one_cell_are_spread_over_the_epoch() -> None:
    weights = np.ones(6400)
    weights[77] = 640.0
    plan = WeightedPlan(weights, 640, 0, window_cells=640, block_cells=10)
    counts = [int((rows == 77).sum()) for rows in epoch_of(plan)]
    assert sum(counts) in (581, 582)
    assert min(counts) > 0
    assert max(counts) < 0.25 * sum(counts)


@settings(deadline=None, max_examples=10)
@given(sizes, st.sampled_from([1, 2, 4]))
@pytest.mark.slow
def test_weighted_plan_is_the_same_for_all_ranks_and_found_by_a_feed(size: dict[str, int], world: int) -> None:
    size = dict(size)
    weights = np.random.default_rng(0).exponential(size=size.pop("n_cells"))
    whole = WeightedPlan(weights, **size)
    ranks = [WeightedPlan(weights, **size, world=World(rank, world)) for rank in range(world)]
    for step in range(whole.n_batches):
        parts = [plan.share(step).rows for plan in ranks]
        np.testing.assert_array_equal(np.concatenate(parts), whole.share(step).rows)
        for plan, rows in zip(ranks, parts, strict=True):
            np.testing.assert_array_equal(loaded_rows(plan, step), rows)


def test_equal_weights_give_every_cell_once() -> None:
    plan = WeightedPlan(np.full(999, 3.0), 100, 0, window_cells=128, block_cells=4)
    np.testing.assert_array_equal(np.sort(np.concatenate(epoch_of(plan))), np.arange(999))


def test_balanced_classes_come_equally_often() -> None:
    labels = np.array(["a"] * 900 + ["b"] * 90 + [None] * 10, dtype=object)
    import pandas as pd

    codes = pd.Categorical(labels).codes
    plan = WeightedPlan(balanced_weights(codes), 100, 0, window_cells=128, block_cells=4)
    counts = np.bincount(codes[np.concatenate(epoch_of(plan))] + 1)
    assert np.abs(counts - 1000 / 3).max() <= 2


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, np.nan], [[1.0], [1.0]], []])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(PlanError, match="Sampling weights"):
        WeightedPlan(np.array(weights), 1, 0)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
def test_sweep_reads_rows_in_order(n_cells: int, batch_cells: int, world: int) -> None:
    ranks = [SweepPlan(n_cells, batch_cells, World(rank, world)) for rank in range(world)]
    rows = [plan.rows(index) for plan in ranks for index in range(plan.n_batches)]
    assert sum(plan.n_batches for plan in ranks) == len(rows) == -(-n_cells // batch_cells)
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(n_cells))
    assert ranks[0].n_most == max(plan.n_batches for plan in ranks)
    for plan in ranks:
        assert plan.segment_ends[-1] == plan.n_batches
        assert plan.bounds[1] - plan.bounds[0] == sum(plan.rows(index).size for index in range(plan.n_batches))
        for index in range(plan.n_batches):
            np.testing.assert_array_equal(loaded_rows(plan, index), plan.rows(index))


@given(st.integers(1, 20000), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))
def test_segments_of_a_sweep_are_the_same_on_any_number_of_ranks(n_cells: int, batch_cells: int, world: int) -> None:
    def segments(world: int) -> list[tuple[int, int]]:
        found = []
        for rank in range(world):
            plan = SweepPlan(n_cells, batch_cells, World(rank, world))
            first = plan.bounds[0] // batch_cells if plan.n_batches else None
            starts = [0, *plan.segment_ends[:-1]]
            found += [
                (first + start, first + end) if start < end and first is not None else (0, 0)
                for start, end in zip(starts, plan.segment_ends, strict=True)
            ]
        return found

    assert segments(world) == segments(1)


@given(st.integers(1, 5000), st.integers(1, 600), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_block_sizes_are_those_of_the_ranks_that_own_them(
    n_cells: int, batch_cells: int, world: int, epoch: int
) -> None:
    sizes = {"window_cells": 900, "block_cells": 7}
    ranks = [EpochPlan(n_cells, batch_cells, 0, World(rank, world), **sizes) for rank in range(world)]
    for step in {epoch * ranks[0].n_batches, (epoch + 1) * ranks[0].n_batches - 1}:
        for n_blocks in {8, world}:
            found = ranks[0].block_sizes(step, n_blocks)
            for plan in ranks:
                assert plan.block_sizes(step, n_blocks) == found
                assert plan.share(step).rows.size == sum(found[block] for block in plan.world.own(n_blocks))
        eight = [EpochPlan(n_cells, batch_cells, 0, World(rank, 8), **sizes) for rank in range(8)]
        assert [plan.share(step).rows.size for plan in eight] == ranks[0].block_sizes(step, 8)


def test_rows_plan_gives_the_rows_that_it_got() -> None:
    requests = [np.array([5, 3, 5]), np.empty(0, np.int64), np.array([9])]
    plan = RowsPlan(requests)
    assert plan.n_batches == 3
    for step, rows in enumerate(requests):
        np.testing.assert_array_equal(plan.share(step).rows, rows)
        np.testing.assert_array_equal(loaded_rows(plan, step), rows)


@pytest.mark.parametrize("index", [-1, 4])
def test_batch_beyond_the_epoch_is_refused(index: int) -> None:
    with pytest.raises(PlanError, match="batches 0 to 3"):
        EpochPlan(100, 25, 0).rows(0, index)
    with pytest.raises(PlanError, match="batches 0 to 3"):
        SweepPlan(100, 25).rows(index)


def test_plan_of_nothing_or_for_too_many_ranks_is_refused() -> None:
    with pytest.raises(PlanError, match="n_cells=0"):
        EpochPlan(0, 10, 0)
    with pytest.raises(PlanError, match="batch_cells=0"):
        SweepPlan(10, 0)
    with pytest.raises(PlanError, match="65 ranks share 64 lanes"):
        EpochPlan(1000, 100, 0, World(0, 65))


def test_rows_handed_out_do_not_change_the_plan() -> None:
    plan = EpochPlan(100, 100, 0)
    first = plan.rows(0, 0).copy()
    handed = plan.rows(0, 0)
    handed[:] = 0
    np.testing.assert_array_equal(plan.rows(0, 0), first)
