"""Where ranks find the board, by what secret, and on which addresses they listen.

On one machine all of them are on loopback. Between machines rank 0 listens on all addresses, and lets in who knows the secret of the
job. torchrun keeps a store of its own, in which anybody can write: it only says on which port rank 0 is to be met.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from scamac_scale.errors import ConfigError
from scamac_scale.ranks.board import RefusedError, Remote, digest, listen, serve
from scamac_scale.ranks.place import LOOPBACK
from scamac_scale.ranks.secret import SECRET, SECRET_FILE, Note, given_secret, new_secret, read_note, write_note
from scamac_scale.ranks.signals import check_launcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.ranks.place import Place

LISTENER = "SCAMAC_BOARD_FD"
"""Set for rank 0 by our own launcher: the number of the open socket on which it listens."""
CONNECT_S = 2.0
"""Seconds of one try to connect to the agent of torchrun."""
GREETING_S = 30.0
"""Seconds of one try to connect to rank 0. A launcher opens its port before it, and it has much to import."""
MEET_S = 0.02
"""Seconds between two looks at whether the others have come."""
REFUSED_S = 60.0
"""Seconds for which somebody who does not know the secret may listen in the place of rank 0: one of an earlier job, perhaps."""
_PORT_KEY = "scamac_scale/port"


class Board(NamedTuple):
    """What all ranks read and write, and nobody else.

    Attributes
    ----------
    store
        For torch.
    secret
        32 bytes that strangers cannot know.
    has_note
        Whether rank 0 has left a note with the secret, to be removed when all have come.
    """

    store: Any  # torch's stores are not typed
    secret: bytes
    has_note: bool


def open_board(place: Place, timeout_s: float) -> Board:
    """Find the board; as rank 0, keep it.

    Parameters
    ----------
    place
        From `place.find_place`.
    timeout_s
        How long to wait for rank 0.

    Returns
    -------
    Board
        Until this process ends.

    Raises
    ------
    ConfigError
        If ranks of several machines have no secret, one that cannot be used, or the port cannot be taken.
    RuntimeError
        If rank 0 does not come, or somebody else listens there.
    """
    from scamac_scale.ranks.store import BoardStore

    if place.port not in range(65536):
        raise ConfigError(f"MASTER_PORT={place.port} is no port; set it to one from 1 to 65535.")
    secret = given_secret()
    if secret is None and not place.is_one_machine:
        raise ConfigError(
            f"ranks of several machines need a secret of the job, by which rank 0 at {place.address} tells them from strangers: make one "
            f"with `openssl rand -hex 32`, and give it to all of them as {SECRET}, or in a file of mode 0600 that {SECRET_FILE} names."
        )
    if place.world.rank == 0:
        listener, held = _listener(place), secret or new_secret().encode()
        keys = serve(listener, digest(held))
        port: int = listener.getsockname()[1]
        if secret is None:
            write_note(place.port, Note(port, held))
        elif _has_agent():
            _agent(place, timeout_s).set(_PORT_KEY, str(port))
        return Board(BoardStore(keys.ask), digest(held), secret is None)
    note, remote = _connect(place, secret, timeout_s)
    return Board(BoardStore(remote.ask), digest(note.secret), False)


def _has_agent() -> bool:
    """Whether torchrun listens on ``MASTER_PORT``, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _listener(place: Place) -> socket.socket:
    """Give the socket on which rank 0 listens: that of the launcher, or a new one."""
    inherited = os.environ.pop(LISTENER, "")
    if inherited:
        with suppress(OSError, ValueError):
            found = socket.socket(fileno=int(inherited))
            found.set_inheritable(False)
            return found
        raise ConfigError(f"{LISTENER}={inherited!r} is no open socket; unset it: only --devices sets it.")
    port = 0 if _has_agent() else place.port
    try:
        return listen(LOOPBACK if place.is_one_machine else "", port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"rank 0 cannot listen on port {port}: {reason}; set MASTER_PORT to another one.") from error


def _connect(place: Place, secret: bytes | None, timeout_s: float) -> tuple[Note, Remote]:
    """Connect to rank 0 as another rank."""
    find = _finder(place, secret, timeout_s)
    address = LOOPBACK if place.is_one_machine else place.address
    last_s, refused_s, reason = time.monotonic() + timeout_s, 0.0, "it has left no note"
    while True:
        now = time.monotonic()
        if note := find():
            try:
                return note, Remote(address, note.port, digest(note.secret), min(GREETING_S, max(0.1, last_s - now)))
            except RefusedError as error:
                reason, refused_s = str(error), refused_s or now
            except OSError as error:
                reason, refused_s = str(error), 0.0
        if refused_s and time.monotonic() > refused_s + REFUSED_S:
            raise RuntimeError(f"{reason}; give all ranks the same {SECRET} or {SECRET_FILE}")
        if time.monotonic() > last_s:
            raise RuntimeError(f"nobody answered within {timeout_s:g} s ({reason})")
        check_launcher()
        time.sleep(10 * MEET_S if secret is not None else MEET_S)


def _finder(place: Place, secret: bytes | None, timeout_s: float) -> Callable[[], Note | None]:
    """Tell how to find out port and secret of rank 0, which may come anew."""
    if secret is None:
        return lambda: read_note(place.port)
    if not _has_agent():
        return lambda: Note(place.port, secret)
    agent = _agent(place, timeout_s)

    def find() -> Note | None:
        said = agent.get(_PORT_KEY) if agent.check([_PORT_KEY]) else b""
        return Note(int(said), secret) if said.isdigit() and 0 < int(said[:6]) < 65536 and len(said) < 6 else None

    return find


def _agent(place: Place, timeout_s: float) -> Any:
    """Connect to the store of torchrun.

    Whether somebody listens is found out here, for torch waits where no signal is heard, and writes stack traces. At first the name
    may not even be known.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not declared

    last_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((place.address, place.port), CONNECT_S).close()
            break
        except OSError as error:
            if time.monotonic() > last_s:
                raise RuntimeError(f"nobody answered within {timeout_s:g} s ({error})") from error
            check_launcher()
            time.sleep(10 * MEET_S)
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(place.address, place.port, is_master=False, timeout=timeout, wait_for_workers=False)


def use_loopback() -> None:
    """Let gloo and NCCL listen on loopback only, whatever the name of this machine stands for."""
    names = {name for _, name in socket.if_nameindex()}
    found = next((name for name in ("lo", "lo0") if name in names), None)
    if found is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = found
