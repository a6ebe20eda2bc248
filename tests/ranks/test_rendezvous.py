"""How ranks find the board of rank 0: by a note, by their secret, by what a store says in which anybody writes."""

from __future__ import annotations

import os
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from torch.distributed import HashStore

from scamac_scale.errors import ConfigError
from scamac_scale.ranks import rendezvous
from scamac_scale.ranks.board import listen
from scamac_scale.ranks.place import Place
from scamac_scale.ranks.rendezvous import LISTENER, Board, open_board
from scamac_scale.ranks.secret import SECRET, SECRET_FILE
from scamac_scale.ranks.world import World

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (SECRET, SECRET_FILE, LISTENER, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def place(rank: int, port: int, address: str = "127.0.0.1") -> Place:
    return Place(World(rank, 2), rank, address, port)


def free() -> int:
    with listen("127.0.0.1", 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def both(port: int, address: str = "127.0.0.1") -> list[Board]:
    """The boards of two ranks, of which the second one comes first."""
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(open_board, place(1, port, address), 10.0)
        return [open_board(place(0, port, address), 10.0), other.result()]


def assert_shared(boards: list[Board]) -> None:
    boards[0].store.set("key", b"value")
    assert boards[1].store.get("key") == b"value"
    assert boards[0].secret == boards[1].secret


def test_ranks_of_one_machine_need_no_secret() -> None:
    boards = both(free())
    assert_shared(boards)
    assert [board.has_note for board in boards] == [True, False]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"], ids=["one machine", "several"])
def test_ranks_that_have_a_secret_leave_no_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    monkeypatch.setenv(SECRET, TEXT)
    assert_shared(both(free(), address))
    assert list(tmp_path.iterdir()) == []


def test_the_board_of_one_machine_is_on_loopback_whatever_its_rank_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(rendezvous, "serve", lambda listener, secret: found.append(listener))
    with pytest.raises(AttributeError):  # there is no board
        open_board(place(0, free(), "localhost"), 1.0)
    assert found[0].getsockname()[0] == "127.0.0.1"
    found[0].close()


def test_what_strangers_write_into_the_store_of_torchrun_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = HashStore()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv(SECRET, TEXT)
    monkeypatch.setattr(rendezvous, "_agent", lambda place, timeout_s: agent)
    with listen("127.0.0.1", 0) as impostor, ThreadPoolExecutor(1) as pool:
        impostor.settimeout(5)
        agent.set("scamac_scale/port", str(impostor.getsockname()[1]))
        other = pool.submit(open_board, place(1, 1, "0.0.0.0"), 20.0)
        connection, _ = impostor.accept()
        for said in ("", "x", "0", "-1", "99999", "9" * 50, "\u0663"):
            agent.set("scamac_scale/port", said)
        connection.close()
        boards = [open_board(place(0, 1, "0.0.0.0"), 10.0), other.result()]
    assert_shared(boards)


def test_ranks_with_other_secrets_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "REFUSED_S", 0.1)
    port = free()
    monkeypatch.setenv(SECRET, TEXT)
    open_board(place(0, port), 1.0)
    monkeypatch.setenv(SECRET, TEXT[::-1])
    with pytest.raises(RuntimeError, match="give all ranks the same SCAMAC_JOB_SECRET"):
        open_board(place(1, port), 20.0)


def test_a_rank_0_that_does_not_come_is_not_waited_for_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"nobody answered within 0.1 s \(it has left no note\)"):
        open_board(place(1, free()), 0.1)
    monkeypatch.setenv(SECRET, TEXT)
    with pytest.raises(RuntimeError, match=r"nobody answered within 0.1 s"):
        open_board(place(1, free()), 0.1)


def test_a_port_that_cannot_be_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"rank 0 cannot listen on port {port}: .*set MASTER_PORT"):
            open_board(place(0, port), 1.0)
    with pytest.raises(ConfigError, match="MASTER_PORT=65536 is no port"):
        open_board(place(1, 65536), 1.0)
    monkeypatch.setenv(LISTENER, "987654")
    with pytest.raises(ConfigError, match="is no open socket"):
        open_board(place(0, free()), 1.0)


def test_an_open_socket_of_the_launcher_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    monkeypatch.setenv(LISTENER, str(listener.detach()))
    monkeypatch.setenv(SECRET, TEXT)
    assert_shared(both(port))
    assert LISTENER not in os.environ


def test_gloo_and_nccl_are_bound_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")
    rendezvous.use_loopback()
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"]
    assert os.environ["GLOO_SOCKET_IFNAME"] in {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
