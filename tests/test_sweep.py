"""Sums over cells that are stopped in the middle, and go on in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from scamac_scale import sweep
from scamac_scale.errors import StoppedError
from scamac_scale.sources import open_source
from scamac_scale.sweep import InFlight, sum_over_cells

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

    from scamac_scale.loader.feed import Batch


class Two(NamedTuple):
    """A sum of two."""

    first: torch.Tensor
    second: torch.Tensor | None

    def __add__(self, other: Two) -> Two:  # type: ignore[override]
        second = None if self.second is None or other.second is None else self.second + other.second
        return Two(self.first + other.first, second)


@pytest.mark.parametrize("has_second", [True, False])
@pytest.mark.parametrize("stop_at", [1, 2, 5, 9])
def test_a_sum_goes_on_where_it_was_stopped(
    tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, stop_at: int, has_second: bool
) -> None:
    monkeypatch.setattr(sweep, "SWEEP_CELLS", 16)  # 19 batches, 10 turns
    monkeypatch.setattr(sweep, "TICK_BATCHES", 2)
    seen: list[int] = []

    def part(batch: Batch) -> Two:
        seen.extend(batch.rows)
        return Two(batch.values.sum(dim=0), batch.values.double().square().sum() if has_second else None)

    kept: dict[str, Any] = {}
    n_ticks = 0

    def stop(in_flight: Callable[[], InFlight] | None = None) -> None:
        nonlocal n_ticks
        n_ticks += 1
        if n_ticks == stop_at and in_flight is not None:
            kept.update(in_flight())
            raise StoppedError("stopped")

    with open_source(tiny_adata) as source:
        whole = sum_over_cells(source, part, label="")
        seen.clear()
        with pytest.raises(StoppedError):
            sum_over_cells(source, part, label="", tick=stop)
        assert len(seen) == stop_at * 32
        resumed = sum_over_cells(source, part, label="", in_flight=kept)
        assert seen == list(range(source.n_cells))  # no cell twice
    for found, wanted in zip(resumed, whole, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
