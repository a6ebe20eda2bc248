from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale.errors import OutputError
from scamac_scale.train.clusters import code_table as codes
from scamac_scale.train.clusters.code_table import CodeTable

if TYPE_CHECKING:
    from pathlib import Path

N, SIZES = 500, np.array([3, 7, 2])


@pytest.fixture(params=["memory", "unnamed file", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "memory":
        monkeypatch.setattr(codes, "HELD_BYTES", 0)
    return str(request.param)


def drawn(sizes: np.ndarray = SIZES) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, size, N) for size in sizes], axis=1)


@pytest.mark.parametrize("sizes", [SIZES, np.array([300, 256, 5])])
def test_rows_come_back_in_any_order(place: str, sizes: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "codes" if place == "file" else None
    truth, table = drawn(sizes), CodeTable(N, sizes, path)
    for start in range(0, N, 64):
        table.write(np.arange(start, min(start + 64, N)), truth[start : start + 64])
    rows = np.random.default_rng(1).permutation(N)[:200]
    np.testing.assert_array_equal(table.read(rows), truth[rows])
    repeated = np.array([7, 3, 7, 7, 4, 499, 3])  # as a class-balanced batch has them
    np.testing.assert_array_equal(table.read(repeated), truth[repeated])
    some = np.array([0, 1, 7, 499])
    truth[some] = 0
    table.write(some, truth[some])
    np.testing.assert_array_equal(table.read(np.arange(N)), truth)
    table.close()
    assert list(tmp_path.iterdir()) == ([path] if path else [])


@pytest.mark.parametrize("table_codes", [2**12, 10, 1])
def test_square_is_the_sum_over_all_pairs_of_cells(
    place: str, table_codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "BLOCK_BYTES", 16 * 3 * 64)  # several blocks
    monkeypatch.setattr(codes, "TABLE_CODES", table_codes)  # and several passes
    truth, table = drawn(), CodeTable(N, SIZES)
    table.write(np.arange(N), truth)
    shares = np.array([0.5, 0.2, 0.3])
    together = (truth[:, None, :] == truth[None, :, :]) @ shares
    for n_threads in (1, 3):
        found = table.square_of_shares(shares, n_threads)
        np.testing.assert_allclose(found, (together**2).sum(), rtol=1e-12)
    table.close()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codes, "HELD_BYTES", 0)
    with pytest.raises(OutputError, match="missing"):
        CodeTable(N, SIZES, tmp_path / "missing" / "codes")


@pytest.mark.parametrize("held_bytes", [0, codes.HELD_BYTES])
def test_another_process_takes_up_a_file(held_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codes, "HELD_BYTES", held_bytes)
    truth, path = drawn(), tmp_path / "codes"
    first, second = CodeTable(N, SIZES, path), CodeTable(N, SIZES, path)
    first.write(np.arange(300), truth[:300])
    second.write(np.arange(300, N), truth[300:])
    for table in (first, second):
        table.flush()
    for table in (first, second):
        table.finish()
        np.testing.assert_array_equal(table.read(np.arange(N)), truth)
        digest = table.digest()
        table.close()
    again = CodeTable(N, SIZES, path)
    again.finish()
    assert again.digest() == digest
    again.close()


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codes").write_bytes(b"12345")
    table = CodeTable(N, SIZES, tmp_path / "codes")
    with pytest.raises(OutputError, match="5 bytes rather than"):
        table.finish()
    table.close()
