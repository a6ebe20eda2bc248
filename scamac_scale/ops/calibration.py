"""Probabilities from the scores of classes, learnt from cells that took no part in the scores.

Scores s (C) become logits T s, less their largest, and then l = z + z A + c, with A and c shrunk towards 0 by a ridge: between a temperature
alone and a map that knows which classes are taken for one another.

References
----------
Guo et al., ICML 2017 (temperature and matrix scaling); Kull et al., NeurIPS 2019 (matrix scaling with a ridge).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TEMPERATURES = torch.logspace(-3, 1, 161, dtype=torch.float64)
"""By which scores are multiplied: the grid on which the best is looked for."""
LEAST_LOGIT = -30.0
"""Logits below the largest are not looked at further down."""
STEPS = 60
"""Of L-BFGS."""


class ScoreMap(NamedTuple):
    """Makes probabilities of scores.

    Attributes
    ----------
    temperature
        T.
    mix
        (C, C) float64, A.
    shift
        (C,) float64, c.
    """

    temperature: float
    mix: Tensor
    shift: Tensor

    def logits(self, scores: Tensor) -> Tensor:
        """(n, C) float64 logits of (n, C) scores."""
        z = scores.double() * self.temperature
        z = (z - z.max(dim=1, keepdim=True).values).clamp_min(LEAST_LOGIT)
        return z + z @ self.mix.to(z.device) + self.shift.to(z.device)


def loss_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log p(class) over cells; (n, C) and (n,) true classes."""
    return -torch.log_softmax(logits, dim=1).gather(1, classes[:, None]).mean()


def best_temperature(scores: Tensor, classes: Tensor) -> tuple[float, float]:
    """Find the temperature of `TEMPERATURES` that makes `loss_of` least, and the loss; (n, C) float64 scores and (n,) true classes."""
    found = [(float(loss_of(scores * each, classes)), float(each)) for each in TEMPERATURES]
    loss, temperature = min(found)
    return temperature, loss


def plain_map(temperature: float, n_classes: int) -> ScoreMap:
    """Map by a temperature alone."""
    mix = torch.zeros(n_classes, n_classes, dtype=torch.float64)
    return ScoreMap(temperature, mix, torch.zeros(n_classes, dtype=torch.float64))


def fit_map(scores: Tensor, classes: Tensor, temperature: float, ridge: float) -> ScoreMap:
    """Learn a map.

    Parameters
    ----------
    scores, classes
        (n, C) float64 and (n,) true classes.
    temperature
        From `best_temperature`.
    ridge
        Weight of the squares of A and c beside the mean loss.

    Returns
    -------
    ScoreMap
        The least of a convex function, after at most `STEPS` steps.
    """
    n_classes = scores.shape[1]
    start = plain_map(temperature, n_classes)
    z = start.logits(scores)
    mix, shift = (part.clone().requires_grad_() for part in (start.mix, start.shift))
    optimizer = torch.optim.LBFGS([mix, shift], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(z + z @ mix + shift, classes) + ridge * (mix.square().sum() + shift.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ScoreMap(temperature, mix.detach(), shift.detach())


def best_map(scores: Tensor, classes: Tensor, parts: Tensor, temperature: float, ridges: tuple[float, ...]) -> ScoreMap:
    """Learn the map whose ridge does best on cells of parts that the map has not seen.

    Parameters
    ----------
    scores, classes, temperature
        As of `fit_map`.
    parts
        (n,) of the cells.
    ridges
        From the largest to the smallest; the first where parts cannot tell.
    """
    losses = torch.zeros(len(ridges), dtype=torch.float64)
    for part in sorted(set(parts.tolist())):
        is_of = parts == part
        is_seen = torch.isin(classes, classes[~is_of]) & is_of
        if not is_seen.any():
            continue
        for at, ridge in enumerate(ridges):
            found = fit_map(scores[~is_of], classes[~is_of], temperature, ridge)
            losses[at] += loss_of(found.logits(scores[is_seen]), classes[is_seen]) * is_seen.sum()
    return fit_map(scores, classes, temperature, ridges[int(losses.argmin())])


def unknown_below(probabilities: Tensor, share: float) -> float:
    """Find the largest probability below which at most a share of cells lie, by (n,) probabilities of their labels; 0 for none."""
    n_below = int(share * len(probabilities))
    return 0.0 if n_below == 0 else float(probabilities.sort().values[n_below])
