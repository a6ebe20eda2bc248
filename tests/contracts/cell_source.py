"""What every source of cells must do; a new one subclasses `CellSourceContract` and gives two fixtures."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scamac_scale.cells.buffer import RowBuffer, rows_of
from scamac_scale.errors import PlanError
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.loader.source import CellSource
from tests.support.csr import dense

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.sources import OpenSource

ROUNDED_ONCE = 6e-8
"""Relative error of a float64 number that was rounded to float32 once."""


class CellSourceContract:
    """Fixtures to give: `source` (open, class scope) and `expected` ((N, G) float64, log-normalised)."""

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls) -> Iterator[OpenSource]:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls) -> np.ndarray:
        raise NotImplementedError

    def test_satisfies_the_protocol(self, source: OpenSource, expected: np.ndarray) -> None:
        assert isinstance(source, CellSource)
        assert (source.n_cells, len(source.gene_names)) == expected.shape
        assert tuple(source.gene_names) == source.gene_space.chosen

    def test_all_rows_in_order_are_the_matrix(self, source: OpenSource, expected: np.ndarray) -> None:
        block = source.read(np.arange(source.n_cells))
        np.testing.assert_allclose(dense(block), expected, rtol=ROUNDED_ONCE, atol=0)

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_rows_read_are_that_slice(self, source: OpenSource, expected: np.ndarray, data: st.DataObject) -> None:
        rows = np.array(data.draw(st.lists(st.integers(0, source.n_cells - 1), max_size=60)), dtype=np.int64)
        block = source.read(rows)
        assert block.n_cells == rows.size
        np.testing.assert_allclose(dense(block), expected[rows], rtol=ROUNDED_ONCE, atol=0)

    def test_a_cell_has_the_same_bits_in_any_company(self, source: OpenSource) -> None:
        alone = np.concatenate([dense(source.read(np.array([row]))) for row in range(20)])
        rows = np.random.default_rng(0).permutation(source.n_cells)
        together = dense(source.read(rows))
        np.testing.assert_array_equal(together[np.argsort(rows)[:20]], alone)

    def test_values_are_float32_and_no_zeros_are_stored(self, source: OpenSource) -> None:
        block = source.read(np.arange(source.n_cells))
        assert block.data.dtype == np.float32
        assert (block.data != 0).all()

    def test_bytes_are_those_of_all_cells(self, source: OpenSource) -> None:
        block = source.read(np.arange(source.n_cells))
        assert source.csr_bytes == block.indptr.nbytes + block.indices.nbytes + block.data.nbytes

    @pytest.mark.parametrize("row", [-1, "n_cells"])
    def test_row_outside_is_refused(self, source: OpenSource, row: int | str) -> None:
        wrong = source.n_cells if row == "n_cells" else row
        with pytest.raises(PlanError, match=f"Row {wrong} "):
            source.read(np.array([0, wrong]))

    def test_threads_may_read_at_once(self, source: OpenSource) -> None:
        rows = [np.random.default_rng(seed).integers(0, source.n_cells, 100) for seed in range(4)]
        alone = [dense(source.read(picked)) for picked in rows]
        found: list[np.ndarray | None] = [None] * 4

        def read(at: int) -> None:
            found[at] = dense(source.read(rows[at]))

        threads = [threading.Thread(target=read, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mine, theirs in zip(found, alone, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_runs_are_loaded_in_the_order_given(
        self, source: OpenSource, expected: np.ndarray, data: st.DataObject
    ) -> None:
        starts = np.array(data.draw(st.lists(st.integers(0, source.n_cells - 1), max_size=9)), dtype=np.int64)
        stops = np.minimum(starts + data.draw(st.integers(1, 30)), source.n_cells)
        buffer = RowBuffer()
        source.load(starts, stops, buffer)
        rows = rows_of(starts, stops)
        out = np.empty((rows.size, expected.shape[1]), np.float32)
        buffer.to_dense(np.arange(rows.size), out)
        np.testing.assert_allclose(out, expected[rows], rtol=ROUNDED_ONCE, atol=0)

    def test_bytes_of_all_loaded_cells_are_known(self, source: OpenSource) -> None:
        buffer = RowBuffer()
        source.load(np.array([0]), np.array([source.n_cells]), buffer)
        held = buffer.indptr.nbytes + buffer.genes.nbytes + buffer.values.nbytes
        assert source.load_bytes == held + (0 if buffer.scale is None else buffer.scale.nbytes)

    def test_cells_that_are_held_in_memory_are_those_that_are_read(self, source: OpenSource) -> None:
        held = source.resident
        if held is not None:
            rows = np.arange(source.n_cells)
            assert held.n_rows == source.n_cells
            out = np.empty((source.n_cells, len(source.gene_names)), np.float32)
            held.to_dense(rows, out)
            np.testing.assert_array_equal(out, dense(source.read(rows)))

    @pytest.mark.parametrize("layout", ["dense", "csr"])
    def test_feed_delivers_an_epoch_and_a_sweep(self, source: OpenSource, expected: np.ndarray, layout: str) -> None:
        epoch = EpochPlan(source.n_cells, 70, seed=1, window_cells=128, block_cells=2)
        with Feed(source, layout=layout) as feed:
            for plan in (epoch, SweepPlan(source.n_cells, 70)):
                seen = []
                for batch in feed.run(plan):
                    values = batch.values if layout == "dense" else batch.values.to_dense()
                    np.testing.assert_allclose(values.numpy(), expected[batch.rows], rtol=ROUNDED_ONCE, atol=0)
                    seen.append(batch.rows)
                np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(source.n_cells))

    def test_obs_and_source_rows_belong_to_the_rows(self, source: OpenSource) -> None:
        assert len(source.obs) == source.n_cells
        np.testing.assert_array_equal(np.sort(source.source_rows), np.arange(source.n_cells))
