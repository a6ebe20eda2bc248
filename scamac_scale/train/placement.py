"""On which device a fit computes, and in which precision. The only home of lightning.

Lightning's Fabric does both wherever there is something to do. On a CPU in float32 there is not, and nothing of it is imported: that
takes seconds, which a short fit would wait for.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from scamac_scale.config import TrainConfig


class Placement(Protocol):
    """What the fit asks of a device; Fabric gives it."""

    @property
    def device(self) -> torch.device:
        """Where network and batches are."""

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the precision of the fit."""


class PlainCPU:
    """The CPU, in float32."""

    device = torch.device("cpu")

    def autocast(self) -> AbstractContextManager[None]:
        """Leave everything as it is."""
        return nullcontext()


def launch(train: TrainConfig) -> Placement:
    """Choose one device for this process: CUDA where there is one, in bf16 where it has that.

    Notes
    -----
    Fabric places and casts; the ranks are ours (`ranks`): its launcher kills all processes as soon as one has ended, also those that
    are saving.
    """
    accelerator = train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = train.precision == "bf16-mixed"
    if train.precision == "auto":
        is_bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported()
    if accelerator == "cpu" and not is_bf16:
        return PlainCPU()

    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    fabric = Fabric(
        accelerator=accelerator,
        devices=[torch.cuda.current_device()] if accelerator == "cuda" else 1,
        precision="bf16-mixed" if is_bf16 else "32-true",
        plugins=[LightningEnvironment()],  # one process, whatever the environment says
    )
    fabric.launch()
    return fabric
