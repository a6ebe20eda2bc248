"""Where the local copy of what lies in a bucket is kept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from scamac_scale.errors import OutputError
from scamac_scale.remote.place import parse
from scamac_scale.remote.work import work_base, work_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_a_place_has_one_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "missing" / "work"))
    first, second = (work_folder(parse(f"s3://bucket/{name}/run"), "runs") for name in "ab")
    assert first != second
    assert first == work_folder(parse("s3://bucket/a/run/"), "runs")
    assert first.name.startswith("run-")
    assert work_base().stat().st_mode & 0o077 == 0
    assert first.is_relative_to(work_base())


def test_a_folder_that_is_named_may_be_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o777)  # as those of containers are
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "scratch"))
    assert work_base().stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_folder_that_another_may_have_put_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scratch, mine = tmp_path / "scratch", tmp_path / "scratch" / f"scamac-scale-{os.geteuid()}"
    scratch.mkdir()
    scratch.chmod(0o777)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    elif kind == "open":
        mine.mkdir()
        mine.chmod(0o777)
    else:
        mine.touch()
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(scratch))
    with pytest.raises(OutputError, match="set SCAMAC_WORK_DIR to a folder that you can write"):
        work_base()
