from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scamac_scale.errors import ConfigError, PlanError
from scamac_scale.loader.feed import Feed, default_threads
from scamac_scale.loader.ordered import RowsPlan
from scamac_scale.loader.plan import EpochPlan, Share
from scamac_scale.loader.source import CellSource
from tests.support.forks import in_a_fork
from tests.support.memory import MatrixSource, ResidentSource

if TYPE_CHECKING:
    from collections.abc import Iterator

N_CELLS, N_GENES = 500, 20


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "scamac-feed"]


@pytest.fixture
def source() -> Iterator[MatrixSource]:
    yield MatrixSource()
    assert feed_threads() == []


def requests(n: int, size: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, N_CELLS, size + i % 3) for i in range(n)]


def planned(n: int, size: int = 7) -> RowsPlan:
    return RowsPlan(requests(n, size))


def test_matrix_source_satisfies_the_protocol(source: MatrixSource) -> None:
    assert isinstance(source, CellSource)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_come_in_the_order_of_the_plan(source: MatrixSource, threads: int, ahead: int) -> None:
    wanted = requests(23)
    with Feed(source, threads=threads, ahead=ahead) as feed:
        n = 0
        for batch, rows in zip(feed.run(RowsPlan(wanted)), wanted, strict=True):
            np.testing.assert_array_equal(batch.rows, rows)
            np.testing.assert_array_equal(batch.values.numpy(), source.dense(rows))
            assert batch.values.dtype == torch.float32
            n += 1
    assert n == 23


@pytest.mark.parametrize("kind", [MatrixSource, ResidentSource])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("threads", [1, 3])
def test_epochs_deliver_every_cell_of_the_plan(kind: type[MatrixSource], layout: str, threads: int) -> None:
    source = kind(is_scaled=True)
    plan = EpochPlan(N_CELLS, 64, 0, window_cells=128, block_cells=2)
    start, stop = 3, 3 * plan.n_batches  # from the middle of an epoch, and through the ends of two
    with Feed(source, layout=layout, threads=threads) as feed:
        n = start
        for n, batch in enumerate(feed.run(plan, start, stop), start):
            np.testing.assert_array_equal(batch.rows, plan.share(n).rows)
            values = batch.values if layout == "dense" else batch.values.to_dense()
            np.testing.assert_array_equal(values.numpy(), source.dense(batch.rows))
    assert n == stop - 1
    if kind is ResidentSource:
        assert source.loaded == []
    else:  # each part once, whatever the threads do
        assert len(source.loaded) == (plan.windows(stop - 1)[1] - plan.windows(start)[0]) * plan.n_parts


def test_windows_are_read_no_farther_ahead_than_was_said(source: MatrixSource) -> None:
    plan = EpochPlan(N_CELLS, 10, 0, window_cells=100, block_cells=1)
    with Feed(source, threads=2, ahead=1) as feed:
        run = feed.run(plan, 0, 10**9)
        next(run)
        settle(feed)
        # the ring is filled four batches ahead of the consumer, so in use is window 0; one more is loaded
        assert len(source.loaded) == 2 * plan.n_parts
        run.close()


def settle(feed: Feed) -> None:
    """Wait until the threads have nothing more to do."""
    (run,) = feed._runs
    before = -1
    while before != run._next_step + run._next_load[0] * 1000 + run._next_load[1]:
        before = run._next_step + run._next_load[0] * 1000 + run._next_load[1]
        threading.Event().wait(0.2)


def test_empty_requests_give_empty_batches(source: MatrixSource) -> None:
    with Feed(source) as feed:
        shapes = [tuple(b.values.shape) for b in feed.run(RowsPlan([np.array([], int), np.arange(3)]))]
        assert list(feed.run(RowsPlan([]))) == []
    assert shapes == [(0, N_GENES), (3, N_GENES)]


def test_memory_is_reused_within_a_run_and_between_runs(source: MatrixSource) -> None:
    even = RowsPlan(requests(30, 8)[::3])
    with Feed(source, threads=2) as feed:
        first = {batch.values.data_ptr() for batch in feed.run(even)}
        second = {batch.values.data_ptr() for batch in feed.run(even)}
    assert len(first) <= 4
    assert len(first & second) >= 3  # all but the one that the consumer may still hold


@pytest.mark.parametrize("is_scaled", [False, True])
def test_memory_is_that_of_the_formula(is_scaled: bool) -> None:
    """(ahead + 1) windows as loaded, and threads + 2 batches; a window has up to a block more than its share."""
    source = MatrixSource(20_000, 50, is_scaled=is_scaled)
    plan = EpochPlan(20_000, 256, 0, window_cells=2048, block_cells=32)
    with Feed(source, threads=2, ahead=2) as feed:
        most = 0
        for _ in feed.run(plan, 0, 2 * plan.n_batches):
            most = max(most, feed.memory_bytes())
    cell_bytes = source.matrix.nnz / 20_000 * (3 if is_scaled else 6) + (16 if is_scaled else 8)
    windows = 3 * 2048 * cell_bytes
    batches = 4 * 256 * 50 * 4
    assert 0.5 * windows < most - batches < 1.1 * 1.1 * windows  # buffers have a tenth to spare; so may a part


def test_batch_stays_as_it_is_until_the_next_is_taken(source: MatrixSource) -> None:
    wanted = requests(12)
    with Feed(source, threads=1) as feed:
        run = feed.run(RowsPlan(wanted))
        for rows in wanted:
            batch = next(run)
            settle(feed)
            np.testing.assert_array_equal(batch.values.numpy(), source.dense(rows))
        run.close()


def test_last_batch_outlives_its_run_and_the_next_one(source: MatrixSource) -> None:
    rows = np.arange(9)
    with Feed(source) as feed:
        held = next(iter(feed.run(RowsPlan([rows]))))
        for _ in feed.run(planned(10, 9)):
            pass
        np.testing.assert_array_equal(held.values.numpy(), source.dense(rows))


class Broken(MatrixSource):
    """Cannot load a row."""

    def load(self, starts: Any, stops: Any, into: Any) -> None:
        if (stops > 490).any():
            raise PlanError("Row 490 is broken")
        super().load(starts, stops, into)


@pytest.mark.parametrize("threads", [1, 3])
def test_error_of_the_source_is_raised_in_its_place(threads: int) -> None:
    with Feed(Broken(), threads=threads) as feed:
        run = feed.run(RowsPlan([np.arange(3), np.arange(4), np.array([495]), np.arange(5)]))
        assert [next(run).rows.size, next(run).rows.size] == [3, 4]
        with pytest.raises(PlanError, match="Row 490"):
            next(run)
        assert feed_threads() == []


def test_error_in_one_part_of_a_window_is_not_passed_over() -> None:
    plan = EpochPlan(N_CELLS, 250, 0)
    with Feed(Broken()) as feed, pytest.raises(PlanError, match="Row 490"):
        list(feed.run(plan))


@pytest.mark.parametrize("method", ["windows", "runs"])
def test_error_anywhere_in_the_plan_does_not_hang(source: MatrixSource, method: str) -> None:
    plan = RowsPlan([np.arange(3)] * 9)
    good = getattr(plan, method)

    def breaks(number: int, *rest: int) -> Any:
        if number == 4:
            raise PlanError("no more")
        return good(number, *rest)

    setattr(plan, method, breaks)
    with Feed(source) as feed, pytest.raises(PlanError, match="no more"):
        list(feed.run(plan))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_may_span_more_windows_than_are_read_ahead(source: MatrixSource, threads: int) -> None:
    plan = EpochPlan(N_CELLS, 400, 0, window_cells=20, block_cells=1)
    assert np.diff(plan.windows(0)) > 10
    with Feed(source, ahead=1, threads=threads) as feed:
        rows = [batch.rows for batch in feed.run(plan)]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(N_CELLS))


@pytest.mark.parametrize("kind", [PlanError, KeyboardInterrupt])
def test_error_of_the_plan_is_raised_in_the_consumer(source: MatrixSource, kind: type[BaseException]) -> None:
    class Ends(RowsPlan):
        def share(self, step: int) -> Share:
            if step == 1:
                raise kind("no more")
            return super().share(step)

    with Feed(source) as feed:
        run = feed.run(Ends([np.arange(3), np.arange(3), np.arange(3)]))
        next(run)
        with pytest.raises(kind, match="no more"):
            next(run)


def test_no_thread_outlives_a_consumer_that_stops_early(source: MatrixSource) -> None:
    feed = Feed(source)
    for batch in feed.run(planned(100)):
        assert batch.rows.size == 7
        break
    gc.collect()  # the iterator is dropped by the loop
    assert feed_threads() == []
    assert len(source.loaded) < 15
    feed.close()


def test_no_thread_outlives_the_context(source: MatrixSource) -> None:
    with Feed(source, threads=2) as feed:
        run = feed.run(planned(100))
        next(run)
        assert len(feed_threads()) == 2
    assert feed_threads() == []
    with pytest.raises(RuntimeError, match="closed while it was being read"):
        next(run)


def test_no_thread_outlives_an_error_in_the_consumer(source: MatrixSource) -> None:
    def consume() -> None:
        with Feed(source) as feed:
            for _ in feed.run(planned(100)):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert feed_threads() == []


def test_no_thread_before_the_first_batch(source: MatrixSource) -> None:
    with Feed(source) as feed:
        feed.run(planned(3))
        assert feed_threads() == []


def test_closed_feed_runs_nothing(source: MatrixSource) -> None:
    feed = Feed(source)
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(feed.run(planned(1)))


def test_two_runs_at_once_do_not_share_memory(source: MatrixSource) -> None:
    wanted, others = requests(8), requests(9)[:8]
    with Feed(source) as feed:
        both = zip(feed.run(RowsPlan(wanted)), feed.run(RowsPlan(others)), strict=True)
        for (a, b), rows, other in zip(both, wanted, others, strict=True):
            np.testing.assert_array_equal(a.values.numpy(), source.dense(rows))
            np.testing.assert_array_equal(b.values.numpy(), source.dense(other))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_with_the_reason(source: MatrixSource) -> None:
    with Feed(source) as feed:
        said = in_a_fork(lambda: next(feed.run(planned(3))))
    assert f"made by process {os.getpid()}" in said
    assert "num_workers=0" in said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_run_is_refused_in_the_child_alone(source: MatrixSource) -> None:
    with Feed(source) as feed:
        run = feed.run(planned(20))
        next(run)
        said = in_a_fork(lambda: next(run))
        assert f"made by process {os.getpid()}" in said
        assert sum(1 for _ in run) == 19


@pytest.mark.parametrize(("name", "options"), [("threads", {"threads": 0}), ("ahead", {"ahead": 0})])
def test_feed_of_nothing_is_refused(source: MatrixSource, name: str, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"loader.{name}=0"):
        Feed(source, **options)


def test_unknown_layout_lists_the_known_ones(source: MatrixSource) -> None:
    with pytest.raises(ConfigError, match="dense"):
        Feed(source, layout="csc")


def test_threads_are_few() -> None:
    assert 1 <= default_threads() <= 4
