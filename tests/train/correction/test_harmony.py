"""When the passes stop, and that they go on elsewhere as if nothing had been."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scamac_scale.config import CorrectionConfig
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.ops.harmony import Design
from scamac_scale.train.correction.harmony import Harmony, has_settled
from scamac_scale.train.correction.points import Points

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.sweep import InFlight


@pytest.mark.parametrize(
    ("objectives", "is_settled"),
    [
        ([], False),
        ([100.0], False),
        ([100.0, 100.0], False),
        ([100.0, 100.0, 100.0], True),
        ([100.0, 99.95, 99.9], True),
        ([100.0, 99.95, 90.0], False),  # the last round gained
        ([100.0, 90.0, 89.95], False),  # the one before it did
        ([100.0, 90.0, 89.95, 89.9], True),
        ([100.0, 101.0, 102.0], True),  # a rise is no gain
        ([-100.0, -100.05, -100.1], True),
        ([-100.0, -101.0, -102.0], False),  # a share of the size, whatever the sign
    ],
)
def test_two_rounds_that_gain_next_to_nothing_are_the_end(objectives: list[float], is_settled: bool) -> None:
    assert has_settled(objectives, 1e-3) is is_settled


def test_a_tolerance_of_zero_stops_only_where_nothing_falls() -> None:
    assert not has_settled([100.0, 100.0 - 1e-9, 100.0 - 2e-9], 0.0)
    assert not has_settled([100.0, 100.0, 100.0], 0.0)
    assert has_settled([100.0, 100.1, 100.2], 0.0)


N_CELLS, WIDTH = 500, 4
CONFIG = CorrectionConfig(rounds=3, passes=2, tolerance=0.0)


def passes(tick: Callable[[Callable[[], InFlight] | None], None], in_flight: InFlight | None = None) -> Any:
    """Corrections of cells of three donors and two chips, from their start or from what `tick` got."""
    draw = np.random.default_rng(0)
    levels = np.stack([draw.integers(0, 3, N_CELLS), 3 + draw.integers(0, 2, N_CELLS)], axis=1)
    z = draw.normal(size=(N_CELLS, WIDTH)) + 3.0 * draw.integers(0, 2, (N_CELLS, 1)) + levels[:, :1]
    points = Points(SweepPlan(N_CELLS, 64), levels, WIDTH, 1)
    points.write(np.arange(N_CELLS), z.astype(np.float32))
    design = Design((3, 2), torch.from_numpy(np.bincount(levels.ravel())).double())
    start = torch.randn(6, WIDTH, generator=torch.manual_seed(0))
    return Harmony(points, design, CONFIG, tick=tick).run(start, in_flight), points.corrected(0, N_CELLS).clone()


@pytest.mark.slow
def test_passes_go_on_from_any_of_them_with_the_same_bits() -> None:
    saved = []

    def save(in_flight: Callable[[], InFlight] | None = None) -> None:
        assert in_flight is not None
        buffer = io.BytesIO()
        torch.save(in_flight(), buffer)
        saved.append(buffer.getvalue())

    (layers, kept), points = passes(save)
    assert len(saved) == 3 * (2 + 1)
    for content in (saved[at] for at in (2, 4)):  # after the passes of a round, and within one
        (others, other), again = passes(lambda in_flight=None: None, torch.load(io.BytesIO(content), weights_only=True))
        assert len(others) == len(layers) == 3
        for layer, its in zip([*layers, kept], [*others, other], strict=True):
            for part, same in zip(layer, its, strict=True):
                assert torch.equal(part, same)
        assert torch.equal(again, points)
