"""One writer at a time, in real processes; the death of the owner opens the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scamac_scale.durable import locks
from scamac_scale.durable.locks import lock, lock_file
from scamac_scale.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from scamac_scale.durable.locks import lock
with lock(Path(sys.argv[1]), "the output"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
WITHOUT_FLOCK = """
import errno, fcntl
def flock(handle, how):
    raise OSError(errno.ENOTSUP, "not supported")
fcntl.flock = flock
"""
COUNT = """
import sys, time
from pathlib import Path
from scamac_scale.errors import OutputError
from scamac_scale.durable.locks import lock
folder = Path(sys.argv[1])
n = 0
while n < 100:
    try:
        with lock(folder / "lock", "the count"):
            count = int((folder / "count").read_text())
            (folder / "count").write_text(str(count + 1))
        n += 1
    except OutputError:
        if not folder.exists():
            sys.exit(1)  # the test has gone
"""


@contextmanager
def holder(file: Path, preamble: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is told to go on, or killed."""
    command = [sys.executable, "-c", preamble + HOLD, str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["flock", "no flock"])
def preamble(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernel's locks and on a file system that has none."""
    if request.param == "flock":
        return ""

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return WITHOUT_FLOCK


def test_a_second_job_is_refused_and_the_first_is_named(tmp_path: Path, preamble: str) -> None:
    file = lock_file(tmp_path / "a.zarr")
    assert file.name == ".a.zarr.lock"
    with holder(file, preamble) as first:
        expected = f"a.zarr is being written by another job: host {socket.gethostname()}, pid {first.pid}, since 20"
        with pytest.raises(OutputError, match=expected) as raised, lock(file, tmp_path / "a.zarr"):
            pass
        assert raised.value.exit_code == 75
        assert file.exists()
        assert first.communicate("\n", timeout=30)[0] == "released\n"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_job_is_free(tmp_path: Path, preamble: str) -> None:
    file = lock_file(tmp_path / "a.zarr")
    with holder(file, preamble) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        assert json.loads(file.read_text())["pid"] == first.pid
        with lock(file, "the output"):
            assert json.loads(file.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_job_locks_itself_out(tmp_path: Path, preamble: str) -> None:
    with lock(tmp_path / "lock", "the output"):
        with pytest.raises(OutputError, match=f"pid {os.getpid()}"), lock(tmp_path / "lock", "the output"):
            pass
        assert (tmp_path / "lock").exists()
    with lock(tmp_path / "lock", "the output"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["", WITHOUT_FLOCK], ids=["flock", "no flock"])
def test_many_jobs_that_take_turns_lose_nothing(tmp_path: Path, how: str) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", how + COUNT, str(tmp_path)]
    jobs = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_file_that_was_removed_and_made_anew_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last owner removes the file between our opening and our locking."""
    file, true_flock, calls = tmp_path / "lock", fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        if not calls:
            file.unlink()
        calls.append(handle)
        true_flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(file, "the output"):
        assert len(calls) == 2
        assert json.loads(file.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("change", "is_free"),
    [({}, False), ({"ticks": 1}, True), ({"boot": "before"}, True), ({"pid": 2**30}, True), ({"host": "other"}, False)],
)
def test_without_flock_the_recorded_owner_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], is_free: bool
) -> None:
    without_flock(monkeypatch)
    (tmp_path / "lock").write_text(json.dumps(locks._this_process() | change))
    try:
        with lock(tmp_path / "lock", "the output"):
            assert is_free
    except OutputError:
        assert not is_free


def dead() -> str:
    return json.dumps(locks._this_process() | {"ticks": 1})


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))


def test_an_owner_on_another_host_can_be_removed_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch)
    file = tmp_path / "lock"
    file.write_text(json.dumps(locks._this_process() | {"host": "other"}))
    with pytest.raises(OutputError, match=f"host other, .*surely gone, remove {file}"), lock(file, "the output"):
        pass
    file.unlink()
    with lock(file, "the output"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nobody_gets_in_while_two_replace_a_dead_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has found the owner dead; another one replaces it; a third one tries before every call of the first from then on."""
    without_flock(monkeypatch)
    file, true_is_alive = tmp_path / "lock", locks._is_alive
    file.write_text(dead())
    tries: list[str] = []
    got_in: list[str] = []
    is_trying = False

    def watched(name: str) -> Callable[..., Any]:
        true_call = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            nonlocal is_trying
            if not is_trying:
                is_trying = True
                tries.append(name)
                with suppress(OutputError), lock(file, "the output"):
                    got_in.append(name)
                is_trying = False
            if got_in:
                raise OSError(errno.EIO, "stop here")
            return true_call(*args, **options)

        return call

    with ExitStack() as second:

        def is_alive(owner: dict[str, Any]) -> bool:
            found = true_is_alive(owner)
            if not found:
                monkeypatch.setattr(locks, "_is_alive", true_is_alive)
                second.enter_context(lock(file, "the output"))
                for name in ("open", "link", "rename", "replace", "unlink", "close"):
                    monkeypatch.setattr(os, name, watched(name))
            return found

        monkeypatch.setattr(locks, "_is_alive", is_alive)
        with pytest.raises(OutputError), lock(file, "the output"):
            pass
        monkeypatch.undo()
        assert tries
        assert got_in == []
        assert file.exists()


def test_one_who_died_while_replacing_a_dead_owner_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch)
    for name in ("lock", "lock.taking", "lock.taking.taking"):
        (tmp_path / name).write_text(dead())
    with lock(tmp_path / "lock", "the output"):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


def test_the_end_does_not_remove_the_lock_of_another(tmp_path: Path, preamble: str) -> None:
    file = tmp_path / "lock"
    with lock(file, "the output"):
        file.unlink()  # by hand, and wrongly so
        file.write_text("another's")
    assert file.read_text() == "another's"


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_what_stands_in_a_free_file_does_not_matter(tmp_path: Path, preamble: str, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with lock(tmp_path / "lock", "the output"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_full_disk_is_said_and_no_lock_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(OutputError, match="free some space"), lock(tmp_path / "lock", "the output"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError), lock(tmp_path / "lock", "the output"):
        pass
    assert (tmp_path / "precious").read_text() == "1"
