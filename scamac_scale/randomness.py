"""Random streams that are pure functions of (seed, purpose, keys): never of a rank, a clock or the order of calls."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

PlanStream = Literal["block_order", "lane_order", "draws"]
PLAN_STREAMS: dict[PlanStream, int] = {"block_order": 0, "lane_order": 1, "draws": 2}
"""Numbers of the streams that order the cells of an epoch; another number would give other batches for the same seed."""


def _sequence(seed: int, purpose: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *keys])


def numpy_generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """NumPy stream for one purpose.

    Parameters
    ----------
    seed
        Seed of the run.
    purpose
        What is drawn, such as ``landmarks``; different purposes give independent streams.
    *keys
        Counters such as step and block.

    Returns
    -------
    numpy.random.Generator
        The same stream in every process.
    """
    return np.random.default_rng(_sequence(seed, purpose, keys))


def plan_generator(seed: int, stream: PlanStream, *keys: int) -> np.random.Generator:
    """NumPy stream that orders the cells of an epoch.

    Parameters
    ----------
    seed
        Seed of the plan.
    stream
        What is ordered or drawn, a key of `PLAN_STREAMS`.
    *keys
        Counters: the epoch, or the window and the lane.

    Returns
    -------
    numpy.random.Generator
        The same stream in every process.

    Notes
    -----
    Plans number their streams where `numpy_generator` hashes a purpose, so the two do not meet. The numbers stay: an order
    that a checkpoint has begun must go on.
    """
    return np.random.default_rng([seed, PLAN_STREAMS[stream], *keys])


def torch_generator(seed: int, purpose: str, *keys: int, device: torch.device | None = None) -> torch.Generator:
    """Torch stream on a device (the CPU where None) for one purpose; see `numpy_generator`."""
    import torch

    state = int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device or torch.device("cpu")).manual_seed(state & (2**63 - 1))


def integer_seed(seed: int, purpose: str, *keys: int) -> int:
    """31-bit seed for libraries that take an integer; see `numpy_generator`."""
    return int(_sequence(seed, purpose, keys).generate_state(1, np.uint32)[0]) & (2**31 - 1)
