from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale.durable.rows import FieldFile, RowFile

if TYPE_CHECKING:
    from pathlib import Path

N, WIDTH = 50, 3


@pytest.fixture(params=["named", "unnamed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "unnamed":
        return tmp_path
    (tmp_path / "rows").touch()
    return tmp_path / "rows"


def drawn(dtype: type) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (N, WIDTH)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rows_written_in_any_order_come_back_in_order(place: Path, dtype: type) -> None:
    truth, file = drawn(dtype), RowFile(place, WIDTH, dtype)
    order = np.concatenate([np.arange(20, 40), np.random.default_rng(1).permutation(20), np.arange(40, N)])
    for some in np.array_split(order, 4):
        file.write(some, truth[some])
    file.write(order[:0], truth[:0])
    np.testing.assert_array_equal(file.read(0, N), truth)
    np.testing.assert_array_equal(file.read(7, 12), truth[7:12])
    assert file.read(3, 3).shape == (0, WIDTH)
    assert (file.n_bytes, file.read(0, 1).dtype) == (N * file.row_bytes, np.dtype(dtype))
    file.close()
    assert place.is_dir() == (list(place.parent.glob("rows")) == [])


def test_a_write_that_the_system_cuts_short_is_completed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, file, pwrite = drawn(np.float32), RowFile(place, WIDTH), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:7], at))
    file.write(np.arange(N), truth)
    np.testing.assert_array_equal(file.read(0, N), truth)
    file.close()


def test_rows_that_are_not_there_are_an_error(place: Path) -> None:
    file = RowFile(place, WIDTH)
    file.write(np.arange(2), np.ones((2, WIDTH)))
    with pytest.raises(OSError, match="shorter"):
        file.read(1, 3)
    file.close()


def test_a_named_file_is_not_read_by_who_only_writes_and_shows_all_when_it_is_reopened(tmp_path: Path) -> None:
    (tmp_path / "rows").touch()
    truth = drawn(np.uint8)
    first, second = (RowFile(tmp_path / "rows", WIDTH, np.uint8) for _ in range(2))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(first._writer.fileno(), 1, 0)
    first.write(np.arange(10), truth[:10])
    np.testing.assert_array_equal(first.read(0, 10), truth[:10])
    second.write(np.arange(10, N), truth[10:])
    second.flush()
    first.reopen()
    np.testing.assert_array_equal(first.read(0, N), truth)
    first.write(np.arange(1), truth[9:10])
    second.reopen()
    np.testing.assert_array_equal(second.read(0, 1), truth[9:10])
    for file in (first, second, second):
        file.close()


def test_matrices_side_by_side_come_back_one_by_one(place: Path) -> None:
    blocks = {"a": drawn(np.float32), "b": drawn(np.float32)[:, :1] + 7}
    file = FieldFile(place, {"a": WIDTH, "b": 1})
    for some in (np.arange(30, N), np.arange(30)):
        file.write(some, {name: block[some] for name, block in blocks.items()})
    file.flush()
    for name, block in blocks.items():
        np.testing.assert_array_equal(file.read(name, 5, N), block[5:])
    file.close()
