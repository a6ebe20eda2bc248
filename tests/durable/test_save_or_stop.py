from __future__ import annotations

import os
import signal

import pytest

from scamac_scale.durable.save_or_stop import SaveOrStop
from scamac_scale.errors import StoppedError
from scamac_scale.ranks.signals import Signals
from scamac_scale.ranks.world import ALONE

NEVER_S = 1e9


def test_it_saves_when_so_many_steps_are_taken() -> None:
    saved: list[str | None] = []
    watch: SaveOrStop[str] = SaveOrStop(ALONE, None, saved.append, "it is kept", every_s=NEVER_S, every_steps=2)
    for step in range(5):
        watch.n_steps += 1
        watch.look(ALONE, f"step {step}")
    assert saved == ["step 1", "step 3"]
    assert watch.n_saved == 2


def test_it_saves_when_so_much_time_has_passed_but_not_where_it_only_stops() -> None:
    saved: list[str | None] = []
    watch: SaveOrStop[str] = SaveOrStop(ALONE, None, saved.append, "it is kept", every_s=0.0)
    watch.look(ALONE, only_stops=True)
    assert saved == []
    watch.look(ALONE)
    assert saved == [None]


@pytest.mark.parametrize("only_stops", [False, True])
def test_after_a_signal_it_saves_and_stops_and_names_the_signal(only_stops: bool) -> None:
    saved: list[str | None] = []
    with Signals() as signals:
        watch: SaveOrStop[str] = SaveOrStop(ALONE, signals, saved.append, "it is kept", every_s=NEVER_S)
        watch.look(ALONE, "before", only_stops=only_stops)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match=r"^stopped by SIGTERM; it is kept, run again with --resume to go on\.$"):
            watch.look(ALONE, "after", only_stops=only_stops)
    assert saved == ["after"]


def test_what_cannot_be_saved_is_not_stopped() -> None:
    with Signals() as signals:
        watch: SaveOrStop[str] = SaveOrStop(ALONE, signals, None, "", every_s=0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        watch.look(ALONE)
        watch.save()
    assert watch.n_saved == 0
