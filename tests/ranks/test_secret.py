"""The secret of a job: where it may stand, and who may be able to read it."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from scamac_scale.errors import ConfigError
from scamac_scale.ranks.secret import (
    SECRET,
    SECRET_FILE,
    Note,
    given_secret,
    new_secret,
    read_note,
    remove_note,
    write_note,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "0123456789abcdef"


def file_of(folder: Path, content: str = TEXT + "\n", mode: int = 0o600) -> dict[str, str]:
    path = folder / "secret"
    path.write_text(content)
    path.chmod(mode)
    return {SECRET_FILE: str(path)}


def test_it_stands_in_a_variable_or_a_file(tmp_path: Path) -> None:
    assert given_secret({}) is None
    assert given_secret({SECRET_FILE: ""}) is None
    assert given_secret({SECRET: TEXT}) == TEXT.encode()
    assert given_secret(file_of(tmp_path)) == TEXT.encode()
    (tmp_path / "link").symlink_to("secret")  # as Kubernetes has it
    assert given_secret({SECRET_FILE: str(tmp_path / "link")}) == TEXT.encode()
    assert new_secret() != new_secret()
    assert given_secret({SECRET: new_secret()})


@pytest.mark.parametrize("content", ["", "short", " " * 40, "x" * 5000])
def test_one_that_can_be_guessed_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="it must have 16 to 4096: make one with"):
        given_secret({SECRET: content})
    with pytest.raises(ConfigError, match="it must have 16 to 4096: make one with"):
        given_secret(file_of(tmp_path, content))


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o622])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        given_secret(file_of(tmp_path, mode=mode))


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of root and of others")
def test_the_group_of_a_file_of_root_may_read_it_and_nobody_else_own_it(tmp_path: Path) -> None:
    given = file_of(tmp_path, mode=0o440)
    assert given_secret(given) == TEXT.encode()
    os.chown(given[SECRET_FILE], 12345, 0)
    with pytest.raises(ConfigError, match="owner 12345"):
        given_secret(given)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, said in (
        ("pipe", "is no regular file"),
        ("", "is no regular file"),
        ("missing", "cannot be read: No such"),
    ):
        with pytest.raises(ConfigError, match=said):
            given_secret({SECRET_FILE: str(tmp_path / name)})


def test_one_place_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        given_secret({SECRET: TEXT, **file_of(tmp_path)})


# ---------------------------------------------------------------------- notes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"scamac-scale-ranks-{os.getuid()}"


def test_ranks_of_one_machine_find_the_note_of_rank_0(folder: Path) -> None:
    assert read_note(29400) is None
    write_note(29400, Note(77, b"first" * 4))
    write_note(29400, Note(78, TEXT.encode()))
    assert read_note(29400) == Note(78, TEXT.encode())
    assert read_note(29401) is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]
    remove_note(29400)
    remove_note(29400)
    assert list(folder.iterdir()) == []


def test_a_folder_that_others_have_made_or_may_enter_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(0o755)
    with pytest.raises(ConfigError, match=r"is not a folder of this user alone .*SCAMAC_JOB_SECRET"):
        write_note(1, Note(77, TEXT.encode()))
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    folder.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="is not a folder of this user alone"):
        read_note(1)
    folder.unlink()
    folder.mkdir(0o700)
    if os.getuid() == 0:
        os.chown(folder, 12345, 0)
        with pytest.raises(ConfigError, match="is not a folder of this user alone"):
            read_note(1)


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "7",
            "[]",
            "{}",
            '{"port": "x", "secret": 7}',
            '{"port": 77, "secret": "short"}',
            "[" * 3000,
            "\x00\udcff",
        ),
        *(f'{{"port": {port}, "secret": "{TEXT}"}}' for port in ("99999", "0", "1.5", "true", "null")),
    ],
)
def test_a_note_that_cannot_be_read_is_none(folder: Path, content: str) -> None:
    write_note(1, Note(77, TEXT.encode()))
    (folder / "1.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_note(1) is None


def test_a_pipe_or_a_link_is_no_note(folder: Path) -> None:
    write_note(2, Note(77, TEXT.encode()))
    os.mkfifo(folder / "1.json")
    (folder / "3.json").symlink_to("2.json")
    assert read_note(1) is None
    assert read_note(3) is None
