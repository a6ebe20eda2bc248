"""Progress of long work: which stage of how many, and the time left of all; a bar on a terminal, a plain line every few seconds elsewhere.

The command line calls `show_progress` once. The functions of the Python API report within `reported`; where there is no
terminal, what takes less than some seconds says nothing. The rest of the library is silent. Only this module draws.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scamac_scale.host.outlet import drawing
from scamac_scale.host.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


LEAST_PACE = 0.2
"""Share of its expected time in which a stage may end; one that took less had nothing to do."""
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
    is_told: bool = False
    """Whether `show_progress` has said what is shown."""
    silent_until_s: float = -math.inf
    """No plain line before."""
    n_reporting: int = 0
    """Calls of `reported` under way, of all threads."""


_SETTINGS = _Settings()
_LOCK = threading.Lock()


def show_progress(is_shown: bool = True, *, every_s: float = 10.0) -> None:
    """Turn progress reports on or off for this process.

    Parameters
    ----------
    is_shown
        Whether anything is reported, on standard error.
    every_s
        Seconds between plain lines where standard error is no terminal.
    """
    _SETTINGS.is_shown, _SETTINGS.every_s, _SETTINGS.is_told = is_shown, every_s, True


@contextmanager
def reported() -> Iterator[None]:
    """Report what goes on within, where nobody has said otherwise; on no terminal from `every_s` seconds on."""
    if _SETTINGS.is_told:
        yield
        return
    with _LOCK:
        _SETTINGS.n_reporting += 1
        if _SETTINGS.n_reporting == 1:
            _SETTINGS.is_shown, _SETTINGS.silent_until_s = True, time.monotonic() + _SETTINGS.every_s
    try:
        yield
    finally:
        with _LOCK:
            _SETTINGS.n_reporting -= 1
            if _SETTINGS.n_reporting == 0 and not _SETTINGS.is_told:
                _SETTINGS.is_shown, _SETTINGS.silent_until_s = False, -math.inf


class Told(NamedTuple):
    """A stage of work that is told of.

    Attributes
    ----------
    words
        What is done, in plain words.
    expected_s
        Seconds that it is thought to take, on any machine, or not a number where nobody can say: only the ratios of the parts count once the first has ended.
    label
        How the label begins of the `track` that begins the stage; empty where `stages` is told.
    """

    words: str
    expected_s: float
    label: str = ""


@dataclass
class _Outline:
    """The stages of the work under way, and how far it is."""

    parts: Sequence[Told]
    at: int = -1
    """Stage under way; -1 before the first."""
    began_s: float = field(default_factory=lambda: time.monotonic())
    spent_s: float = 0.0
    """Of the stages that have ended, and that were not skipped."""
    spent_expected_s: float = 0.0

    def begin(self, at: int) -> None:
        """Go on to a stage, and say so if these are the outer ones; those between were skipped."""
        now = time.monotonic()
        if (
            0 <= self.at < at and now - self.began_s >= LEAST_PACE * self.parts[self.at].expected_s
        ):  # else it was there already
            self.spent_s += now - self.began_s
            self.spent_expected_s += self.parts[self.at].expected_s
        self.at, self.began_s = at, now
        is_due = _SETTINGS.is_shown and now >= _SETTINGS.silent_until_s
        if is_due and self is _OUTLINES[0] and not sys.stderr.isatty():
            left = _all_left(0.0)
            words = f"{self.parts[at].words}, {left}" if left else self.parts[at].words
            print(one_line(f"{_stage()}{words}"), file=sys.stderr, flush=True)

    def meet(self, label: str) -> None:
        """Begin the stage that this label begins, if one does and it is still to come."""
        for at, part in enumerate(self.parts[self.at + 1 :], self.at + 1):
            if part.label and label.startswith(part.label):
                self.begin(at)
                return

    def left_s(self, own_left_s: float) -> float:
        """Tell how long all will take, if what is under way takes `own_left_s` more at least."""
        pace = max(self.spent_s / self.spent_expected_s, LEAST_PACE) if self.spent_expected_s else 1.0
        current_s = own_left_s
        if self.at >= 0:
            elapsed_s = time.monotonic() - self.began_s
            current_s = max(
                self.parts[self.at].expected_s * pace - elapsed_s, own_left_s
            )  # not a number, if the first is none
        return current_s + pace * sum(part.expected_s for part in self.parts[self.at + 1 :])


_OUTLINES: list[_Outline] = []
"""Of the work under way, and of the parts of its stage under way: the outer one first."""


@contextmanager
def stages(parts: Sequence[Told]) -> Iterator[Callable[[int], None]]:
    """Tell the stages of some work, and the time left of all.

    Parameters
    ----------
    parts
        In order. Stages inside of a stage count for the time, and are not numbered.

    Yields
    ------
    Callable
        Call it with the index of a stage where that begins.
    """
    outline = _Outline(parts)
    _OUTLINES.append(outline)
    try:
        yield outline.begin
    finally:
        _OUTLINES.remove(outline)


def _stage() -> str:
    """Name the stage under way, for the front of a line; empty where there is none."""
    return f"stage {_OUTLINES[0].at + 1} of {len(_OUTLINES[0].parts)}: " if _OUTLINES and _OUTLINES[0].at >= 0 else ""


def _all_left(own_left_s: float) -> str:
    """Tell the time left of all stages; empty where nobody can say."""
    for outline in reversed(_OUTLINES):
        own_left_s = outline.left_s(own_left_s)
    return "" if math.isnan(own_left_s) else f"about {duration(own_left_s)} left in all"


def duration(seconds: float) -> str:
    """Write a time as a person says it: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Silent:
    def advance(self, n: int, note: str = "") -> None:
        pass


@dataclass
class _Lines:
    label: str
    total: int
    unit: str
    done: int = 0
    start_s: float = field(default_factory=lambda: time.monotonic())
    last_s: float = field(default_factory=lambda: time.monotonic())

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        is_last = self.done >= self.total and now - self.start_s >= min(_SETTINGS.every_s, SHORT_S)
        if now >= _SETTINGS.silent_until_s and (now - self.last_s >= _SETTINGS.every_s or is_last):
            self.last_s = now
            rate = self.done / max(now - self.start_s, 1e-9)
            left_s = (self.total - self.done) / max(rate, 1e-9)
            left = _all_left(left_s) if _OUTLINES else f"{left_s:.0f} s left"
            done = f"{self.done:,}/{self.total:,} {self.unit}"
            told = ", ".join(part for part in (done, f"{rate:,.0f}/s", left, note) if part)
            print(one_line(f"{_stage()}{self.label}: {told}"), file=sys.stderr, flush=True)


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
    for outline in _OUTLINES:
        outline.meet(label)
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
        shown = one_line(f"{_stage()}{label}")
        task = progress.add_task(shown, total=total, unit=one_line(unit), rate="", note="")

        class _Bar:
            def advance(self, n: int, note: str = "") -> None:
                state = progress.tasks[task]
                rate = f"{state.speed:,.0f}/s" if state.speed else ""
                told = ", ".join(
                    part for part in (_all_left(state.time_remaining or 0.0) if _OUTLINES else "", note) if part
                )
                progress.update(task, advance=n, note=one_line(told), rate=rate)

        yield _Bar()
