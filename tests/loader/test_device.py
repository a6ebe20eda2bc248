from __future__ import annotations

import numpy as np
import pytest
import torch

from scamac_scale.config import LoaderConfig
from scamac_scale.errors import ConfigError
from scamac_scale.loader.device import LAYOUTS, DeviceCells, densify_layout, on_device
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan
from tests.support.memory import MatrixSource, ResidentSource

CPU = torch.device("cpu")
PLAN = EpochPlan(500, 64, 0, window_cells=128, block_cells=2)
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_batches_arrive_whole_on_the_device(device: torch.device, layout: str) -> None:
    source = MatrixSource(is_scaled=True)
    seen = []
    with Feed(source, layout=layout, is_pinned=device.type == "cuda") as feed:
        for batch in on_device(feed.run(PLAN, 0, 2 * PLAN.n_batches), device):
            assert batch.values.device.type == device.type
            np.testing.assert_array_equal(batch.values.cpu().numpy(), source.dense(batch.rows))
            seen.append(batch.rows)
    np.testing.assert_array_equal(np.bincount(np.concatenate(seen)), 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_scaled", [False, True])
def test_cells_kept_on_the_device_have_the_bits_of_the_feed(device: torch.device, is_scaled: bool) -> None:
    source = ResidentSource(is_scaled=is_scaled)
    cells = DeviceCells(source.resident, 20, device)
    for step, batch in enumerate(cells.run(PLAN, 3, 12), 3):
        np.testing.assert_array_equal(batch.rows, PLAN.share(step).rows)
        np.testing.assert_array_equal(batch.values.cpu().numpy(), source.dense(batch.rows))


def test_layout_follows_the_setting() -> None:
    source = MatrixSource()
    settings = [LoaderConfig(densify=name) for name in ("host", "device", "auto")]
    found = [densify_layout(config, source, PLAN, CPU) for config in settings]
    assert found == ["dense", "csr", "dense"]  # on the CPU there is nothing to measure


@pytest.mark.gpu
def test_on_cuda_both_ways_are_timed_and_one_is_taken() -> None:
    source = MatrixSource()
    assert densify_layout(LoaderConfig(), source, PLAN, torch.device("cuda")) in LAYOUTS.values()
    assert len(source.loaded) > 0


@pytest.mark.gpu
def test_cells_that_a_gpu_has_no_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    with pytest.raises(ConfigError, match=r"loader.cache='device' needs [0-9,]+ bytes"):
        DeviceCells(ResidentSource().resident, 20, torch.device("cuda"))
