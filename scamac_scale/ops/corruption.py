"""Corruption of the input, X_0 = X + N, in the text under Eq. (1). The bounds of the noise are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def uniform_noise(
    shape: Sequence[int],
    low: float,
    high: float,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Uniform noise N.

    Parameters
    ----------
    shape
        Any; (B, G) in training.
    low, high
        Bounds; values lie in [low, high).
    generator
        The only source of randomness; the noise is drawn on its device, so that a CPU generator gives the same noise
        to every accelerator.
    dtype
        Of the result.
    device
        Of the result; that of `generator` where None.

    Returns
    -------
    Tensor
        Of `shape`, no gradient.

    References
    ----------
    scAMAC, N under Eq. (1).
    """
    noise = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    noise.mul_(high - low).add_(low)
    return noise if device is None else noise.to(device)


def corrupt(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Noisy input X_0 = X + N.

    Parameters
    ----------
    x
        (B, G), input of the network; left unchanged.
    low, high, generator
        See `uniform_noise`.

    Returns
    -------
    Tensor
        (B, G), dtype and device of `x`.

    References
    ----------
    scAMAC, X_0 under Eq. (1).
    """
    noise = uniform_noise(x.shape, low, high, generator, dtype=x.dtype, device=x.device)
    return noise.add_(x) if not x.requires_grad else x + noise
