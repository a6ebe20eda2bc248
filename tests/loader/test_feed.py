from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import sparse

from scamac_scale.csr import CsrBlock, check_rows
from scamac_scale.errors import ConfigError, PlanError
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.loader.source import CellSource

if TYPE_CHECKING:
    from collections.abc import Iterator

N_CELLS, N_GENES = 500, 20


class MatrixSource:
    """Cells of a SciPy matrix, counting its reads."""

    def __init__(self) -> None:
        self.matrix = sparse.random(N_CELLS, N_GENES, 0.3, format="csr", dtype=np.float32, random_state=0)
        self.n_cells = N_CELLS
        self.gene_names = tuple(f"gene{i}" for i in range(N_GENES))
        self.csr_bytes = self.matrix.indptr.nbytes + self.matrix.indices.nbytes + self.matrix.data.nbytes
        self.n_reads = 0

    def read(self, rows: Any) -> CsrBlock:
        self.n_reads += 1
        picked = self.matrix[check_rows(rows, self.n_cells)]
        return CsrBlock(picked.indptr.astype(np.int64), picked.indices, picked.data, N_GENES)

    def dense(self, rows: Any) -> np.ndarray:
        return self.matrix[rows].toarray()


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "scamac-feed"]


@pytest.fixture
def source() -> Iterator[MatrixSource]:
    yield MatrixSource()
    assert feed_threads() == []


def requests(n: int, size: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, N_CELLS, size + i % 3) for i in range(n)]


def test_matrix_source_satisfies_the_protocol(source: MatrixSource) -> None:
    assert isinstance(source, CellSource)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_batches_come_in_the_order_of_the_requests(source: MatrixSource, prefetch: int) -> None:
    wanted = requests(23)
    with Feed(source, prefetch=prefetch) as feed:
        n = 0
        for batch, rows in zip(feed.run(wanted), wanted, strict=True):
            np.testing.assert_array_equal(batch.rows, rows)
            np.testing.assert_array_equal(batch.values.numpy(), source.dense(rows))
            assert batch.values.dtype == torch.float32
            n += 1
    assert n == 23


def test_an_epoch_delivers_every_cell_once(source: MatrixSource) -> None:
    plan = EpochPlan(N_CELLS, 64, 0)
    with Feed(source) as feed:
        total = torch.zeros(N_GENES, dtype=torch.float64)
        seen = []
        for batch in feed.run(plan.rows(0, index) for index in range(plan.n_batches)):
            total += batch.values.double().sum(0)
            seen.append(batch.rows)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(N_CELLS))
    np.testing.assert_allclose(total.numpy(), np.asarray(source.matrix.astype(np.float64).sum(0)).ravel(), rtol=1e-12)


def test_empty_requests_give_empty_batches(source: MatrixSource) -> None:
    with Feed(source) as feed:
        shapes = [tuple(b.values.shape) for b in feed.run([np.array([], int), np.arange(3)])]
        assert list(feed.run([])) == []
    assert shapes == [(0, N_GENES), (3, N_GENES)]


def test_buffers_are_reused_within_a_run_and_between_runs(source: MatrixSource) -> None:
    with Feed(source, prefetch=2) as feed:
        first = {batch.values.data_ptr() for batch in feed.run(requests(30, 8)[::3])}
        second = {batch.values.data_ptr() for batch in feed.run(requests(30, 8)[::3])}
    assert len(first) <= 3
    assert len(first & second) >= 2  # all but the one that the consumer may still hold


def test_batch_stays_as_it_is_until_the_next_is_taken(source: MatrixSource) -> None:
    wanted = requests(12)
    with Feed(source, prefetch=1) as feed:
        run = feed.run(wanted)
        for rows in wanted:
            batch = next(run)
            while source.n_reads < 12 and feed_threads() and not waits_for_a_slot(feed):
                pass
            np.testing.assert_array_equal(batch.values.numpy(), source.dense(rows))
        run.close()


def waits_for_a_slot(feed: Feed) -> bool:
    return all(run._free.empty() for run in feed._runs)


def test_last_batch_outlives_its_run_and_the_next_one(source: MatrixSource) -> None:
    rows = np.arange(9)
    with Feed(source) as feed:
        held = next(iter(feed.run([rows])))
        for _ in feed.run(requests(10, 9)):
            pass
        np.testing.assert_array_equal(held.values.numpy(), source.dense(rows))


def test_error_of_the_source_is_raised_in_its_place(source: MatrixSource) -> None:
    with Feed(source) as feed:
        run = feed.run([np.arange(3), np.arange(4), np.array([N_CELLS]), np.arange(5)])
        assert [next(run).rows.size, next(run).rows.size] == [3, 4]
        with pytest.raises(PlanError, match=f"Row {N_CELLS}"):
            next(run)
        assert feed_threads() == []


def test_error_of_the_plan_is_raised_in_the_consumer(source: MatrixSource) -> None:
    def plan() -> Iterator[np.ndarray]:
        yield np.arange(3)
        raise PlanError("no more")

    with Feed(source) as feed, pytest.raises(PlanError, match="no more"):
        list(feed.run(plan()))


def test_interrupt_inside_the_thread_reaches_the_consumer(source: MatrixSource) -> None:
    def plan() -> Iterator[np.ndarray]:
        yield np.arange(3)
        raise KeyboardInterrupt

    with Feed(source) as feed, pytest.raises(KeyboardInterrupt):
        list(feed.run(plan()))


def test_no_thread_outlives_a_consumer_that_stops_early(source: MatrixSource) -> None:
    feed = Feed(source)
    for batch in feed.run(requests(100)):
        assert batch.rows.size == 7
        break
    gc.collect()  # the iterator is dropped by the loop
    assert feed_threads() == []
    assert source.n_reads < 10
    feed.close()


def test_no_thread_outlives_the_context(source: MatrixSource) -> None:
    with Feed(source) as feed:
        run = feed.run(requests(100))
        next(run)
        assert len(feed_threads()) == 1
    assert feed_threads() == []
    with pytest.raises(RuntimeError, match="closed while it was being read"):
        next(run)


def test_no_thread_outlives_an_error_in_the_consumer(source: MatrixSource) -> None:
    def consume() -> None:
        with Feed(source) as feed:
            for _ in feed.run(requests(100)):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert feed_threads() == []


def test_no_thread_before_the_first_batch(source: MatrixSource) -> None:
    with Feed(source) as feed:
        feed.run(requests(3))
        assert feed_threads() == []


def test_closed_feed_runs_nothing(source: MatrixSource) -> None:
    feed = Feed(source)
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(feed.run(requests(1)))


def test_two_runs_at_once_do_not_share_buffers(source: MatrixSource) -> None:
    wanted, others = requests(8), requests(9)[:8]
    with Feed(source) as feed:
        for (a, b), rows, other in zip(
            zip(feed.run(wanted), feed.run(others), strict=True), wanted, others, strict=True
        ):
            np.testing.assert_array_equal(a.values.numpy(), source.dense(rows))
            np.testing.assert_array_equal(b.values.numpy(), source.dense(other))


def test_prefetch_of_nothing_is_refused(source: MatrixSource) -> None:
    with pytest.raises(ConfigError, match="prefetch=0"):
        Feed(source, prefetch=0)
