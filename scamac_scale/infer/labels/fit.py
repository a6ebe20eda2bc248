"""The rule that carries labels over, found by one pass over a reference and two over a bounded sample of it.

The pass over all labelled cells adds up each class in each of the parts that are held out, so that the means without a part are a difference of
sums. The sample gives the covariance within classes, and shows by cells that took no part how far the scores can be believed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scamac_scale.infer.labels.column import NONE
from scamac_scale.infer.labels.rule import LabelRule
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.ordered import RowsPlan
from scamac_scale.nn.embed import EMBED_CELLS
from scamac_scale.ops.calibration import ScoreMap, best_map, best_temperature, plain_map, unknown_below
from scamac_scale.ops.discriminant import Discriminant, discriminant, shrunk, within_covariance
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator
from scamac_scale.ranks.collectives import from_first
from scamac_scale.remote.stamps import check_unchanged
from scamac_scale.sweep import Tick, no_tick, sum_over_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.infer.labels.column import LabelColumn
    from scamac_scale.infer.labels.rule import Labelling
    from scamac_scale.loader.feed import Batch
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)

SAMPLE_CELLS = 40_000
"""Cells of the sample, at most."""
SAMPLE_SCORES = 4_000_000
"""Scores of the sample that are kept for each shrinkage, at most, if that leaves `LEAST_CELLS`."""
LEAST_CELLS = 5_000
MAX_GENES = 2048
"""Genes that are looked at, at most: of more, those that tell the labels apart best; the covariance of all would not fit memory."""
SHRINKAGES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of which the best by held-out cells is taken."""
RIDGES = (0.1, 0.01, 0.001)
"""Of the map from scores to probabilities: of which the best by held-out cells is taken."""
MAP_CLASSES, MAP_CELLS = 64, 10_000
"""Most classes for such a map, and most cells that it is learnt from."""


class ClassSums(NamedTuple):
    """Sums over labelled cells; F parts, C classes, G genes.

    Attributes
    ----------
    counts
        (F, C) cells.
    totals
        (F, C, G) sum of x.
    squares
        (G,) sum of x^2.
    """

    counts: Tensor
    totals: Tensor
    squares: Tensor

    def __add__(self, other: ClassSums) -> ClassSums:  # type: ignore[override]  # sums, not concatenated tuples
        return ClassSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def of(self, genes: Tensor) -> ClassSums:
        """Those of some genes."""
        return ClassSums(self.counts, self.totals[..., genes], self.squares[genes])

    def without(self, fold: int | None) -> tuple[Tensor, Tensor]:
        """(C,) counts and (C, G) totals of all parts but one."""
        kept = [part for part in range(len(self.counts)) if part != fold]
        return self.counts[kept].sum(dim=0), self.totals[kept].sum(dim=0)


@torch.no_grad()
def fit_labels(
    model: FittedModel, source: OpenSource, column: LabelColumn, unknown: float, world: World, tick: Tick = no_tick
) -> LabelRule:
    """Find the rule.

    Parameters
    ----------
    model
        Fitted.
    source
        N reference cells.
    column
        Their labels.
    unknown
        Share of held-out cells that shall be unknown.
    world
        This rank, and how many there are; rank 0 alone looks at the sample.
    tick
        Called in the pass over all cells, on all ranks equally often; may raise to stop.

    Returns
    -------
    LabelRule
        The same on every rank, to the last bit on 1, 2, 4 or 8.
    """
    sums = sum_classes(model, source, column, world, tick)
    found = from_first(lambda: _find(model, source, column, sums, unknown), world)
    rule = LabelRule(**{**found, "score_map": ScoreMap(*found["score_map"])})
    logger.info("%s", _told(rule, column))
    return rule


def learned(labels: Labelling, model: FittedModel, world: World, look: Callable[[], None]) -> Labelling:
    """Find the rule of labels that are carried over, on all ranks alike; see `fit_labels`. `look` may raise to stop."""
    assert labels.reference is not None
    source, column = labels.reference
    rule = fit_labels(model, source, column, labels.unknown, world, lambda _=None: look())
    check_unchanged(source.stamps)
    return replace(labels, reference=None, rule=rule)


def sum_classes(
    model: FittedModel, source: OpenSource, column: LabelColumn, world: World, tick: Tick = no_tick
) -> ClassSums:
    """Add the input of the cells of each class up, in each part."""
    n_parts, n_classes = column.n_folds, len(column.names)

    def part(batch: Batch) -> ClassSums:
        codes, n_genes = column.codes[batch.rows], len(source.gene_names)
        has_label = torch.from_numpy(codes != NONE)
        groups = torch.from_numpy(column.folds[batch.rows] * n_classes + codes)[has_label]
        x = _input(model, batch).cpu()[has_label].double()
        counts = torch.bincount(groups, minlength=n_parts * n_classes).double().reshape(n_parts, n_classes)
        totals = torch.zeros(n_parts * n_classes, n_genes, dtype=torch.float64).index_add_(0, groups, x)
        return ClassSums(counts, totals.reshape(n_parts, n_classes, n_genes), x.square_().sum(dim=0))

    found: ClassSums = sum_over_cells(source, part, label="labels of the reference", world=world, tick=tick)
    return found


def _input(model: FittedModel, batch: Batch) -> Tensor:
    """(B, G) scaled input of cells, as it is: within-class covariance knows how technical batches differ."""
    return model.network.scale_input(batch.values.to(model.network.gene_mean.device))


# ------------------------------------------------------------------ on rank 0


class Held(NamedTuple):
    """What is known of the cells of the sample by rules that did without their part.

    Attributes
    ----------
    scores
        (shrinkages, n, C), of cells whose class these rules know.
    classes, parts
        (n,) the true ones, and that of each cell.
    n_not_judged
        Other cells.
    rules
        Of all cells, for each shrinkage.
    """

    scores: Tensor
    classes: Tensor
    parts: Tensor
    n_not_judged: int
    rules: list[Discriminant]


def _find(
    model: FittedModel, source: OpenSource, column: LabelColumn, sums: ClassSums, unknown: float
) -> dict[str, Any]:
    """Find what `LabelRule` is made of, as plain data."""
    genes = telling_genes(sums, MAX_GENES)
    held = _held(model, source, column, sums.of(genes), genes)
    tried = [best_temperature(each.double(), held.classes) for each in held.scores]
    best = min(range(len(tried)), key=lambda at: tried[at][1])
    scores = held.scores[best].double()
    score_map = _map(scores, held, tried[best][0])
    label = scores.argmax(dim=1)
    p = torch.softmax(score_map.logits(scores), dim=1).gather(1, label[:, None])[:, 0]
    weight, bias = held.rules[best]
    return {
        "genes": genes,
        "weight": weight.float(),
        "bias": bias.float(),
        "score_map": tuple(score_map),
        "threshold": unknown_below(p, unknown),
        "report": {
            "n_cells": int(sums.counts.sum()),
            "n_unlabelled": column.n_missing,
            "n_genes": len(genes),
            "shrinkage": SHRINKAGES[best],
            "temperature": score_map.temperature,
            "held_out_by": ",".join(column.held_out) or "chance",
            "n_held_out": len(held.classes),
            "n_not_judged": held.n_not_judged,
            "held_out_accuracy": float((label == held.classes).double().mean()),
            "held_out_confidence": float(p.mean()),
        },
    }


def _map(scores: Tensor, held: Held, temperature: float) -> ScoreMap:
    """Learn what makes probabilities of scores; a temperature alone where a map would have too many numbers."""
    if scores.shape[1] > MAP_CLASSES:
        return plain_map(temperature, scores.shape[1])
    every = -(-len(scores) // MAP_CELLS)
    return best_map(scores[::every], held.classes[::every], held.parts[::every], temperature, RIDGES)


def _held(model: FittedModel, source: OpenSource, column: LabelColumn, known: ClassSums, genes: Tensor) -> Held:
    """Score the sample by rules that did without its parts."""
    rows = _sample(column, model.config.seed)
    seen, cross = _sum_sample(model, source, column, rows, genes)
    rules = {
        fold: [_rule(known, seen, cross, fold, shrinkage) for shrinkage in SHRINKAGES]
        for fold in (*range(column.n_folds), None)
    }
    scores = _score_sample(model, source, column, rows, genes, rules)
    classes, parts = torch.from_numpy(column.codes[rows]), torch.from_numpy(column.folds[rows])
    counts = torch.stack([known.without(fold)[0] for fold in range(column.n_folds)])
    is_known = counts[parts, classes] > 0
    return Held(scores[:, is_known], classes[is_known], parts[is_known], int((~is_known).sum()), rules[None])


def telling_genes(sums: ClassSums, n_most: int) -> Tensor:
    """(G',) genes whose class means differ most, by the ratio of variance between classes to that within; all where they are few, in order."""
    counts, totals = sums.without(None)
    n_genes = totals.shape[1]
    if n_genes <= n_most:
        return torch.arange(n_genes)
    between = (totals.square() / counts.clamp_min(1)[:, None]).sum(dim=0) - totals.sum(dim=0).square() / counts.sum()
    within = sums.squares - (totals.square() / counts.clamp_min(1)[:, None]).sum(dim=0)
    ratio = between / within.clamp_min(1e-12 * float(sums.squares.max().clamp_min(1e-300)))
    return torch.argsort(-ratio, stable=True)[:n_most].sort().values


def _sample(column: LabelColumn, seed: int) -> IntArray:
    """Rows of some labelled cells, in order; all where they are few."""
    rows = np.flatnonzero(column.codes != NONE)
    n_most = min(SAMPLE_CELLS, max(LEAST_CELLS, SAMPLE_SCORES // len(column.names)))
    if len(rows) <= n_most:
        return rows
    return np.sort(numpy_generator(seed, "label sample").choice(rows, n_most, replace=False, shuffle=False))


def _sample_batches(
    model: FittedModel, source: OpenSource, rows: IntArray, genes: Tensor, label: str
) -> Iterator[tuple[int, Tensor]]:
    """Input of the sample, with the place of the first cell of each block; on the device of the model."""
    genes = genes.to(model.network.gene_mean.device)
    edges = [*range(0, len(rows), EMBED_CELLS), len(rows)]
    with Feed(source) as feed, track(label, len(rows), "cells") as progress:
        plan = RowsPlan([rows[start:stop] for start, stop in pairwise(edges)])
        for start, batch in zip(edges, feed.run(plan), strict=False):
            yield start, _input(model, batch)[:, genes]
            progress.advance(len(batch.rows))


def _sum_sample(
    model: FittedModel, source: OpenSource, column: LabelColumn, rows: IntArray, genes: Tensor
) -> tuple[ClassSums, Tensor]:
    """Class sums of the sample, and (F, G', G') sums of x x^T of each part, added in place: they are large."""
    n_parts, n_classes, n_genes = column.n_folds, len(column.names), len(genes)
    counts = torch.zeros(n_parts, n_classes, dtype=torch.float64)
    totals = torch.zeros(n_parts, n_classes, n_genes, dtype=torch.float64)
    cross = torch.zeros(n_parts, n_genes, n_genes, dtype=torch.float64)
    for start, x in _sample_batches(model, source, rows, genes, "covariance"):
        own = rows[start : start + len(x)]
        folds, codes = torch.from_numpy(column.folds[own]), torch.from_numpy(column.codes[own])
        counts.index_put_((folds, codes), torch.ones(len(x), dtype=torch.float64), accumulate=True)
        totals.view(-1, n_genes).index_add_(0, folds * n_classes + codes, x.cpu().double())
        for fold in sorted(set(folds.tolist())):
            part = x[(folds == fold).to(x.device)]
            cross[fold].add_((part.T @ part).cpu())
    return ClassSums(counts, totals, torch.zeros(0)), cross


def _rule(known: ClassSums, seen: ClassSums, cross: Tensor, fold: int | None, shrinkage: float) -> Discriminant:
    """Solve for the discriminant of all cells but those of a part."""
    total = cross.sum(dim=0) if fold is None else cross.sum(dim=0) - cross[fold]
    return discriminant(shrunk(within_covariance(total, *seen.without(fold)), shrinkage), *known.without(fold))


def _score_sample(
    model: FittedModel,
    source: OpenSource,
    column: LabelColumn,
    rows: IntArray,
    genes: Tensor,
    rules: dict[int | None, list[Discriminant]],
) -> Tensor:
    """(shrinkages, n, C) scores of the sample, of each cell by the rule that did without its part."""
    n_classes = len(column.names)
    found = torch.zeros(len(SHRINKAGES), len(rows), n_classes)
    weights = {fold: torch.cat([rule.weight for rule in each], dim=1).float() for fold, each in rules.items()}
    for start, block in _sample_batches(model, source, rows, genes, "held-out cells"):
        x, folds = block.cpu(), torch.from_numpy(column.folds[rows[start : start + len(block)]])
        for fold in sorted(set(folds.tolist())):
            places = (folds == fold).nonzero()[:, 0]
            scores = (x[places] @ weights[fold]).reshape(len(places), len(SHRINKAGES), n_classes)
            bias = torch.stack([rule.bias for rule in rules[fold]]).float()
            found[:, start + places] = (scores + bias).transpose(0, 1)
    return found


def _told(rule: LabelRule, column: LabelColumn) -> str:
    report = rule.report
    return (
        f"{len(column.names)} labels of {report['n_cells']:,} cells; of {report['n_held_out']:,} cells held out by {report['held_out_by']}, "
        f"{report['held_out_accuracy']:.1%} have the right label; unknown below {rule.threshold:.3f}"
    )
