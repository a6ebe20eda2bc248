from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scamac_scale.store.shuffle import RowShuffler

if TYPE_CHECKING:
    from pathlib import Path


def shuffled(
    order: np.ndarray, lengths: np.ndarray, folder: Path, *, step: int, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, RowShuffler]:
    """Send rows through a shuffler: the values of row ``i`` are all ``i``, its genes count up."""
    shuffler = RowShuffler(order, folder, 8 + 6 * float(lengths.mean()), memory_bytes)
    for start in range(0, order.size, step):
        some = lengths[start : start + step]
        rows = np.repeat(np.arange(start, start + some.size), some)
        genes = np.concatenate([np.arange(n) for n in some]) if some.sum() else np.empty(0, int)
        shuffler.append(some, genes.astype(np.uint16), rows.astype(np.uint32))
    parts = list(shuffler.rows())
    found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return found[0], found[1], found[2], shuffler


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 200),
    step=st.integers(1, 70),
    memory_bytes=st.sampled_from([1, 200, 2000, 10**6]),
    seed=st.integers(0, 9),
)
def test_rows_come_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, n: int, step: int, memory_bytes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order, lengths = rng.permutation(n), rng.integers(0, 9, n)
    folder = tmp_path_factory.mktemp("shuffle") / "buckets"
    found, genes, values, _ = shuffled(order, lengths, folder, step=step, memory_bytes=memory_bytes)
    np.testing.assert_array_equal(found, lengths[order])
    np.testing.assert_array_equal(values, np.repeat(order, lengths[order]))
    expected = [np.arange(length) for length in lengths[order]]
    np.testing.assert_array_equal(genes, np.concatenate([np.empty(0, int), *expected]))
    assert not folder.exists() or list(folder.iterdir()) == []


def test_rows_that_fit_never_touch_the_disk(tmp_path: Path) -> None:
    shuffled(np.random.default_rng(0).permutation(100), np.full(100, 5), tmp_path / "no", step=9, memory_bytes=10**6)
    assert not (tmp_path / "no").exists()


def test_rows_of_a_block_are_spread_over_all_buckets(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(2000)
    *_, shuffler = shuffled(order, np.full(2000, 5), tmp_path / "b", step=100, memory_bytes=12_000)
    n_buckets = shuffler.n_buckets
    assert n_buckets > 10
    bucket = np.empty(2000, int)
    bucket[order] = np.arange(2000) // shuffler._bucket_rows
    assert len(np.unique(bucket[:200])) == n_buckets


@pytest.mark.parametrize("n_rows", [20_000, 80_000])
def test_memory_is_that_of_the_blocks_in_flight(tmp_path: Path, n_rows: int) -> None:
    """A third of the budget waits, is joined, and is dealt; beside it 16 bytes per row, and what a test hands in."""
    memory_bytes = 3 * 2**20
    order, n_values = np.random.default_rng(0).permutation(n_rows), 50
    row_bytes = 8 + 6 * n_values
    assert n_rows * row_bytes > 1.9 * memory_bytes
    tracemalloc.start()
    shuffler = RowShuffler(order, tmp_path / "b", row_bytes, memory_bytes)
    block = (np.full(500, n_values), np.zeros(500 * n_values, np.uint16), np.zeros(500 * n_values, np.uint32))
    for _ in range(0, n_rows, 500):
        shuffler.append(*(array.copy() for array in block))
    for _ in shuffler.rows():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    handed_out = 8192 * row_bytes  # OUT_ROWS
    assert peak < 1.15 * memory_bytes + 16 * n_rows + 2 * handed_out


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 150),
    step=st.integers(1, 40),
    cut=st.integers(0, 150),
    n_out=st.integers(0, 5),
    memory_bytes=st.sampled_from([1, 200, 1000]),
)
@pytest.mark.slow
def test_a_shuffle_goes_on_from_any_state_to_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, n: int, step: int, cut: int, n_out: int, memory_bytes: int
) -> None:
    """Stopped while dealing, after more was dealt than is known of; then stopped when some buckets were taken."""
    rng = np.random.default_rng(n)
    order, lengths, folder = rng.permutation(n), rng.integers(0, 9, n), tmp_path_factory.mktemp("shuffle") / "buckets"

    def deal(shuffler: RowShuffler, start: int, stop: int) -> None:
        for low in range(start, stop, step):
            some = lengths[low : min(low + step, stop)]
            rows = np.repeat(np.arange(low, low + some.size), some)
            shuffler.append(some, np.zeros(rows.size, np.uint16), rows.astype(np.uint32))

    def new() -> RowShuffler:
        return RowShuffler(order, folder, 8 + 6 * float(lengths.mean()), memory_bytes)

    first = new()
    if first.n_buckets == 1:
        return
    deal(first, 0, min(cut, n))
    n_dealt, sizes = first.n_dealt, first.sizes()
    deal(first, min(cut, n), n)  # in vain
    first.end()
    second = new()
    assert second.restore(n_dealt, sizes)
    deal(second, n_dealt, n)
    second.end()
    sizes, done, seen = second.sizes(), [0], 0
    found: list[np.ndarray] = []
    noted = list[int]()
    taken = second.rows(0, lambda: noted.append(seen))
    for some, _, values in taken:
        found.append(values)
        seen += some.size
        if len(noted) == n_out:
            break
    taken.close()
    done += noted
    third = new()
    assert third.restore(n, sizes, done[-1])
    rest = [values for _, _, values in third.rows(done[-1])]
    n_values = lengths[order[: done[-1]]].sum()
    all_values = np.concatenate([np.concatenate([*found, np.empty(0, int)])[:n_values], *rest])
    np.testing.assert_array_equal(all_values, np.repeat(order, lengths[order]))


def test_a_bucket_that_was_cut_short_is_not_taken(tmp_path: Path) -> None:
    shuffler = RowShuffler(np.arange(100), tmp_path / "buckets", 100.0, 3000)
    shuffler.append(np.full(100, 9), np.zeros(900, np.uint16), np.zeros(900, np.uint32))
    shuffler.end()
    path = tmp_path / "buckets" / "0.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is shorter than it says"):
        list(shuffler.rows())
