"""Where a dask scheduler is: what may be said, and what is mistyped."""

from __future__ import annotations

import re

from scamac_scale.errors import ConfigError

SCHEMES = ("tcp", "tls", "ws", "wss", "ucx")
IN_PROCESS = "inproc"
"""Of a scheduler within this process: the rest is a name of dask."""
EXPECTED = "expected tcp://host:8786, as the scheduler tells it when it starts"
MAX_PORT = 65535
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})/?")


def checked_address(address: str) -> str:
    """Look at the address of a scheduler before anything waits for it.

    Parameters
    ----------
    address
        ``tcp://host:port``; of another scheme of `SCHEMES`; or ``host:port`` alone.

    Returns
    -------
    str
        The same, without spaces around it and without a slash at its end.

    Raises
    ------
    ConfigError
        If it is none.
    """
    text = address.strip()
    scheme, separator, place = text.rpartition("://")
    if separator and scheme == IN_PROCESS:
        return text
    if not text:
        raise ConfigError(f"--dask is empty; {EXPECTED}.")
    if separator and scheme not in SCHEMES:
        hint = "that is the dashboard, a page to look at; " if scheme in ("http", "https") else ""
        raise ConfigError(
            f"--dask {address}: {scheme}:// is no way to reach a scheduler; {hint}{EXPECTED} (known are {', '.join(SCHEMES)})."
        )
    found = _PLACE.fullmatch(place)
    if found is None or not 0 < int(found["port"]) <= MAX_PORT:
        raise ConfigError(f"--dask {address} is no host with a port number after a colon; {EXPECTED}.")
    return text.rstrip("/")


def is_encrypted(address: str) -> bool:
    """Whether keys are needed to reach it."""
    return address.startswith(("tls://", "wss://"))
