"""When a fit saves and when it stops: asked between gradient steps and now and then in a sweep, on all ranks alike."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import StoppedError
from scamac_scale.reduce import agree, from_first, gather_objects
from scamac_scale.sweep import InFlight, Tick, no_tick
from scamac_scale.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.config import TrainConfig
    from scamac_scale.signals import Signals

logger = logging.getLogger(__name__)

STEPS_PER_LOOK = 10
"""Steps between two looks on a GPU: ranks would have to wait for their devices to agree more often."""


class Watch:
    """Saves when it is time, and stops when a rank got a signal.

    Parameters
    ----------
    config
        How often to save.
    world
        This rank, and how many there are.
    signals
        Of this process; None where nothing stops it.
    write
        Writes a checkpoint with what is in flight (None where nothing is), on rank 0; None where there is nothing to write to.
    check
        Called on all ranks before anything is written; raises where that is not worth keeping.
    is_cuda
        Whether steps run ahead of this process.

    Attributes
    ----------
    in_flight
        Of a sweep that a checkpoint was saved in: its label, and what each rank had; until that sweep is taken up.
    n_saved, seconds
        Checkpoints written by this process, and the time they took.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World = ALONE,
        signals: Signals | None = None,
        write: Callable[[dict[str, Any] | None], None] | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        is_cuda: bool = False,
    ) -> None:
        self._config, self._world, self._signals, self._write = config, world, signals, write
        self._check = check
        self._steps_per_look = STEPS_PER_LOOK if is_cuda else 1
        self._n_steps = self._saved_at = 0
        self._saved_s = time.monotonic()
        self.in_flight: dict[str, Any] | None = None
        self.n_saved, self.seconds = 0, 0.0

    def step(self) -> None:
        """Look around after a gradient step."""
        self._n_steps += 1
        if self._n_steps % self._steps_per_look == 0:
            self._look(None, self._world.brisk())

    def stage(self) -> None:
        """Look around between two stages of the fit."""
        self._look(None, self._world.patient())

    @contextmanager
    def sweep(self, label: str) -> Iterator[tuple[InFlight | None, Tick]]:
        """Give what a sweep of this label had done, where a checkpoint holds that, and what it calls now and then."""
        found, self.in_flight = self.in_flight, None
        parts = found["parts"] if found is not None and found["label"] == label else None
        mine = parts[self._world.rank] if parts is not None and len(parts) == self._world.size else None

        def tick(in_flight: Callable[[], InFlight] | None = None) -> None:
            self._look(None if in_flight is None else (label, in_flight), self._world.brisk())

        yield mine, tick if self._write is not None else no_tick

    def _look(self, flight: tuple[str, Callable[[], InFlight]] | None, world: World) -> None:
        if self._write is None:
            return
        signal = self._signals.received if self._signals is not None else None
        is_stopped, is_due = agree([signal is not None, self._is_due()], world)
        if is_stopped or is_due:
            self.save(flight)
        if is_stopped:
            signal = next(name for name in gather_objects(signal, world) if name)
            raise StoppedError(f"stopped by {signal}; a checkpoint is saved, run again with --resume to go on.")

    def _is_due(self) -> bool:
        if self._world.rank != 0:
            return False
        config = self._config
        every = config.checkpoint_every_steps
        return time.monotonic() - self._saved_s >= config.checkpoint_every_s or (
            every is not None and self._n_steps - self._saved_at >= every
        )

    def save(self, flight: tuple[str, Callable[[], InFlight]] | None = None) -> None:
        """Write a checkpoint now; all ranks wait for it, and all fail if it cannot be written."""
        if self._write is None:
            return
        start_s, write = time.monotonic(), self._write
        self._check()
        found = None
        if flight is not None:
            found = {"label": flight[0], "parts": gather_objects(flight[1](), self._world)}
        from_first(lambda: write(found), self._world)
        self._saved_at, self._saved_s = self._n_steps, time.monotonic()
        self.n_saved, self.seconds = self.n_saved + 1, self.seconds + self._saved_s - start_s
