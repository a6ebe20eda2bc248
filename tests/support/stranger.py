"""A stranger on this machine: finds the ports on which processes listen, and says to them whatever might do harm."""

from __future__ import annotations

import os
import pickle
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scamac_scale.ranks.board import Remote, digest, listen, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

LISTENS = "0A"
"""State of a socket in /proc/net/tcp."""


class Bomb:
    """What makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._file}",)


def descendants(pid: int) -> set[int]:
    """Processes that a process has started, and those that they have."""
    found: set[int] = set()
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def listeners(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports on which processes listen."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(handle))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
                found.add((str(ip_address(b"".join(struct.pack("<I", word) for word in words))), int(port, 16)))
    return found


def recorded_session(secret: bytes) -> bytes:
    """What an honest rank says to rank 0, from its first byte on, as somebody between them hears it."""
    listener, between, said = listen("127.0.0.1", 0), listen("127.0.0.1", 0), bytearray()
    serve(listener, digest(secret))

    def relay(source: socket.socket, target: socket.socket, record: bytearray) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                record += part
                target.sendall(part)

    def pass_on() -> None:
        near, _ = between.accept()
        far = socket.create_connection(listener.getsockname())
        threading.Thread(target=relay, args=(far, near, bytearray()), daemon=True).start()
        with near, far:
            relay(near, far, said)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    rank = Remote("127.0.0.1", between.getsockname()[1], digest(secret), 5.0)
    rank.ask("set", "left/1", '{"code": 3, "message": "replayed"}')
    rank.close()
    thread.join()
    between.close()
    return bytes(said)


def words(bomb: Path, replay: bytes) -> Iterator[bytes]:
    """What the stranger says, one for each connection; without end."""
    rng = random.Random(0)
    pickled = pickle.dumps(Bomb(bomb))
    store = struct.pack("<BI", 0, 0x3C85F7CE)  # torch's store: its first query, then a key that ends rank 1
    key, value = b"left/1", b'{"code": 3, "message": "said a stranger"}'
    store += struct.pack("<BQ", 1, len(key)) + key + struct.pack("<Q", len(value)) + value
    while True:
        yield from (
            rng.randbytes(rng.randrange(1, 5000)),
            b"",
            replay,
            replay[:64],
            b"GET / HTTP/1.1\r\nHost: rank0\r\n\r\n",
            bytes.fromhex("16030100c8010000c40303") + rng.randbytes(200),
            b"\xff" * 4 + rng.randbytes(64),
            struct.pack("<Q", 1 << 62) + b"x",
            pickled,
            struct.pack("<Q", len(pickled)) + pickled,
            store,
            b"scamac1\n" + bytes(96),
            bytes(1 << 16),
        )
        yield from (struct.pack("<q", number) for number in range(4))  # for whom gloo takes a rank


class Stranger:
    """A context in which all ports of the processes that one has started are attacked, in a thread.

    Parameters
    ----------
    parent
        Of the processes.
    bomb
        File that appears where one of them unpickles what the stranger said.
    replay
        From `recorded_session`.
    most
        Connections that are held open at a time; all that have come before are dropped.

    Attributes
    ----------
    seen
        Addresses and ports on which these processes have listened.
    n_connections
        That were made.
    """

    def __init__(self, parent: int, bomb: Path, replay: bytes, most: int = 300) -> None:
        self._parent, self._words, self._most = parent, words(bomb, replay), most
        self.seen: set[tuple[str, int]] = set()
        self.n_connections = 0
        self._held: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._attack, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._drop(0)

    def _attack(self) -> None:
        while not self._is_over.is_set():
            found = listeners(descendants(self._parent))
            new, self.seen = found - self.seen, self.seen | found
            for place in new:
                for _ in range(self._most // 3):
                    self._say(place)
            for place in found:
                self._say(place)
            self._drop(self._most)
            time.sleep(0.001)

    def _say(self, place: tuple[str, int]) -> None:
        with suppress(OSError):
            connection = socket.create_connection(place, 0.2)
            self.n_connections += 1
            self._held.append(connection)
            connection.setblocking(False)
            connection.sendall(next(self._words))

    def _drop(self, most: int) -> None:
        while len(self._held) > most:
            self._held.pop(0).close()
