"""A loss that is no number is told with its cells, whatever else goes wrong."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.health import BadStep, nonfinite_error
from tests.support.failing import failing

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.errors import NumericalError
    from scamac_scale.loader.plan import EpochPlan


class _Plan:
    """Eight cells in two blocks of a single batch."""

    def block_sizes(self, step: int, n_blocks: int) -> list[int]:
        return [4, 4]

    def share(self, step: int) -> Any:
        return self

    rows = np.arange(8)


def error_in(folder: Path | None) -> NumericalError:
    def plan_of(world: World) -> EpochPlan:
        return cast("EpochPlan", _Plan())

    return nonfinite_error(BadStep(3, [1]), ALONE, plan_of, 2, np.arange(8)[::-1].copy(), folder)


def test_the_cells_are_written_down(tmp_path: Path) -> None:
    error = error_in(tmp_path)
    path = tmp_path / "nonfinite-step-3.json"
    assert f"at step 3, on rank 0, cells 3, 2, 1, 0 and others (rows of the input; all are in {path})" in str(error)
    assert json.loads(path.read_text())["cells"] == [3, 2, 1, 0]


def test_a_full_disk_does_not_hide_the_loss(tmp_path: Path) -> None:
    for nth in (1, 2):  # opening, writing
        with failing(tmp_path, nth, errno.ENOSPC) as state:
            error = error_in(tmp_path)
        assert state.failed
        assert error.exit_code == 5
        assert "cells 3, 2, 1, 0 and others (rows of the input; all could not be saved: No space left" in str(error)
        assert list(tmp_path.iterdir()) == []
