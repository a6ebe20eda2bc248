"""Where a fit computes, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from scamac_scale.config import TrainConfig
from scamac_scale.train.placement import launch

if TYPE_CHECKING:
    from scamac_scale.config.choices import Precision


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_products_have_the_precision_asked_for(precision: Precision, dtype: torch.dtype) -> None:
    placement = launch(TrainConfig(accelerator="cpu", precision=precision))
    assert placement.device == torch.device("cpu")
    ones = torch.ones(2, 2, device=placement.device)
    with placement.autocast():
        assert (ones @ ones).dtype == dtype
    assert (ones @ ones).dtype == torch.float32
