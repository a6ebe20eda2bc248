from __future__ import annotations

import os
import signal

import pytest

from scamac_scale.ranks.signals import Signals


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_remembered_and_handlers_come_back(first: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == first.name
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_second_ctrl_c_interrupts_also_after_a_termination() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGTERM"
