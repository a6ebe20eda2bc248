"""Several processes of one job call the functions of this room alike; here they meet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.config import ScamacConfig
    from scamac_scale.ranks.place import Place
    from scamac_scale.ranks.world import World


@contextmanager
def joined_as(config: ScamacConfig, place: Place) -> Iterator[World]:
    """Join the other processes of the job, if there are any."""
    import torch

    from scamac_scale.ranks.connections import joined

    train = config.train
    is_cuda = train.accelerator != "cpu" and torch.cuda.is_available()
    if is_cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())  # a task may see its own only
    with joined(place, is_cuda=is_cuda, timeout_s=train.timeout_s, setup_timeout_s=train.setup_timeout_s) as world:
        yield world
