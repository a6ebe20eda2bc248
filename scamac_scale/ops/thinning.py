"""Counts from log-normalised values and back, and their thinning: the corruption of a count likelihood.

The molecules of a cell are dealt out to an input and a target by a binomial split. Of counts that are Poisson the two parts are
independent, so the input tells nothing of the noise of the target, and zeros cannot be learnt by heart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def counts_of(values: Tensor, scale: Tensor) -> Tensor:
    """Undo `cells.normalisation`: the counts that log-normalised values were made of.

    Parameters
    ----------
    values
        (B, G) float32, ``log1p(count * scale)``.
    scale
        (B, 1), ``target_sum / total`` of each cell; above 0.

    Returns
    -------
    Tensor
        (B, G) whole numbers; exact up to some 100,000.
    """
    return torch.expm1(values).div_(scale).round_()


def values_of(counts: Tensor, scale: Tensor) -> Tensor:
    """Log-normalised values of counts, (B, G); see `counts_of`."""
    return (counts * scale).log1p_()


def thin(counts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw some of the molecules of each entry.

    Parameters
    ----------
    counts
        (b, G) whole numbers, on the device of `generator`; left unchanged.
    share
        Chance of each molecule to be drawn.
    generator
        The only source of randomness; each kind of device has its own stream.

    Returns
    -------
    Tensor
        (b, G), each entry binomial of its count and `share`.

    Notes
    -----
    One thread on a CPU, whatever the number of threads, and no draw for a zero.

    References
    ----------
    Batson, Royer and Webber 2019, molecular cross-validation.
    """
    if counts.device.type != "cpu":
        return torch.binomial(counts, torch.full_like(counts, share), generator=generator)
    drawn, is_any = torch.zeros_like(counts), counts > 0
    some = counts[is_any]
    drawn[is_any] = torch.binomial(some, torch.full_like(some, share), generator=generator)
    return drawn
