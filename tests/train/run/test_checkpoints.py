from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale.errors import OutputError
from scamac_scale.train.run.checkpoints import Checkpoints
from scamac_scale.train.run.report import is_finished, write_report
from tests.support.failing import failing, failures
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "weights": torch.full((50,), float(step)),
        "none": None,
        "list": [1, {"a": torch.ones(2).double()}],
    }


def test_what_was_saved_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    held = Checkpoints(tmp_path / "checkpoints")
    assert held.newest() is None
    for step in (5, 10, 10, 15):
        held.save(state(step), step)
    assert [path.name.split("-")[2] for path in sorted(held.folder.iterdir())] == ["10", "15"]
    found = held.newest()
    assert found is not None
    assert found["step"] == 15
    assert found["none"] is None
    torch.testing.assert_close(found["list"][1]["a"], torch.ones(2).double())


def test_an_error_does_not_say_that_nothing_was_left_behind(tmp_path: Path) -> None:
    held = Checkpoints(tmp_path / "checkpoints")
    held.save(state(5), 5)
    for number, advice in ((errno.EIO, "try again or choose another folder"), (errno.ENOSPC, "free some space")):
        with failing(tmp_path, 2, number), pytest.raises(OutputError, match=advice) as raised:
            held.save(state(10), 10)
        assert "left" not in str(raised.value).replace("left on device", "")
    assert len(list(held.folder.iterdir())) == 1


def test_what_would_run_code_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = Checkpoints(tmp_path)
    held.save(state(1), 1)
    held.save({"step": 2, "path": tmp_path}, 2)  # a class of its own: only data is taken back
    with caplog.at_level(logging.WARNING):
        found = held.newest()
    assert found is not None
    assert found["step"] == 1
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("is_lasting", [False, True])
def test_a_save_that_fails_anywhere_loses_nothing(tmp_path: Path, number: int, is_lasting: bool) -> None:
    folder = tmp_path / "checkpoints"
    held = Checkpoints(folder)
    for step in (1, 2):
        held.save(state(step), step)
    n_failed = 0
    for found, error in failures(lambda: held.save(state(3), 3), folder, number, is_lasting=is_lasting):
        newest = held.newest()
        assert newest is not None
        if error is None:  # making a folder that is there
            assert newest["step"] == 3, found.failed
        else:
            n_failed += 1
            assert isinstance(error, OutputError), found.failed
            assert error.errno == number
            # a file that has its name, but may not keep it when the machine stops now, is complete as well
            assert newest["step"] in (2, 3)
            assert float(newest["weights"][0]) == newest["step"]
        for path in sorted(folder.glob("*-step-3-*")):
            path.unlink()
        assert len(list(folder.iterdir())) >= 1
        held.save(state(2), 2)
    assert n_failed >= 4  # open, write, flush, rename at least


def test_a_folder_with_the_name_of_a_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Checkpoints(tmp_path)
    for step in (1, 2):
        newest = held.save(state(step), step)
    newest.unlink()
    newest.mkdir()
    found = held.newest()
    assert found is not None
    assert found["step"] == 1
    assert f"{newest} cannot be used (it is a folder)" in caplog.text
    for step in (3, 4, 5):
        held.save(state(step), step)
    assert [path.name.split("-")[2] for path in sorted(tmp_path.iterdir())] == ["2", "4", "5"]


@pytest.mark.parametrize("is_lasting", [False, True])
def test_an_error_leaves_no_run_that_says_it_has_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_lasting: bool
) -> None:
    for found, error in failures(
        lambda: write_report(tmp_path, QUICK, {"finished": True}), tmp_path, errno.EIO, is_lasting=is_lasting
    ):
        assert is_finished(tmp_path) is (error is None), found.failed
        (tmp_path / "run.json").unlink(missing_ok=True)
    assert "does not confirm its name" in caplog.text
