"""Runs of a packed array: the values of the array, and each chunk that is shared unpacked once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr

from scamac_scale.ingestion import shared_chunks
from scamac_scale.ingestion.shared_chunks import SharedChunks, share_chunks

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 2**16
VALUES = np.random.default_rng(0).integers(0, 9, 10 * CHUNK + 137).astype(np.float32)


class Counting:
    """An array that counts how often each chunk is touched."""

    def __init__(self, values: np.ndarray, chunk: int) -> None:
        self.values, self.chunks, self.shape, self.dtype = values, (chunk,), values.shape, values.dtype
        self.touched = np.zeros(-(-len(values) // chunk), int)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(len(self.values))
        self.touched[start // self.chunks[0] : -(-stop // self.chunks[0])] += 1
        return self.values[start:stop]


def stored(folder: Path, kind: str) -> Any:
    if kind == "zarr":
        return zarr.create_array(str(folder / "x.zarr"), data=VALUES, chunks=(CHUNK,))
    return h5py.File(folder / "x.h5", "w").create_dataset("x", data=VALUES, chunks=(CHUNK,), compression="lzf")


@pytest.mark.parametrize("kind", ["zarr", "h5py"])
def test_runs_are_those_of_the_array(tmp_path: Path, kind: str) -> None:
    shared = share_chunks(stored(tmp_path, kind))
    assert isinstance(shared, SharedChunks)
    rng = np.random.default_rng(1)
    runs = [(0, 0), (0, len(VALUES)), (CHUNK, 2 * CHUNK), (5, 6), (CHUNK - 1, CHUNK + 1), (10 * CHUNK, len(VALUES))]
    runs += [tuple(sorted(rng.integers(0, len(VALUES) + 1, 2).tolist())) for _ in range(100)]
    for start, stop in runs:
        np.testing.assert_array_equal(shared[start:stop], VALUES[start:stop])
    assert shared.shape == VALUES.shape
    assert shared.dtype == VALUES.dtype


@pytest.mark.parametrize("run", [CHUNK // 3, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_each_chunk_is_unpacked_once_in_order(run: int) -> None:
    array = Counting(VALUES, CHUNK)
    shared = SharedChunks(array, CHUNK)
    for _ in range(2):
        found = [shared[at : at + run] for at in range(0, len(VALUES), run)]
        np.testing.assert_array_equal(np.concatenate(found), VALUES)
    assert (array.touched == 2).all()
    assert not shared._held


def test_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_chunks, "MOST_CHUNKS", 2)
    shared = SharedChunks(Counting(VALUES, 1000), 1000)
    starts = np.arange(0, len(VALUES), 777)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: shared[at : at + 777], np.random.default_rng(0).permutation(starts).tolist()))
    order = np.argsort(np.random.default_rng(0).permutation(starts))
    np.testing.assert_array_equal(np.concatenate([found[i] for i in order]), VALUES)
    assert len(shared._held) <= 2


def test_an_error_reaches_who_asks_and_is_not_kept() -> None:
    class Broken(Counting):
        is_broken = True

        def __getitem__(self, wanted: slice) -> np.ndarray:
            if self.is_broken:
                raise OSError("gone")
            return super().__getitem__(wanted)

    array = Broken(VALUES, CHUNK)
    shared = SharedChunks(array, CHUNK)
    with pytest.raises(OSError, match="gone"):
        shared[5:10]
    array.is_broken = False
    np.testing.assert_array_equal(shared[5:10], VALUES[5:10])


def test_what_gains_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    assert share_chunks(VALUES) is VALUES
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for array in (
            file.create_dataset("plain", data=VALUES),
            file.create_dataset("not packed", data=VALUES, chunks=(CHUNK,)),
            file.create_dataset("small", data=VALUES, chunks=(64,), compression="lzf"),
        ):
            assert share_chunks(array) is array
