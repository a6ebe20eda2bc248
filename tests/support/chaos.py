"""A proxy on loopback that treats HTTP requests as a bad network and a busy server do, by a plan that a seed gives.

It stands between a program and a server: real sockets on both sides, a thread for each connection, one request a connection. Every
header goes on as it came, the Host too, so that a signed request stays valid.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Action = Literal["reset", "stall", "cut", "lose", "slow_down", "half"]
"""What may happen to a request: the connection is reset before the server hears of it; it waits; the response ends in the middle;
the response is lost after the server has done what was asked; the server is busy (503); the request itself is cut off half way."""
Fate = Literal["pass"] | Action

MIXED: dict[Action, float] = {"reset": 0.04, "stall": 0.03, "cut": 0.04, "lose": 0.04, "slow_down": 0.04, "half": 0.02}
"""Shares of requests: a fifth of them goes wrong."""
STALL_S = 0.5
MOST_IN_A_ROW = 3
"""Faults of the same request that may follow one another: so every request comes through, in the end."""
_SLOW_DOWN = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_LIMIT = 2**16


class Request(NamedTuple):
    """What came, and what became of it."""

    method: str
    path: str
    fate: Fate
    headers: dict[str, str]


@dataclass
class Aim:
    """A fault for requests that are meant: the next `times` ones of a method whose path ends so."""

    action: Action
    method: str
    ending: str
    times: float
    header: str = ""

    def meets(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        is_meant = self.method == method and path.endswith(self.ending) and (not self.header or self.header in headers)
        return self.times > 0 and is_meant


@dataclass
class Chaos:
    """A proxy that runs.

    Attributes
    ----------
    port
        Where it listens, on 127.0.0.1.
    shares
        Share of the requests with each action.
    seen
        All requests so far.
    """

    port: int
    upstream: tuple[str, int]
    seed: int
    shares: Mapping[Action, float]
    stall_s: float = STALL_S
    seen: list[Request] = field(default_factory=list)
    _aims: list[Aim] = field(default_factory=list)
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def aim(self, action: Action, method: str, ending: str, *, times: float = 1, header: str = "") -> None:
        """Let the next requests of this kind go wrong, before any chance."""
        with self._lock:
            self._aims.append(Aim(action, method, ending, times, header))

    def calm(self) -> None:
        """No more faults."""
        with self._lock:
            self.shares = {}
            self._aims.clear()

    def n_faults(self, *actions: Action) -> int:
        """How many requests had one of these fates; of all faults where none is named."""
        wanted = actions or get_args(Action)
        return sum(request.fate in wanted for request in list(self.seen))

    def paths(self, method: str) -> list[str]:
        return [request.path for request in list(self.seen) if request.method == method]

    def fate_of(self, method: str, path: str, headers: dict[str, str]) -> Fate:
        with self._lock:
            fate = self._aimed(method, path, headers) or self._drawn(method, path)
            self.seen.append(Request(method, path, fate, headers))
        return fate

    def _aimed(self, method: str, path: str, headers: dict[str, str]) -> Fate | None:
        for aim in self._aims:
            if aim.meets(method, path, headers):
                aim.times -= 1
                return aim.action
        return None

    def _drawn(self, method: str, path: str) -> Fate:
        key, chance = f"{method} {path}", self._rng.random()
        if self._in_a_row.get(key, 0) < MOST_IN_A_ROW:
            for action, share in self.shares.items():
                chance -= share
                if chance < 0:
                    self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
                    return action
        self._in_a_row.pop(key, None)
        return "pass"

    # ------------------------------------------------------------------ one connection

    def serve(self, client: socket.socket) -> None:
        """Answer one request, or do not."""
        with suppress(OSError), client:
            client.settimeout(60)
            head, body = _read_message(client, is_response=False)
            if not head:
                return
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            fate = self.fate_of(method, unquote(target.partition("?")[0]), _headers(head))
            if fate in ("reset", "half"):
                if fate == "half":
                    with suppress(OSError), socket.create_connection(self.upstream, timeout=60) as server:
                        server.sendall(head + body[: len(body) // 2])
                _reset(client)
                return
            if fate == "slow_down":
                about = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                client.sendall(about + b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN) + _SLOW_DOWN)
                return
            if fate == "stall":
                time.sleep(self.stall_s)
            response = self._ask(head + body)
            if fate == "lose":
                _reset(client)
                return
            if fate == "cut":
                client.sendall(response[: max(len(response) // 2, response.find(b"\r\n\r\n") // 2)])
                _reset(client)
                return
            client.sendall(response)

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(self.upstream, timeout=60) as server:
            server.sendall(request)
            head, body = _read_message(server, is_response=True, is_head=request.startswith(b"HEAD "))
            return head + body


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _read_message(peer: socket.socket, *, is_response: bool, is_head: bool = False) -> tuple[bytes, bytes]:
    """Head, with its empty line, and body of a request or a response; empty where the peer has gone."""
    found = b""
    while b"\r\n\r\n" not in found:
        block = peer.recv(_LIMIT)
        if not block:
            return b"", b""
        found += block
    head, _, body = found.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    headers = _headers(head)
    if headers.get("expect") == "100-continue":
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    status = head.split(b" ", 2)[1] if is_response else b""
    if is_head or status in (b"204", b"304"):
        return head, b""
    blocks, n_bytes = [body], len(body)
    length = int(headers["content-length"]) if "content-length" in headers else None
    is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    while (n_bytes < length) if length is not None else (is_response or is_chunked):
        if is_chunked and not is_response and b"".join(blocks[-2:]).endswith(b"0\r\n\r\n"):
            break
        block = peer.recv(_LIMIT)
        if not block:
            break
        blocks.append(block)
        n_bytes += len(block)
    return head, b"".join(blocks)


def _reset(peer: socket.socket) -> None:
    """End a connection as a machine does that has gone: the other side hears of a reset, not of an end."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@contextmanager
def chaos(
    upstream: str, *, seed: int = 0, shares: Mapping[Action, float] | None = None, stall_s: float = STALL_S
) -> Iterator[Chaos]:
    """Run a proxy before a server.

    Parameters
    ----------
    upstream
        Such as ``http://127.0.0.1:5000``.
    seed
        Of the plan.
    shares
        Share of the requests with each action; None has `MIXED`, an empty dict lets all pass.
    stall_s
        Seconds that a request waits which stalls.
    """
    host, _, port = upstream.removeprefix("http://").rstrip("/").partition(":")
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    found = Chaos(
        listener.getsockname()[1], (host, int(port)), seed, MIXED if shares is None else dict(shares), stall_s
    )

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=found.serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)
