"""What a fit logs: rows that are complete whatever fails, and curves that TensorBoard reads."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scamac_scale.train.run.writers import SAVE_EVERY_ROWS, EventFile, MetricsTable
from tests.support.failing import failing

if TYPE_CHECKING:
    from pathlib import Path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_column_that_appears_later_is_added_to_the_header(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    table.add({"total": 0.5}, 0)
    table.save()
    table.add({"total": 0.25, "clustering": 1e-3}, 10)
    table.save()
    table.add({"similarity": 2.0}, 20)
    table.save()
    assert lines(tmp_path / "metrics.csv") == [
        "clustering,similarity,step,total",
        ",,0,0.5",
        "0.001,,10,0.25",
        ",2.0,20,",
    ]


def test_rows_are_written_some_at_a_time(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in range(SAVE_EVERY_ROWS - 1):
        table.add({"total": 1.0}, step)
    assert not (tmp_path / "metrics.csv").exists()
    table.add({"total": 1.0}, SAVE_EVERY_ROWS)
    assert len(lines(tmp_path / "metrics.csv")) == 1 + SAVE_EVERY_ROWS


def test_a_table_that_goes_on_keeps_the_rows_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    for step in range(3):
        table.add({"total": 0.1 * step, "only_last": 7.0} if step == 2 else {"total": 0.1 * step}, step)
    table.save()
    again = MetricsTable(path, 2)
    assert again.n_rows == 2
    again.add({"total": 9.0}, 2)
    again.save()
    assert lines(path) == ["step,total", "0,0.0", "1,0.1", "2,9.0"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no,steps\n1,2\n", b"step,total\none,2\n", b"step\n1,2\n"])
def test_a_damaged_table_starts_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    table = MetricsTable(path, 5)
    assert table.n_rows == 0
    table.add({"total": 1.0}, 3)
    table.save()
    assert lines(path) == ["step,total", "3,1.0"]


@pytest.mark.parametrize("values", [{"total": 2.0}, {"total": 2.0, "new": 3.0}])
def test_no_half_of_a_row_stays_whatever_call_fails(tmp_path: Path, values: dict[str, float]) -> None:
    path = tmp_path / "metrics.csv"
    for nth in range(1, 20):
        path.unlink(missing_ok=True)
        table = MetricsTable(path)
        table.add({"total": 1.0}, 0)
        table.save()
        table.add(values, 10)
        with failing(tmp_path, nth, errno.ENOSPC) as state, suppress(OSError):
            table.save()
        header, *rows = lines(path)
        assert {row.count(",") for row in rows} == {header.count(",")}, state.failed
        assert path.read_text().endswith("\n")
        table.save()  # what could not be written is kept, and is not written twice
        assert len(lines(path)) == 3, state.failed
        if not state.failed:
            break
    assert nth > 1
    assert not state.failed


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
    for step in (0, 10):
        events.add({"total": 1.5 + step, "clustering": 0.25}, step)
    assert curves(tmp_path / "tensorboard") == {"total": [(0, 1.5), (10, 11.5)], "clustering": [(0, 0.25), (10, 0.25)]}
    events.close()


def test_tensorboard_drops_what_a_run_that_goes_on_does_again(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    for step in (0, 10, 20):
        first.add({"total": float(step)}, step)
    first.close()
    second = EventFile(tmp_path, 10)
    second.add({"total": -1.0}, 10)
    second.close()
    assert curves(tmp_path) == {"total": [(0, 0.0), (10, -1.0)]}


def test_a_file_without_points_is_not_made(tmp_path: Path) -> None:
    EventFile(tmp_path / "tensorboard", 5).close()
    assert not (tmp_path / "tensorboard").exists()
