"""Random streams that are pure functions of (seed, purpose, keys): never of a rank, a clock or the order of calls."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


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


def torch_generator(seed: int, purpose: str, *keys: int, device: torch.device | None = None) -> torch.Generator:
    """Torch stream on a device (the CPU where None) for one purpose; see `numpy_generator`."""
    import torch

    state = int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device or torch.device("cpu")).manual_seed(state & (2**63 - 1))


def integer_seed(seed: int, purpose: str, *keys: int) -> int:
    """31-bit seed for libraries that take an integer; see `numpy_generator`."""
    return int(_sequence(seed, purpose, keys).generate_state(1, np.uint32)[0]) & (2**31 - 1)
