"""The board: keys and values that rank 0 keeps and all ranks of a job read and write; strangers who reach its port get nothing.

Whoever connects must first show that he knows the secret of the job, and is shown it: both sides make a random number, and send
an HMAC of both numbers. So what was recorded cannot be said again. Each message behind that carries an HMAC with its number, is JSON,
and has a bounded size. Whoever says anything else, says nothing for some seconds, or is one of too many, is cut off. Nothing is
encrypted: what stands on the board is no secret. Nothing here needs torch.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

GREETING = b"scamac1\n"
NONCE_BYTES = PROOF_BYTES = 32
MAX_MESSAGE_BYTES = 1 << 20
"""Of one message. The addresses of all other ranks, which one asks for at once, are the longest."""
MAX_STRANGERS = 128
"""Connections that have not shown the secret yet. One more, and the oldest is cut off: an honest one needs some milliseconds."""
STRANGER_S = 10.0
"""Seconds in which a connection must have shown it."""
ASK_S = 60.0
"""Seconds in which rank 0 must answer a question: a machine that swaps, or a long call of a library, may keep it for some."""
BACKLOG = 1024
_LENGTH_BYTES = 4


class RefusedError(RuntimeError):
    """The other side does not know the secret of the job, or is no rank at all."""


class Keys:
    """Keys and values in memory; what is done to one is done at once."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def ask(self, verb: str, *words: Any) -> Any:  # Any: JSON
        """Do what a rank asks for; values are text of latin-1, one letter for each byte.

        Parameters
        ----------
        verb
            ``set`` key value; ``get`` keys, which gives None where one is missing; ``check`` keys; ``add`` key number;
            ``replace`` key expected value; ``delete`` key; ``count``.
        *words
            As above.

        Raises
        ------
        ValueError, TypeError
            If it cannot be done.
        """
        with self._lock:
            if verb == "set":
                self._put(*words)
                return True
            if verb == "get":
                (keys,) = words
                return [self._held[key].decode("latin-1") for key in keys] if self._has(keys) else None
            if verb == "check":
                return self._has(*words)
            if verb == "add":
                key, number = words
                total = int(self._held.get(key, b"0")) + int(number)
                self._put(key, str(total))
                return total
            if verb == "replace":
                return self._replace(*words)
            if verb == "delete":
                (key,) = words
                return self._held.pop(key, None) is not None
            if verb == "count":
                return len(self._held)
        raise ValueError(f"nobody knows how to {verb!r}")

    def _put(self, key: str, value: str) -> None:
        if not isinstance(key, str):
            raise TypeError("a key is a text")
        self._held[key] = value.encode("latin-1")

    def _has(self, keys: list[str]) -> bool:
        return all(key in self._held for key in keys)

    def _replace(self, key: str, expected: str, value: str) -> str:
        """Set a key if it is what is expected, or missing where nothing is; what it is then."""
        held = self._held.get(key)
        if (held is None and not expected) or held == expected.encode("latin-1"):
            self._put(key, value)
            return value
        return expected if held is None else held.decode("latin-1")


# ---------------------------------------------------------------------- what goes over the wire


def _proof(secret: bytes, label: bytes, *nonces: bytes) -> bytes:
    return hmac.digest(secret, b"\0".join([b"scamac", label]) + b"".join(nonces), "sha256")


class _Channel:
    """Seals what one side says, and opens what it hears."""

    def __init__(self, secret: bytes, nonces: tuple[bytes, bytes], *, is_rank_0: bool) -> None:
        ways = [_proof(secret, label, *nonces) for label in (b"to rank 0", b"from rank 0")]
        self._hears, self._says = ways if is_rank_0 else reversed(ways)
        self._n_heard = self._n_said = 0

    def seal(self, message: Any) -> bytes:
        """Make bytes of a message."""
        text = json.dumps(message).encode()
        if len(text) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(text)} bytes is longer than {MAX_MESSAGE_BYTES}")
        seal = hmac.digest(self._says, self._n_said.to_bytes(8, "big") + text, "sha256")
        self._n_said += 1
        return len(text).to_bytes(_LENGTH_BYTES, "big") + seal + text

    def open(self, heard: bytearray) -> tuple[Any, ...]:
        """Take one message off what was heard; nothing where it is not complete.

        Raises
        ------
        ValueError
            If it is none, or not from the other side.
        """
        start = _LENGTH_BYTES + PROOF_BYTES
        if len(heard) < start:
            return ()
        n_bytes = int.from_bytes(heard[:_LENGTH_BYTES], "big")
        if n_bytes > MAX_MESSAGE_BYTES:
            raise ValueError("it is too long")
        if len(heard) < start + n_bytes:
            return ()
        text = bytes(heard[start : start + n_bytes])
        seal = hmac.digest(self._hears, self._n_heard.to_bytes(8, "big") + text, "sha256")
        if not hmac.compare_digest(seal, bytes(heard[_LENGTH_BYTES:start])):
            raise ValueError("its seal is broken")
        del heard[: start + n_bytes]
        self._n_heard += 1
        return (json.loads(text),)


# ---------------------------------------------------------------------- rank 0


class _Peer:
    """One connection, from the side of rank 0."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.until_s = time.monotonic() + STRANGER_S
        self.channel: _Channel | None = None  # once it has shown the secret
        self._nonce = os.urandom(NONCE_BYTES)
        self._heard = bytearray()
        self.unsent = bytearray(GREETING + self._nonce)

    def hear(self, secret: bytes, ask: Callable[..., Any]) -> None:
        """Read what has come, and answer it; raises where nothing more is to be said."""
        part = self.connection.recv(1 << 16)
        if not part:
            raise ConnectionError("it has gone")
        self._heard += part
        if self.channel is None:
            self._meet(secret)
        while self.channel is not None and (message := self.channel.open(self._heard)):
            self.unsent += self.channel.seal(ask(*message[0]))
        if len(self.unsent) > 2 * MAX_MESSAGE_BYTES:
            raise ValueError("it does not listen")
        self.send()

    def _meet(self, secret: bytes) -> None:
        n_bytes = NONCE_BYTES + PROOF_BYTES
        if len(self._heard) < n_bytes:
            return
        nonce, proof = bytes(self._heard[:NONCE_BYTES]), bytes(self._heard[NONCE_BYTES:n_bytes])
        if not hmac.compare_digest(proof, _proof(secret, b"rank", self._nonce, nonce)):
            raise RefusedError("it does not know the secret of the job")
        del self._heard[:n_bytes]
        self.channel = _Channel(secret, (self._nonce, nonce), is_rank_0=True)
        self.unsent += _proof(secret, b"rank 0", self._nonce, nonce)

    def send(self) -> None:
        """Send what the connection takes now."""
        with suppress(BlockingIOError):
            while self.unsent:
                del self.unsent[: self.connection.send(self.unsent)]


class _Server:
    """Answers all connections, in one thread."""

    def __init__(self, listener: socket.socket, secret: bytes, keys: Keys) -> None:
        self._listener, self._secret, self._keys = listener, secret, keys
        self._peers: dict[_Peer, None] = {}  # in the order in which they came
        self._has_warned = False
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Never ends."""
        while True:
            for event, mask in self._selector.select(1.0):
                peer = event.data
                if peer is None:
                    self._accept()
                elif peer in self._peers:  # not cut off by what came before it
                    self._serve(peer, mask)
            now = time.monotonic()
            for peer in self._strangers():
                if now > peer.until_s:
                    self._cut_off(peer)

    def _strangers(self) -> list[_Peer]:
        return [peer for peer in self._peers if peer.channel is None]

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # too many open files, most likely
            for peer in self._strangers()[:1]:
                self._cut_off(peer)
            time.sleep(0.01)
            return
        for peer in self._strangers()[: -MAX_STRANGERS + 1]:
            self._cut_off(peer)
        try:
            connection.setblocking(False)
            _keep_alive(connection)
        except OSError:  # it has been reset already: some systems say so here
            connection.close()
            return
        peer = _Peer(connection)
        self._peers[peer] = None
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._serve(peer, selectors.EVENT_WRITE)

    def _serve(self, peer: _Peer, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                peer.hear(self._secret, self._keys.ask)
            else:
                peer.send()
            waits_for = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
            self._selector.modify(peer.connection, waits_for, peer)
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001 - whatever one connection says, the others are served
            if isinstance(error, RefusedError) and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "somebody who does not know the secret of the job has knocked at the port of rank 0, and was sent away; if a "
                    "rank is missing, see whether all have the same secret"
                )
            self._cut_off(peer)

    def _cut_off(self, peer: _Peer) -> None:
        self._peers.pop(peer, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(peer.connection)
        peer.connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes any that is free. An empty host is all addresses of this machine."""
    is_dual = not host and socket.has_dualstack_ipv6()
    if is_dual:
        with suppress(OSError):  # IPv6 may be turned off
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server((host, port), backlog=BACKLOG)


def serve(listener: socket.socket, secret: bytes) -> Keys:
    """Keep the board, in a thread, until this process ends.

    Parameters
    ----------
    listener
        From `listen`; here and in the thread only.
    secret
        Of the job.

    Returns
    -------
    Keys
        The board, for rank 0 itself.
    """
    keys = Keys()
    server = _Server(listener, secret, keys)
    threading.Thread(target=server.run, name="board of the ranks", daemon=True).start()
    return keys


def _keep_alive(connection: socket.socket) -> None:
    """Keep what lies between two machines from forgetting a connection on which nothing is said for hours."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


# ---------------------------------------------------------------------- the other ranks


class Remote:
    """The board of rank 0, from another rank.

    Parameters
    ----------
    address, port
        Where rank 0 listens.
    secret
        Of the job.
    timeout_s
        How long to wait for the connection, and then for the greeting.

    Raises
    ------
    OSError
        If nobody is there, or nobody says anything.
    RefusedError
        If somebody is who does not know the secret, or does not believe that this rank knows it.
    """

    _connection: socket.socket | None = None

    def __init__(self, address: str, port: int, secret: bytes, timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._heard = bytearray()
        self._connection = socket.create_connection((address, port), timeout_s)
        try:
            _keep_alive(self._connection)
            self._meet(secret)
        except BaseException:
            self.close()
            raise

    def _meet(self, secret: bytes) -> None:
        assert self._connection is not None
        greeting = self._take(len(GREETING) + NONCE_BYTES)
        if not greeting.startswith(GREETING):
            raise RefusedError("who listens there is no rank of this program")
        theirs, mine = greeting[len(GREETING) :], os.urandom(NONCE_BYTES)
        self._connection.settimeout(STRANGER_S)
        self._connection.sendall(mine + _proof(secret, b"rank", theirs, mine))
        try:
            proof = self._take(PROOF_BYTES)
        except (ConnectionError, TimeoutError) as error:
            raise RefusedError("who listens there does not know the secret of this rank") from error
        if not hmac.compare_digest(proof, _proof(secret, b"rank 0", theirs, mine)):
            raise RefusedError("who listens there does not know the secret of the job")
        self._channel = _Channel(secret, (theirs, mine), is_rank_0=False)
        self._connection.settimeout(ASK_S)

    def _take(self, n_bytes: int) -> bytes:
        while len(self._heard) < n_bytes:
            self._hear()
        found = bytes(self._heard[:n_bytes])
        del self._heard[:n_bytes]
        return found

    def _hear(self) -> None:
        assert self._connection is not None
        part = self._connection.recv(1 << 16)
        if not part:
            raise ConnectionError("the connection was closed")
        self._heard += part

    def ask(self, verb: str, *words: Any) -> Any:
        """Ask rank 0; as `Keys.ask`.

        Raises
        ------
        RuntimeError
            If it does not answer within `ASK_S`; nothing can be asked from then on.
        """
        with self._lock:
            if self._connection is None:
                raise RuntimeError("the connection to rank 0 is lost")
            last_s = time.monotonic() + ASK_S
            try:
                self._connection.sendall(self._channel.seal([verb, *words]))
                while not (answer := self._channel.open(self._heard)):
                    if time.monotonic() > last_s:
                        raise TimeoutError("timed out")
                    self._hear()
            except (OSError, ValueError) as error:
                self.close()
                raise RuntimeError(f"rank 0 does not answer ({error})") from error
            return answer[0]

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        self.close()


def digest(secret: bytes) -> bytes:
    """Make a key of 32 bytes of a secret of any length."""
    return sha256(b"scamac_scale ranks\0" + secret).digest()
