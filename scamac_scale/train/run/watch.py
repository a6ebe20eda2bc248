"""When a fit saves and when it stops: asked between gradient steps and now and then in a sweep, on all ranks alike."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from scamac_scale.durable.save_or_stop import SaveOrStop
from scamac_scale.errors import ScamacError, StoreError
from scamac_scale.ranks.collectives import from_first, gather_objects
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import InFlight, Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.config import TrainConfig
    from scamac_scale.ranks.signals import Signals

STEPS_PER_LOOK = 10
"""Steps between two looks on a GPU: ranks would have to wait for their devices to agree more often."""
Flight: TypeAlias = "tuple[str, Callable[[], InFlight]]"
"""A sweep that is under way: its label, and what this rank has of it."""


class Watch(SaveOrStop[Flight]):
    """Saves a checkpoint when it is time, and stops when a rank got a signal.

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
        def save(flight: Flight | None) -> None:
            check()
            found = flight and {"label": flight[0], "parts": gather_objects(flight[1](), world)}
            assert write is not None
            from_first(partial(write, found), world)

        super().__init__(
            world,
            signals,
            save if write is not None else None,
            "a checkpoint is saved",
            every_s=config.checkpoint_every_s,
            every_steps=config.checkpoint_every_steps,
        )
        self._steps_per_look = STEPS_PER_LOOK if is_cuda else 1
        self.in_flight: dict[str, Any] | None = None

    def step(self, world: World) -> None:
        """Look around after a gradient step; `world` says how long ranks wait for one another there."""
        self.n_steps += 1
        if self.n_steps % self._steps_per_look == 0:
            self.look(world)

    def stage(self) -> None:
        """Look around between two stages of the fit."""
        self.look(self._world.patient())

    @contextmanager
    def sweep(self, label: str) -> Iterator[tuple[InFlight | None, Tick]]:
        """Give what a sweep of this label had done, where a checkpoint holds that, and what it calls now and then."""
        found, self.in_flight = self.in_flight, None
        parts = found["parts"] if found is not None and found["label"] == label else None
        mine = parts[self._world.rank] if parts is not None and len(parts) == self._world.size else None

        def tick(in_flight: Callable[[], InFlight] | None = None) -> None:
            self.look(self._world.brisk(), None if in_flight is None else (label, in_flight))

        with _taken_up(label) if mine is not None else nullcontext():
            yield mine, tick if self._save is not None else no_tick


@contextmanager
def _taken_up(label: str) -> Iterator[None]:
    """Say that a sweep cannot go on with what a checkpoint had of it: its hash tells damage, not who wrote it."""
    try:
        yield
    except (ScamacError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StoreError(
            f"{label!r} cannot go on with what the newest checkpoint has of it ({reason}); remove that, and the one before is taken, or "
            "start a new run."
        ) from error
