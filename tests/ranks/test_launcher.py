"""The launcher with real processes, which do what their arguments say, and with the real program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from scamac_scale.errors import ConfigError, LostRankError
from scamac_scale.ranks import launcher
from scamac_scale.ranks.launcher import DEFAULT_PORT, Nodes, find_nodes, launch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALONE = Nodes(count=1, rank=0, address="127.0.0.1", port=0)
RANK_PROGRAM = """
import os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
with (folder / f"started-{rank}").open("a") as file:
    file.write(f"{os.getpid()} {' '.join(sys.argv[2:])}\\n")
linger_s = max([0.0] + [float(word.rpartition("=")[2]) for word in sys.argv if word.startswith(f"{rank}:linger=")])
def note(number, frame):
    (folder / f"got-{rank}").write_text(signal.Signals(number).name)
    time.sleep(linger_s)
    sys.exit(75)
for word in sys.argv[2:]:
    wanted, _, what = word.partition(":")
    if wanted not in (rank, "all"):
        continue
    verb, _, value = what.partition("=")
    if verb == "exit":
        sys.exit(int(value))
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "catch":
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            signal.signal(getattr(signal, name), note)
        (folder / f"ready-{rank}").touch()
    elif verb == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif verb == "sleep":
        time.sleep(float(value))
    elif verb == "once":  # fails the first time only
        if not (folder / f"again-{rank}").exists():
            (folder / f"again-{rank}").touch()
            sys.exit(int(value))
    elif verb == "environment":
        (folder / f"environment-{rank}").write_text(" ".join(os.environ.get(name, "") for name in value.split("+")))
    elif verb == "listener":
        import socket
        listener = socket.socket(fileno=int(os.environ["SCAMAC_BOARD_FD"]))
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        (folder / "listener").write_text(" ".join(map(str, listener.getsockname())))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ranks leave their traces, with a small program in the place of ours."""
    (tmp_path / "rank_program.py").write_text(RANK_PROGRAM)
    monkeypatch.setattr(launcher, "PROGRAM", "rank_program")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launcher, "GRACE_S", 0.2)
    monkeypatch.setattr(launcher, "KILL_S", 0.2)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def pids(folder: Path) -> list[int]:
    return [int(line.split()[0]) for file in folder.glob("started-*") for line in file.read_text().splitlines()]


def assert_no_process_is_left(folder: Path) -> None:
    for pid in pids(folder):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# ---------------------------------------------------------------------- machines


def test_one_machine_meets_on_a_port_that_the_system_gives() -> None:
    nodes = find_nodes(1, {"NODE_RANK": "3", "MASTER_ADDR": "elsewhere"})
    assert nodes == Nodes(count=1, rank=0, address="127.0.0.1", port=0)
    assert find_nodes(1, {"MASTER_PORT": "77"}).port == 77


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}, (1, "a", 5)),
        ({"JOB_COMPLETION_INDEX": "0", "MASTER_ADDR": "job-0.service"}, (0, "job-0.service", DEFAULT_PORT)),
        (
            {"AWS_BATCH_JOB_NODE_INDEX": "1", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"},
            (1, "10.0.0.7", DEFAULT_PORT),
        ),
        ({"AWS_BATCH_JOB_NODE_INDEX": "0"}, (0, "127.0.0.1", DEFAULT_PORT)),
        ({"SLURM_NODEID": "1", "MASTER_ADDR": "gpu01"}, (1, "gpu01", DEFAULT_PORT)),
        ({"GROUP_RANK": "1", "MASTER_ADDR": "a"}, (1, "a", DEFAULT_PORT)),
        ({"NODE_RANK": "0", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "a"}, (0, "a", DEFAULT_PORT)),
    ],
    ids=["by hand", "kubernetes", "aws child", "aws main", "slurm", "torchrun", "by hand goes first"],
)
def test_every_platform_says_which_machine_this_is(environ: dict[str, str], expected: tuple[int, str, int]) -> None:
    nodes = find_nodes(2, environ)
    assert (nodes.count, nodes.rank, nodes.address, nodes.port) == (2, *expected)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NODE_RANK": "1"},
        {"MASTER_ADDR": "a"},
        {"NODE_RANK": "2", "MASTER_ADDR": "a"},
        {"NODE_RANK": "-1", "MASTER_ADDR": "a"},
        {"NODE_RANK": "one", "MASTER_ADDR": "a"},
        {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "http"},
        {"AWS_BATCH_JOB_NODE_INDEX": "1"},
    ],
    ids=str,
)
def test_a_machine_that_cannot_tell_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"NODE_RANK|MASTER_PORT"):
        find_nodes(2, environ)


# ---------------------------------------------------------------------- how it ends


def test_every_rank_is_told_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    names = "RANK+LOCAL_RANK+WORLD_SIZE+LOCAL_WORLD_SIZE+MASTER_ADDR+MASTER_PORT+OMP_NUM_THREADS"
    nodes = Nodes(count=2, rank=1, address="first", port=77)
    assert launch([str(folder), f"all:environment={names}"], 2, nodes) == 0
    assert (folder / "environment-2").read_text() == "2 0 4 2 first 77 3"
    assert (folder / "environment-3").read_text() == "3 1 4 2 first 77 3"


def test_ranks_of_one_machine_get_an_open_socket_on_loopback_and_a_new_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCAMAC_JOB_SECRET_FILE", "/somewhere")
    names = "MASTER_ADDR+MASTER_PORT+SCAMAC_JOB_SECRET+SCAMAC_JOB_SECRET_FILE"
    found = []
    for _ in range(2):
        assert launch([str(folder), f"all:environment={names}", "0:listener", "1:exit=0"], 2, ALONE) == 0
        said = [(folder / f"environment-{rank}").read_text().rstrip().split(" ") for rank in (0, 1)]
        assert said[0] == said[1]
        address, port, secret = said[0]
        assert (folder / "listener").read_text() == f"{address} {port}"
        assert address == "127.0.0.1"
        assert len(secret) == 64
        found.append(secret)
    assert found[0] != found[1]


def test_only_rank_0_has_the_socket(folder: Path) -> None:
    assert launch([str(folder), "all:environment=SCAMAC_BOARD_FD"], 2, ALONE) == 0
    assert (folder / "environment-0").read_text().isdigit()
    assert (folder / "environment-1").read_text() == ""


def test_a_port_that_is_taken_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} cannot be taken"):
            launch([str(folder)], 2, Nodes(count=1, rank=0, address="127.0.0.1", port=port))
    assert pids(folder) == []


def test_the_secret_of_several_machines_is_that_of_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAMAC_JOB_SECRET", "as the platform gave it")
    nodes = Nodes(count=2, rank=0, address="127.0.0.1", port=77, is_unnamed=True)
    assert launch([str(folder), "all:environment=SCAMAC_JOB_SECRET+MASTER_ADDR+SCAMAC_BOARD_FD"], 1, nodes) == 0
    assert (folder / "environment-0").read_text() == "as the platform gave it 0.0.0.0 "  # it is on all addresses


@pytest.mark.parametrize("code", [1, 2, 4, 5, 70, 75])
def test_the_code_of_the_rank_that_failed_is_that_of_the_job(folder: Path, code: int) -> None:
    assert launch([str(folder), f"1:exit={code}"], 2, ALONE) == code
    assert_no_process_is_left(folder)


def test_a_failure_counts_more_than_ranks_that_were_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 60.0)
    assert launch([str(folder), "0:exit=75", "1:sleep=0.3", "1:exit=5"], 2, ALONE, timeout_s=5) == 5


def test_a_killed_rank_is_named_and_the_run_can_go_on(folder: Path) -> None:
    with pytest.raises(LostRankError, match=r"rank 1 was killed by SIGKILL \(as .*run again with --resume") as caught:
        launch([str(folder), "1:kill", "0:exit=75"], 2, ALONE)
    assert caught.value.exit_code == 75


def test_a_failure_beside_a_killed_rank_is_the_code(folder: Path) -> None:
    with pytest.raises(LostRankError, match="rank 1 was killed by SIGKILL") as caught:
        launch([str(folder), "1:kill", "0:exit=4"], 2, ALONE)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("others", ["0:sleep=60", "0:ignore 0:sleep=60"], ids=["asleep", "deaf"])
def test_a_rank_that_does_not_end_after_another_failed_is_stopped(folder: Path, others: str) -> None:
    with pytest.raises(LostRankError, match="rank 0 did not end after another one had failed") as caught:
        launch([str(folder), *others.split(), "1:exit=75"], 2, ALONE, timeout_s=0.2)
    assert caught.value.exit_code == 75
    assert_no_process_is_left(folder)


def test_a_rank_for_which_another_has_waited_in_vain_is_not_waited_for_again(folder: Path) -> None:
    with pytest.raises(LostRankError, match="rank 0 did not end after another one had failed"):
        launch([str(folder), "0:sleep=20", "1:exit=75"], 2, ALONE, timeout_s=60)


def test_ranks_have_time_to_notice_that_another_has_failed(folder: Path) -> None:
    assert launch([str(folder), "0:sleep=0.6", "0:exit=1", "1:exit=1"], 2, ALONE, timeout_s=20) == 1
    with pytest.raises(LostRankError, match=r"^rank 1 was killed by SIGKILL \(as .*\); run again with --resume\.$"):
        launch([str(folder), "0:sleep=0.6", "0:exit=75", "1:kill"], 2, ALONE, timeout_s=20)


def test_a_rank_that_cannot_be_started_leaves_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def second_fails(*arguments: object, **options: object) -> object:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(real(*arguments, **options))
        return started[0]

    monkeypatch.setattr(launcher.subprocess, "Popen", second_fails)
    with pytest.raises(BlockingIOError):
        launch([str(folder), "all:sleep=60"], 2, ALONE)
    assert started[0].returncode == -signal.SIGKILL


# ---------------------------------------------------------------------- signals


def when_ready(folder: Path, ranks: int, number: int) -> threading.Thread:
    """Send this process a signal once all ranks can take it."""

    def send() -> None:
        while len(list(folder.glob("ready-*"))) < ranks:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_reaches_every_rank(folder: Path, name: str) -> None:
    thread = when_ready(folder, 2, getattr(signal, name))
    assert launch([str(folder), "all:catch", "all:sleep=60"], 2, ALONE) == 75
    thread.join()
    assert [(folder / f"got-{rank}").read_text() for rank in (0, 1)] == [name, name]
    assert_no_process_is_left(folder)


def test_a_signal_between_two_starts_reaches_every_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = subprocess.Popen, []

    def slow(*arguments: Any, **options: Any) -> Any:
        if len(started) == 1:
            when_ready(folder, 1, signal.SIGTERM).join()
        started.append(real(*arguments, **options))
        while len(list(folder.glob("ready-*"))) < len(started):
            time.sleep(0.01)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)
    assert launch([str(folder), "all:catch", "all:sleep=60"], 2, ALONE) == 75
    assert [(folder / f"got-{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]


def test_after_a_signal_ranks_have_time_to_end(folder: Path) -> None:
    thread = when_ready(folder, 2, signal.SIGTERM)
    assert launch([str(folder), "all:catch", "0:linger=0.6", "all:sleep=60"], 2, ALONE, timeout_s=20) == 75
    thread.join()
    assert_no_process_is_left(folder)


def test_after_a_signal_nothing_is_started_again(folder: Path) -> None:
    thread = when_ready(folder, 2, signal.SIGTERM)
    assert launch([str(folder), "all:catch", "all:sleep=60"], 2, ALONE, max_restarts=3) == 75
    thread.join()
    assert len(pids(folder)) == 2


# ---------------------------------------------------------------------- restarts


@pytest.mark.parametrize("code", [1, 75])
def test_a_lost_run_is_started_again_with_resume(folder: Path, capsys: pytest.CaptureFixture[str], code: int) -> None:
    assert launch([str(folder), f"1:once={code}"], 2, ALONE, max_restarts=1) == 0
    for rank in (0, 1):
        first, second = (folder / f"started-{rank}").read_text().splitlines()
        assert first.endswith(f"1:once={code}")
        assert second.endswith(" --resume")
    assert "starting again (1 of 1)" in capsys.readouterr().err


def test_resume_is_not_given_twice(folder: Path) -> None:
    launch([str(folder), "1:once=75", "--resume"], 2, ALONE, max_restarts=1)
    assert (folder / "started-0").read_text().splitlines()[1].count("--resume") == 1


def test_restarts_come_to_an_end(folder: Path) -> None:
    with pytest.raises(LostRankError, match="rank 0 was killed"):
        launch([str(folder), "0:kill"], 1, ALONE, max_restarts=2)
    assert len(pids(folder)) == 3


@pytest.mark.parametrize("code", [2, 4, 5])
def test_what_another_try_would_not_change_is_not_tried_again(folder: Path, code: int) -> None:
    assert launch([str(folder), f"1:exit={code}"], 2, ALONE, max_restarts=3) == code
    assert len(pids(folder)) == 2
