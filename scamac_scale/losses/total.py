"""How the terms of the objective are weighed and added. The terms themselves live in the other modules here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scamac_scale.errors import ConfigError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def gradient_norm(loss: Tensor, at: Tensor) -> float:
    """Euclidean norm of the gradient of one term at one tensor.

    Parameters
    ----------
    loss
        (), a term.
    at
        Any shape, an intermediate result or parameter that requires gradient.

    Returns
    -------
    float
        0.0 where the term does not depend on `at`.

    Notes
    -----
    One backward pass from `loss` down to `at`; the graph is kept and no ``.grad`` is touched. Waits for the device.
    """
    if not loss.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    return 0.0 if gradient is None else float(gradient.double().norm())


def balanced_weight(reference_norm: float, norm: float, ratio: float) -> float:
    """Weight that gives a term a gradient of `ratio` times the reference.

    Parameters
    ----------
    reference_norm
        Gradient norm of the reference term, non-negative.
    norm
        Gradient norm of the term to weigh, non-negative.
    ratio
        Wanted quotient of weighted norm and reference norm.

    Returns
    -------
    float
        ``ratio * reference_norm / norm``; 0.0 where `norm` is 0, since no weight moves a term without gradient.

    Raises
    ------
    NumericalError
        If a norm is not finite.
    """
    if not (math.isfinite(reference_norm) and math.isfinite(norm)):
        raise NumericalError(
            f"gradient norms are {reference_norm} and {norm}; both must be finite: lower the learning rate, or check "
            "the input for huge values."
        )
    weight = ratio * reference_norm / norm if norm > 0.0 else 0.0
    return weight if math.isfinite(weight) else 0.0


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the terms.

    Parameters
    ----------
    terms
        By name, at least one; scalars, or (P,) each, one value for each block.
    weights
        A factor for each name; others are ignored.

    Returns
    -------
    Tensor
        As each term, added in the order of `terms`.

    Raises
    ------
    ConfigError
        If there is no term, or one has no weight.
    """
    if not terms:
        raise ConfigError("the objective has no terms; name at least one, such as reconstruction.")
    missing = [name for name in terms if name not in weights]
    if missing:
        raise ConfigError(f"no weight for the terms {', '.join(missing)}; weights are given for {', '.join(weights)}.")
    return torch.stack([term * weights[name] for name, term in terms.items()]).sum(dim=0)
