from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale.errors import OutputError, StoreError
from scamac_scale.train.clusters import code_table as codes
from scamac_scale.train.clusters.code_table import CodeTable

if TYPE_CHECKING:
    from pathlib import Path

N, N_CODES = 500, 7


@pytest.fixture(params=["memory", "unnamed file", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "memory":
        monkeypatch.setattr(codes, "HELD_BYTES", 0)
    return str(request.param)


def drawn(n_codes: int = N_CODES) -> np.ndarray:
    return np.random.default_rng(0).integers(0, n_codes, N)


@pytest.mark.parametrize(("n_codes", "code_bytes"), [(1, 1), (256, 1), (257, 2), (65_537, 4)])
def test_rows_come_back_in_any_order(place: str, n_codes: int, code_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "codes" if place == "file" else None
    truth, table = drawn(n_codes), CodeTable(N, n_codes, path)
    assert table.n_bytes == N * code_bytes
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


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codes, "HELD_BYTES", 0)
    with pytest.raises(OutputError, match="missing"):
        CodeTable(N, N_CODES, tmp_path / "missing" / "codes")


@pytest.mark.parametrize("held_bytes", [0, codes.HELD_BYTES])
def test_another_process_takes_up_a_file(held_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codes, "HELD_BYTES", held_bytes)
    truth, path = drawn(), tmp_path / "codes"
    first, second = CodeTable(N, N_CODES, path), CodeTable(N, N_CODES, path)
    first.write(np.arange(300), truth[:300])
    second.write(np.arange(300, N), truth[300:])
    for table in (first, second):
        table.flush()
    for table in (first, second):
        table.finish()
        np.testing.assert_array_equal(table.read(np.arange(N)), truth)
        digest = table.digest()
        table.close()
    again = CodeTable(N, N_CODES, path)
    again.finish()
    assert again.digest() == digest
    again.close()


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codes").write_bytes(b"12345")
    table = CodeTable(N, N_CODES, tmp_path / "codes")
    with pytest.raises(OutputError, match="5 bytes rather than"):
        table.finish()
    table.close()


def test_a_longer_file_is_cut_and_a_shorter_one_is_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    table = CodeTable(N, N_CODES, path)
    table.write(np.arange(N), drawn())
    with path.open("ab") as file:
        file.write(b"more")
    assert table.is_whole()
    table.cut()
    table.finish()
    np.testing.assert_array_equal(table.read(np.arange(N)), drawn())
    table.close()
    path.write_bytes(path.read_bytes()[:-1])
    shorter = CodeTable(N, N_CODES, path)
    assert not shorter.is_whole()
    shorter.cut()
    assert path.stat().st_size == N - 1
    with pytest.raises(OutputError, match="499 bytes rather than 500"):
        shorter.finish()
    shorter.close()


def test_codes_that_no_landmark_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    path.write_bytes(bytes(N - 1) + bytes([N_CODES]))
    table = CodeTable(N, N_CODES, path)
    table.finish()
    assert table.digest(0, N - 1)
    with pytest.raises(StoreError, match="codes that no landmark has"):
        table.digest()
    table.close()
