"""A fault fires at its passage, once, says so, and is nothing without its variable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scamac_scale.durable import faults
from scamac_scale.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PASS_THREE = "from scamac_scale.durable.faults import reach; print([reach('train.step') for _ in range(3)])"


def run(fault: str, log: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, faults.FAULT: fault, **({faults.LOG: str(log)} if log else {}), **more}
    return subprocess.run([sys.executable, "-c", PASS_THREE], env=environment, capture_output=True, text=True)


def test_without_the_variable_nothing_happens() -> None:
    assert run("").stdout == "[None, None, None]\n"


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("exit", faults.EXIT_CODE), ("term", -signal.SIGTERM)]
)
def test_a_process_ends_where_it_shall(action: str, code: int) -> None:
    done = run(f"train.step:2:{action}")
    assert done.returncode == code
    assert done.stderr == f"fault: train.step:2:{action}\n"


def test_an_error_of_the_system_is_raised() -> None:
    assert "No space left on device" in run("train.step:1:enospc").stderr


def test_the_caller_is_told_of_its_part() -> None:
    assert run("train.step:2:nan").stdout == "[None, 'nan', None]\n"


def test_a_fault_is_of_one_rank_where_it_names_one() -> None:
    assert run("train.step@1:2:nan", RANK="0").stdout == "[None, None, None]\n"
    assert run("train.step@1:2:nan", RANK="1").stdout == "[None, 'nan', None]\n"


def test_a_fault_that_stands_in_the_log_does_not_fire_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run("train.step:2:exit", log).returncode == faults.EXIT_CODE
    assert log.read_text() == "train.step:2:exit\n"
    assert run("train.step:2:exit", log).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        *("train.step:kill", "train.step:x:kill", "train.stop:1:kill", "train.step:1:die"),
        *(
            "train.step@x:1:kill",
            "train.step@:1:kill",
            "train.step@-1:1:kill",
            "train.step@²:1:kill",
            "train.step:²:kill",
        ),
    ],
)
def test_a_fault_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=faults.FAULT):
        faults._parse(text, 0)
