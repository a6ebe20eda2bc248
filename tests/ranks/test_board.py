"""The board of the ranks: who knows the secret reads and writes; whoever else comes, with whatever, gets nothing and stops nobody."""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from torch.distributed import PrefixStore

from scamac_scale.ranks import board
from scamac_scale.ranks.board import Keys, RefusedError, Remote, listen, serve
from scamac_scale.ranks.store import BoardStore
from tests.support.stranger import recorded_session, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = board.digest(b"known to the ranks")
GREETING_BYTES = len(board.GREETING) + board.NONCE_BYTES


class Served:
    """A board that rank 0 keeps."""

    def __init__(self) -> None:
        listener = listen("127.0.0.1", 0)
        self.place: tuple[str, int] = listener.getsockname()
        self.keys = serve(listener, SECRET)

    def rank(self, secret: bytes = SECRET) -> Remote:
        return Remote(*self.place, secret, 5.0)

    def stranger(self) -> socket.socket:
        return socket.create_connection(self.place, 5.0)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(board, "STRANGER_S", 0.5)
    return Served()


def heard(connection: socket.socket) -> bytes:
    """All that the other side says until it hangs up."""
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except ConnectionError:
        pass
    return found


def test_all_ranks_see_what_one_has_written(served: Served) -> None:
    first, second = served.rank(), served.rank()
    first.ask("set", "key", "\x00\xff value")
    assert second.ask("get", ["key"]) == ["\x00\xff value"]
    assert served.keys.ask("get", ["key"]) == ["\x00\xff value"]
    assert second.ask("get", ["key", "other"]) is None
    assert [second.ask("add", "n", 2), first.ask("add", "n", 3), served.keys.ask("add", "n", -1)] == [2, 5, 4]
    assert first.ask("replace", "new", "", "a") == "a"
    assert second.ask("replace", "new", "b", "c") == "a"
    assert second.ask("replace", "new", "a", "c") == "c"
    assert [first.ask("delete", "new"), first.ask("delete", "new"), first.ask("count")] == [True, False, 2]


def test_torch_takes_it_for_a_store(served: Served) -> None:
    stores = [BoardStore(ask) for ask in (served.keys.ask, served.rank().ask)]
    mine, other = (PrefixStore("p", each) for each in stores)
    writer = threading.Timer(0.1, lambda: other.set("key", b"\x00\xffvalue"))
    writer.start()
    assert mine.get("key") == b"\x00\xffvalue"
    writer.join()
    assert other.multi_get(["key", "key"]) == [b"\x00\xffvalue"] * 2
    assert mine.check(["key"])
    assert not mine.check(["key", "missing"])
    assert other.add("n", 2) + mine.add("n", 1) == 5
    assert mine.compare_set("key", b"\x00\xffvalue", b"new") == b"new"
    with pytest.raises(RuntimeError, match=r"did not say 'p/missing' within 0.05 s"):
        other.wait(["missing"], timedelta(milliseconds=50))


def test_the_secret_is_asked_for_and_shown(served: Served) -> None:
    with pytest.raises(RefusedError, match="does not know the secret"):
        served.rank(board.digest(b"guessed"))
    assert served.rank().ask("count") == 0


def test_one_who_does_not_know_the_secret_hears_a_random_number_and_no_more(served: Served, tmp_path: Path) -> None:
    for said in islice(words(tmp_path / "bomb", recorded_session(b"known to the ranks")), 17):
        with served.stranger() as connection:
            try:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # cut off already
            assert len(heard(connection)) <= GREETING_BYTES, said[:40]
    assert served.keys.ask("count") == 0
    assert not (tmp_path / "bomb").exists()
    assert served.rank().ask("count") == 0


def test_what_an_honest_rank_has_said_cannot_be_said_again(served: Served) -> None:
    replay = recorded_session(b"known to the ranks")
    assert b"left/1" in replay
    for said in (replay, replay[:64], replay[64:]):
        with served.stranger() as connection:
            connection.sendall(said)
            assert len(heard(connection)) <= GREETING_BYTES
    assert served.keys.ask("count") == 0


def test_three_hundred_who_hold_their_connections_keep_nobody_out(served: Served) -> None:
    held = []
    for number in range(300):
        held.append(served.stranger())
        if number % 2:
            held[-1].sendall(b"x" * (number % 60))
    start_s = time.monotonic()
    rank = served.rank()
    rank.ask("set", "key", "value")
    assert time.monotonic() - start_s < 5
    time.sleep(board.STRANGER_S)
    for connection in held:
        assert len(heard(connection)) <= GREETING_BYTES  # and was hung up on
        connection.close()
    assert rank.ask("get", ["key"]) == ["value"]  # who has shown the secret stays


def test_it_runs_out_of_files_and_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "MAX_STRANGERS", 10**6)
    true_accept, n_calls = socket.socket.accept, 0

    def accept(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal n_calls
        n_calls += 1
        if n_calls % 3:
            raise OSError(24, "Too many open files")
        return true_accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    held = [served.stranger() for _ in range(5)]
    assert served.rank().ask("count") == 0
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sealed: bytes([*sealed[:-1], sealed[-1] ^ 1]),
        lambda sealed: sealed[:4] + bytes(32) + sealed[36:],
        lambda sealed: b"\xff" * 4 + sealed[4:],
        lambda sealed: sealed + sealed,
    ],
    ids=["another word", "no seal", "huge", "twice"],
)
def test_a_message_that_was_changed_on_the_way_does_nothing(served: Served, spoil: object) -> None:
    rank = served.rank()
    sealed = rank._channel.seal(["add", "n", 1])
    assert rank._connection is not None
    rank._connection.sendall(spoil(sealed))  # type: ignore[operator]
    heard(rank._connection)  # until it is hung up on
    assert served.keys.ask("get", ["n"]) in (None, ["1"])  # the first of two is that of a rank


@pytest.mark.parametrize(
    "message", [["fly"], ["set", 1, "x"], ["set", "key"], ["get", None], [], {"a": 1}, 7, [["set"]], ["add", "n", "x"]]
)
def test_a_rank_that_asks_for_nonsense_is_hung_up_on(served: Served, message: object) -> None:
    rank = served.rank()
    assert rank._connection is not None
    rank._connection.sendall(rank._channel.seal(message))
    assert heard(rank._connection) == b""
    with pytest.raises(RuntimeError, match="rank 0 does not answer"):
        rank.ask("count")
    with pytest.raises(RuntimeError, match="is lost"):
        rank.ask("count")
    assert served.rank().ask("count") == 0


def impostor(said: list[bytes]) -> tuple[str, int]:
    """Somebody who listens in the place of rank 0, and says this."""
    listener = listen("127.0.0.1", 0)

    def answer() -> None:
        connection, _ = listener.accept()
        for part in said:
            connection.sendall(part)
            if part == GREETED:
                connection.recv(1 << 16)
        connection.close()
        listener.close()

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()


GREETED = board.GREETING + bytes(board.NONCE_BYTES)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n" + bytes(40)], RefusedError),
        ([GREETED, os.urandom(32)], RefusedError),
        ([GREETED], RefusedError),
        ([GREETED, b"short"], RefusedError),
        ([b"scam"], OSError),
        ([], OSError),
    ],
    ids=["http", "wrong proof", "no proof", "half a proof", "half a greeting", "nothing"],
)
def test_who_listens_in_the_place_of_rank_0_is_found_out(said: list[bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        Remote(*impostor(said), SECRET, 5.0)


def test_one_who_listens_and_says_nothing_is_not_waited_for_longer_than_asked() -> None:
    with listen("127.0.0.1", 0) as silent, pytest.raises(TimeoutError):
        Remote(*silent.getsockname(), SECRET, 0.1)


def test_a_rank_0_that_stops_answering_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "ASK_S", 0.2)
    served, asked = Served(), threading.Event()
    rank = served.rank()
    monkeypatch.setattr(Keys, "ask", lambda *_: asked.wait(2))
    served.keys.ask = lambda *_: asked.wait(2)  # type: ignore[method-assign]
    rank_s = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 0 does not answer"):
        rank.ask("count")
    assert time.monotonic() - rank_s < 2
    asked.set()


@pytest.fixture(autouse=True)
def _warns_once(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert sum("does not know the secret" in record.message for record in caplog.records) <= 1
