"""Progress of long work: a bar with rate and time left on a terminal, a plain line every few seconds elsewhere.

The library is silent by default; the command line calls `show_progress` once. Only this module draws.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from scamac_scale.host.outlet import drawing
from scamac_scale.host.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator


SHORT_S = 1.0
"""Work that took less, seconds, is not reported line by line."""


class Track(Protocol):
    """One piece of work under way."""

    def advance(self, n: int, note: str = "") -> None:
        """Report `n` more units done, with a short note beside them."""


@dataclass
class _Settings:
    is_shown: bool = False
    every_s: float = 10.0


_SETTINGS = _Settings()


def show_progress(is_shown: bool = True, *, every_s: float = 10.0) -> None:
    """Turn progress reports on or off for this process.

    Parameters
    ----------
    is_shown
        Whether anything is reported, on standard error.
    every_s
        Seconds between plain lines where standard error is no terminal.
    """
    _SETTINGS.is_shown = is_shown
    _SETTINGS.every_s = every_s


class _Silent:
    def advance(self, n: int, note: str = "") -> None:
        pass


@dataclass
class _Lines:
    label: str
    total: int
    unit: str
    done: int = 0
    start_s: float = field(default_factory=time.monotonic)
    last_s: float = field(default_factory=time.monotonic)

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        is_last = self.done >= self.total and now - self.start_s >= min(_SETTINGS.every_s, SHORT_S)
        if now - self.last_s >= _SETTINGS.every_s or is_last:
            self.last_s = now
            rate = self.done / max(now - self.start_s, 1e-9)
            left_s = (self.total - self.done) / max(rate, 1e-9)
            print(
                one_line(
                    f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.0f}/s, {left_s:.0f} s left"
                    + (f", {note}" if note else "")
                ),
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def track(label: str, total: int, unit: str) -> Iterator[Track]:
    """Report the progress of one piece of work.

    Parameters
    ----------
    label
        What is being done.
    total
        Units in all.
    unit
        Name of a unit, such as ``cells`` or ``steps``.

    Yields
    ------
    Track
        Call its ``advance``.
    """
    if not _SETTINGS.is_shown:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(label, total, unit)
    else:
        with _bar(label, total, unit) as bar:
            yield bar


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Track]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(file=drawing(sys.stderr))) as progress:
        task = progress.add_task(one_line(label), total=total, unit=one_line(unit), rate="", note="")

        class _Bar:
            def advance(self, n: int, note: str = "") -> None:
                speed = progress.tasks[task].speed
                progress.update(task, advance=n, note=one_line(note), rate=f"{speed:,.0f}/s" if speed else "")

        yield _Bar()
