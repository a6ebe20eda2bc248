"""Which signals ask to stop: in a fit or a prediction they set a flag, and the next look at it saves and ends."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

CAUGHT = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what Slurm sends before its time limit, where it is told to."""
LAUNCHED = "SCAMAC_LAUNCHED"
"""Set in processes that our own launcher has started: the number of the launcher."""


class Signals:
    """A context in which signals are remembered; outside the main thread, which gets none, it does nothing.

    Attributes
    ----------
    received
        Name of the first signal, or why else to stop; None to go on.

    Notes
    -----
    A second Ctrl-C interrupts at once. Nothing is sent to other ranks from inside a handler: a collective there would hang.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._is_interrupted = False
        self._before: dict[int, Any] = {}  # Any: handlers, as the system has them
        self._launcher = _launcher()  # it may have ended before this
        if self._launcher is None and "TORCHELASTIC_RUN_ID" in os.environ:
            self._launcher = os.getppid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._is_interrupted:
                raise KeyboardInterrupt
            self._is_interrupted = True
        self._received = self._received or signal.Signals(number).name

    @property
    def received(self) -> str | None:
        """The signal, or the end of the launcher that started this process, which nobody would tell otherwise."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = "the end of its launcher"
        return self._received


def _launcher() -> int | None:
    """Tell the number of our own launcher's process, where that started this one."""
    found = os.environ.get(LAUNCHED)
    return int(found) if found else None


def launcher_has_ended() -> bool:
    """Tell whether our own launcher started this process, and is no more."""
    launcher = _launcher()
    return launcher is not None and os.getppid() != launcher


def check_launcher() -> None:
    """Raise a RuntimeError where the launcher that started this process is no more: nobody else would end it then."""
    if launcher_has_ended():
        raise RuntimeError("the launcher that started this rank has ended")
