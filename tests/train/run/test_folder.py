"""The folder of a run: what is in it is never lost by opening it."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from scamac_scale.durable import locks
from scamac_scale.errors import OutputError, StoreError
from scamac_scale.train.run import checkpoints
from scamac_scale.train.run.folder import RunFolder
from tests.support.failing import contents, failing
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path


class _Killed(BaseException):
    """Ends a block as a kill would: nothing is cleared away for it."""


def stopped(path: Path) -> dict[str, str]:
    """Make a run with two checkpoints and three rows of metrics; what its checkpoints hold."""
    with suppress(_Killed), RunFolder(path, QUICK) as run:
        for step in (0, 5, 10):
            run.log({"total": 0.1 * step}, step)
            run.save({"step": step})
        raise _Killed
    return contents(path / "checkpoints")


def metrics(path: Path) -> list[str]:
    return (path / "metrics.csv").read_text().splitlines()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.slow
def test_opening_a_run_loses_nothing_whatever_call_fails(tmp_path: Path, number: int, is_lasting: bool) -> None:
    path = tmp_path / "run"
    held, rows = stopped(path), metrics(path)
    n_failed = 0
    for nth in range(1, 100):
        with failing(path, nth, number, is_lasting=is_lasting) as state:
            try:
                with RunFolder(path, QUICK, resume=True):
                    raise _Killed
            except OutputError:
                n_failed += 1
            except _Killed:
                pass
        assert contents(path / "checkpoints") == held, state.failed
        with suppress(_Killed), RunFolder(path, QUICK, resume=True) as run:
            assert run.saved is not None
            assert run.saved["state"]["step"] == 10
            assert run.n_logged == 3, state.failed
            raise _Killed
        assert metrics(path) == rows
        if not state.failed:
            break
    assert n_failed >= 3
    assert not state.failed


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    for more in (None, "thesis.txt"):
        if more:
            (tmp_path / more).write_text("years")
            (tmp_path / "checkpoints").mkdir()
        for resume in (False, True):
            before = contents(tmp_path)
            with pytest.raises(OutputError, match="not empty"):
                RunFolder(tmp_path, QUICK, resume=resume)
            assert contents(tmp_path) == before


def test_damaged_checkpoints_stay_and_are_named(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        path.write_bytes(b"x" + path.read_bytes()[1:])
    held = contents(tmp_path / "run")
    with pytest.raises(StoreError, match="all checkpoints are damaged"):
        RunFolder(tmp_path / "run", QUICK, resume=True)
    with pytest.raises(OutputError, match="--resume"):
        RunFolder(tmp_path / "run", QUICK)
    assert contents(tmp_path / "run") == held


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = stopped(tmp_path / "run")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "digest_of_file", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            RunFolder(tmp_path / "run", QUICK, resume=True)
    assert contents(tmp_path / "run" / "checkpoints") == held


def test_half_a_row_of_metrics_ends_them(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    rows = metrics(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text("\n".join(rows[:-1]) + "\n0.5,1e-")
    with suppress(_Killed), RunFolder(tmp_path / "run", QUICK, resume=True) as run:
        assert run.n_logged == 2
        raise _Killed
    assert metrics(tmp_path / "run") == rows[:-1]


def test_a_folder_in_which_nothing_can_be_written_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks, "_write", full)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(OutputError, match="No space left"):
            RunFolder(tmp_path / name, QUICK)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
