"""The board as torch wants it: process groups exchange the addresses of their connections over it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch.distributed import Store  # type: ignore[attr-defined]  # documented, and not declared

from scamac_scale.ranks.signals import check_launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

LOOK_S = 0.02
"""Seconds between two looks for a key, at most."""


class BoardStore(Store):
    """Keys that all ranks read and write, and nobody else; to be wrapped into torch's PrefixStore.

    Parameters
    ----------
    ask
        `board.Keys.ask` or `board.Remote.ask`.

    Notes
    -----
    Whoever makes one keeps it as long as what torch makes of it: torch itself keeps only the half of it that does nothing.
    """

    timeout: timedelta  # torch's own, which it does not declare

    def __init__(self, ask: Callable[..., Any]) -> None:
        super().__init__()
        self._ask = ask

    def set(self, key: str, value: bytes | str) -> None:
        """Write a key."""
        self._ask("set", key, _text(value))

    def get(self, key: str) -> bytes:
        """Read a key; waits for it."""
        return self._read([key], self.timeout)[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Read several keys; waits for them."""
        return self._read(list(keys), self.timeout)

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Write several keys."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def has_extended_api(self) -> bool:
        """Whether several keys can be read at once."""
        return True

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait for keys."""
        self._read(list(keys), timeout or self.timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._ask("check", list(keys)))

    def add(self, key: str, number: int) -> int:
        """Add to a key that counts, and tell the sum."""
        return int(self._ask("add", key, number))

    def compare_set(self, key: str, expected: bytes | str, value: bytes | str) -> bytes:
        """Write a key if it is what is expected, and tell what it is then."""
        found: str = self._ask("replace", key, _text(expected), _text(value))
        return found.encode("latin-1")

    def delete_key(self, key: str) -> bool:
        """Remove a key; whether it was there."""
        return bool(self._ask("delete", key))

    def num_keys(self) -> int:
        """Count the keys."""
        return int(self._ask("count"))

    def _read(self, keys: list[str], timeout: timedelta) -> list[bytes]:
        last_s, pause_s = time.monotonic() + timeout.total_seconds(), LOOK_S / 16
        while (found := self._ask("get", keys)) is None:
            if time.monotonic() > last_s:
                raise RuntimeError(f"another rank did not say {keys[0]!r} within {timeout.total_seconds():g} s")
            check_launcher()
            time.sleep(pause_s)
            pause_s = min(LOOK_S, 2 * pause_s)
        return [value.encode("latin-1") for value in found]


def _text(value: bytes | str) -> str:
    return value.encode().decode("latin-1") if isinstance(value, str) else bytes(value).decode("latin-1")
