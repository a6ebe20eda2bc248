"""When long work saves and when it stops: asked now and then, on all ranks alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, TypeVar

from scamac_scale.errors import StoppedError
from scamac_scale.ranks.collectives import agree, gather_objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.ranks.signals import Signals
    from scamac_scale.ranks.world import World

Held = TypeVar("Held")
"""What is under way and saved with the rest."""


class SaveOrStop(Generic[Held]):
    """Saves when it is time, and stops when a rank got a signal.

    Parameters
    ----------
    world
        This rank, and how many there are.
    signals
        Of this process; None where nothing stops it.
    save
        Called on all ranks with what is under way (None where nothing is); None where nothing can be saved: then nothing stops, either.
    kept
        What a save keeps, for the message of the stop: "a checkpoint is saved".
    every_s, every_steps
        Seconds, and steps, from one save to the next; the clock of rank 0 counts.

    Attributes
    ----------
    n_steps
        Counted by whoever takes them.
    n_saved, seconds
        Saves of this process, and the time they took.
    """

    def __init__(
        self,
        world: World,
        signals: Signals | None,
        save: Callable[[Held | None], None] | None,
        kept: str,
        *,
        every_s: float,
        every_steps: int | None = None,
    ) -> None:
        self._world, self._signals, self._save, self._kept = world, signals, save, kept
        self._every_s, self._every_steps = every_s, every_steps
        self.n_steps = self._saved_at = 0
        self._saved_s = time.monotonic()
        self.n_saved, self.seconds = 0, 0.0

    def look(self, world: World, held: Held | None = None, *, only_stops: bool = False) -> None:
        """Save if it is time, and stop after a signal; all ranks ask equally often.

        Parameters
        ----------
        world
            The ranks, which say how long they wait for one another here.
        held
            What is under way.
        only_stops
            Whether nothing is saved unless this stops.

        Raises
        ------
        StoppedError
            On all ranks, when what is done has been saved.
        """
        if self._save is None:
            return
        signal = self._signals.received if self._signals is not None else None
        is_stopped, is_due = agree([signal is not None, not only_stops and self._is_due()], world)
        if is_stopped or is_due:
            self.save(held)
        if is_stopped:
            named = next(name for name in gather_objects(signal, world) if name)
            raise StoppedError(f"stopped by {named}; {self._kept}, run again with --resume to go on.")

    def _is_due(self) -> bool:
        if self._world.rank != 0:
            return False
        return time.monotonic() - self._saved_s >= self._every_s or (
            self._every_steps is not None and self.n_steps - self._saved_at >= self._every_steps
        )

    def save(self, held: Held | None = None) -> None:
        """Save now; all ranks wait for it, and all fail if it cannot be done."""
        if self._save is None:
            return
        start_s = time.monotonic()
        self._save(held)
        self._saved_at, self._saved_s = self.n_steps, time.monotonic()
        self.n_saved, self.seconds = self.n_saved + 1, self.seconds + self._saved_s - start_s
