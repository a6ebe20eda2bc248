"""Folders of strangers: links that lead out, pipes, sockets and devices are found without opening anything."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from scamac_scale.durable.foreign import at_home, foreign_entry, odd_kind

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a" / "below").mkdir(parents=True)
    (tmp_path / "a" / "below" / "file").write_text("x")
    (tmp_path / "secret").write_text("y")
    return tmp_path / "a"


def test_plain_files_and_links_inside_are_sound(folder: Path) -> None:
    (folder / "same").symlink_to("below/file")
    (folder / "all").symlink_to(folder / "below")
    (folder.parent / "link").symlink_to(folder)
    assert foreign_entry(folder) is None
    assert foreign_entry(folder.parent / "link") is None


@pytest.mark.parametrize(
    "target", ["../../secret", "../..", "/", "/dev/zero", "../../a-sibling", "nowhere", "link", ".."]
)
def test_a_link_that_leads_out_or_nowhere_is_found(folder: Path, target: str) -> None:
    (folder.parent / "a-sibling").mkdir()
    (folder / "below" / "link").symlink_to(target)
    found = foreign_entry(folder)
    assert found is not None
    assert found[0] == "below/link"
    assert found[1] in ("a link that leads out of the folder", "a link that leads to nothing")


def test_pipes_and_sockets_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "below" / "pipe")
    assert foreign_entry(folder) == ("below/pipe", "a named pipe (FIFO)")
    assert odd_kind(folder / "below" / "pipe") == "a named pipe (FIFO)"
    (folder / "below" / "pipe").unlink()
    monkeypatch.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("door")
        assert foreign_entry(folder) == ("door", "a socket")


def test_what_is_there_is_told_from_what_waits(folder: Path) -> None:
    assert [odd_kind(path) for path in (folder, folder / "below/file", folder / "nowhere")] == [None] * 3
    assert odd_kind(folder.__class__("/dev/null")) == "a device"


def test_a_tilde_is_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("~/a.h5ad") == tmp_path / "a.h5ad"
    assert str(at_home("~nobody-of-this-name/a")) == "~nobody-of-this-name/a"
    assert str(at_home("a/~/b")) == "a/~/b"
