"""Corruption of the input, X_0 = X + N, in the text under Eq. (1). The bounds of the noise are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def uniform_noise(out: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Fill a tensor with uniform noise N.

    Parameters
    ----------
    out
        Any shape, (b, G) in training; floating-point, on the device of `generator`. Written over.
    low, high
        Bounds; values lie in [low, high).
    generator
        The only source of randomness.

    Returns
    -------
    Tensor
        `out`.

    Notes
    -----
    One thread on a CPU, whatever the number of threads.

    References
    ----------
    scAMAC, N under Eq. (1).
    """
    return out.uniform_(low, high, generator=generator)


def corrupt(x: Tensor, noise: Tensor) -> Tensor:
    """Noisy input X_0 = X + N.

    Parameters
    ----------
    x
        (B, G), input of the network; left unchanged.
    noise
        (B, G), from `uniform_noise`. Its memory is used for the result where no gradient reaches `x`.

    Returns
    -------
    Tensor
        (B, G), dtype and device of `x`.

    References
    ----------
    scAMAC, X_0 under Eq. (1).
    """
    return x + noise if x.requires_grad else noise.add_(x)
