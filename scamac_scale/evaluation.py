"""Scores of a result: agreement of clusters with labels, and how well technical batches mix in a latent; with what to do about it.

Counts and variances are of all cells, read by blocks; what needs neighbours is of one sample, which the result states.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.tech_batches import MOST_JOINT, find_tech_batches, largest_joint, split_key
from scamac_scale.errors import InputError
from scamac_scale.host.memory import explained
from scamac_scale.metrics.clustering import clustering_scores
from scamac_scale.metrics.labels import is_labelled, without_labels
from scamac_scale.metrics.mixing import (
    GRAPH_NEIGHBORS,
    KBET_NEIGHBORS,
    LISI_NEIGHBORS,
    MIN_CELLS,
    graph_connectivity,
    kbet_accepted,
    lisi,
    mean_by,
    own_batch,
    scaled_clisi,
    scaled_ilisi,
)
from scamac_scale.metrics.neighbors import Neighbors, find_neighbors
from scamac_scale.metrics.variance import GroupSums
from scamac_scale.progress import track
from scamac_scale.randomness import numpy_generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import anndata as ad
    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.ingestion.obsm import ObsmArray

logger = logging.getLogger(__name__)

SAMPLE_CELLS = 50_000
"""Largest number of cells whose neighbours are looked for; exact search takes a minute for so many."""
SAMPLE_SEED = 0
"""Of the sample: the same cells in every call."""
OTHERS_LEFT = 0.05
"""A cluster or label lies in one batch where at most this share of the cells is left that it would have of other batches if it
were mixed as all cells are: 96 % of one batch that has a quarter of all cells, 99.5 % of one that has nine tenths."""
CHANCE = 1e-3
"""Nor is it named if cells drawn at random would be of one batch so often or more with at least this probability: a cluster of
three cells says nothing."""
OWN_EXCESS = 0.75
"""A batch hardly mixes from here on, by the 14 nearest other cells: 0 where these are of its own batch as often as if batches were
mixed, 1 where they are of no other. Chosen by eye: without a correction, donors of one study lie well below, other studies or stimuli near 1."""


@explained("evaluate")
def evaluate(
    data: str | Path | ad.AnnData,
    label: str | None = None,
    *,
    key: str = "scamac_cluster",
    batch_key: str | None = None,
    basis: str = "X_scAMAC",
    unlabelled: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score a result; see `scamac_scale.api.evaluate`."""
    from scamac_scale.ingestion.open import read_obs

    is_file = isinstance(data, str | Path)
    obs = read_obs(data) if isinstance(data, str | Path) else data.obs
    columns = split_key(batch_key)
    if label is None and not columns:
        raise InputError("neither a label nor a batch key is given; there is nothing to score against.")
    for column in (label, key):
        if column is not None and column not in obs:
            raise InputError(f"obs has no column {column!r}; it has {', '.join(map(str, obs.columns)) or 'none'}.")
    if label is None and unlabelled is not None:
        raise InputError("names of unlabelled cells are given, but no label column; name one, or leave them out.")
    scores: dict[str, Any] = {}
    found: list[str] = []
    if label is not None:
        names = split_key(unlabelled) if unlabelled is None or isinstance(unlabelled, str) else tuple(unlabelled)
        values, found = without_labels(obs[label].to_numpy(dtype=object), label, names)
        obs = obs.copy(deep=False)
        obs[label] = values
        scores |= clustering_scores(obs[label].to_numpy(), obs[key].to_numpy())
    if columns:
        where = f"{data}: obs" if is_file else "obs"
        scores |= _mixing(data, _read_cells(obs, columns, key, label, where), ",".join(columns), basis)
        found += scores["warnings"]
    return scores | ({"warnings": found} if found or columns else {})


# ------------------------------------------------------------------ the columns


@dataclass(frozen=True, eq=False)
class Levels:
    """A column of obs.

    Attributes
    ----------
    names
        Of its levels.
    codes
        (N,) level of each cell, from 0 on; -1 for a cell without.
    """

    names: list[str]
    codes: IntArray

    def of(self, rows: IntArray) -> IntArray:
        """Codes of some cells, in which one without a level is of a further one."""
        codes = self.codes[rows]
        return np.where(codes < 0, len(self.names), codes)


@dataclass(frozen=True, eq=False)
class _Cells:
    """What obs tells of the N cells that are counted; of `n_all`, those in `rows`."""

    batches: Levels
    clusters: Levels
    labels: Levels | None
    rows: IntArray
    n_all: int
    n_more_batches: int

    @property
    def n_cells(self) -> int:
        return len(self.rows)


def _read_cells(obs: pd.DataFrame, columns: tuple[str, ...], key: str, label: str | None, where: str) -> _Cells:
    found = largest_joint(find_tech_batches(obs, columns, where=where), MOST_JOINT)
    names = found.names
    if len(names) < 2:
        raise InputError(
            f"{where}: all {len(obs):,} cells are of one batch ({', '.join(columns)}={names[0] if names else '-'}); "
            "name a column with two or more values, or leave out the batch key."
        )
    n_all, rows = len(obs), np.flatnonzero(found.codes >= 0)
    obs = obs if len(rows) == n_all else obs.iloc[rows]
    if len(obs) < MIN_CELLS:
        raise InputError(
            f"{where}: {len(obs)} cells are too few to tell how batches mix; at least {MIN_CELLS} are needed."
        )
    clusters = _levels(obs[key].to_numpy())
    n_missing = int((clusters.codes < 0).sum())
    if n_missing:
        raise InputError(
            f"{where}: {n_missing:,} cells have no cluster in {key!r}; predict them first, or name another cluster column."
        )
    labels = None if label is None else _levels(obs[label].to_numpy())
    return _Cells(Levels(names, found.codes[rows]), clusters, labels, rows, n_all, found.n_more)


def _levels(values: Any) -> Levels:  # Any: a column of any type
    has_level = is_labelled(values)
    names, inverse = np.unique(np.asarray(values, dtype=object)[has_level].astype(str), return_inverse=True)
    codes = np.full(len(has_level), -1, dtype=np.int64)
    codes[has_level] = inverse
    return Levels(names.tolist(), codes)


# ------------------------------------------------------------------ the scores


def _mixing(data: str | Path | ad.AnnData, cells: _Cells, batch_key: str, basis: str) -> dict[str, Any]:
    from scamac_scale.ingestion.open import open_obsm

    rows = draw_sample(_strata(cells), SAMPLE_CELLS)
    with open_obsm(data, basis) as latent:
        if latent.shape[0] != cells.n_all:
            raise InputError(
                f"{latent.name} has {latent.shape[0]:,} rows for {cells.n_all:,} cells; the file is damaged, predict again."
            )
        shares, points = _stream(latent, cells, rows)
    logger.info("looking for the neighbours of %s cells", f"{len(rows):,}")
    neighbors = find_neighbors(points, LISI_NEIGHBORS - 1)
    batches = cells.batches.codes[rows]
    values = lisi(neighbors.distances, neighbors.indices, batches)
    groups = np.zeros_like(batches) if cells.labels is None else cells.labels.of(rows)
    shuffled = lisi(neighbors.distances, neighbors.indices, shuffle_within(batches, groups))
    table = _table(neighbors, values, groups, cells, rows)
    scores = {
        "batch_key": batch_key,
        "basis": basis,
        "n_batches": len(cells.batches.names),
        **shares,
        "n_sampled": len(rows),
        "sample_seed": SAMPLE_SEED,
        "neighbors": _sizes(neighbors, len(rows)),
        "ilisi": float(np.median(values)),
        "ilisi_if_mixed": float(np.median(shuffled)),
        "ilisi_scaled": scaled_ilisi(values, len(np.unique(batches))),
        "kbet_acceptance": kbet_accepted(neighbors.nearest(KBET_NEIGHBORS - 1).indices, batches)[0],
    }
    if cells.labels is not None:
        scores |= _label_scores(points, neighbors, cells.labels.codes[rows])
    found = [
        *_left_out(cells, batch_key),
        *_mixing_warnings(table, cells, batch_key),
        *_one_batch_warnings(cells, batch_key),
    ]
    if scores.get("clisi", 0.0) is None:
        found.append(
            f"only {scores['n_sampled_labelled']} cells of the sample have a label, too few for cLISI and graph connectivity "
            f"(at least {MIN_CELLS}); name a column that labels more cells."
        )
    return {**scores, "batches": table, "warnings": found}


def _strata(cells: _Cells) -> IntArray:
    """(N,) the pair of batch and label that each cell is of; without labels the batch."""
    every = np.arange(cells.n_cells)
    labels = np.zeros(cells.n_cells, dtype=np.int64) if cells.labels is None else cells.labels.of(every)
    return _numbered(labels, cells.batches.codes)[0]


def _numbered(outer: IntArray, inner: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """(N,) number of the pair of each cell among the P pairs that occur, and (P,) outer and inner code of each pair."""
    width = int(inner.max()) + 1
    pairs, numbers = np.unique(outer * width + inner, return_inverse=True)
    return numbers.reshape(-1), pairs // width, pairs % width


def draw_sample(strata: IntArray, size: int, seed: int = SAMPLE_SEED) -> IntArray:
    """Draw cells of all strata, each in proportion, and at least one.

    Parameters
    ----------
    strata
        (N,) from 0 on; each occurs.
    size
        Cells to draw.
    seed
        The same cells for the same seed.

    Returns
    -------
    IntArray
        (min(N, size),) rows, in order. Where there are more strata than `size`, cells are drawn without regard to them.
    """
    n_cells, counts = len(strata), np.bincount(strata)
    if n_cells <= size:
        return np.arange(n_cells)
    order = numpy_generator(seed, "evaluation sample").permutation(n_cells)
    if len(counts) > size:
        return np.sort(order[:size])
    quota = 1 + (counts - 1) * ((size - len(counts)) / (n_cells - len(counts)))
    taken = np.floor(quota).astype(np.int64)
    rest = size - int(taken.sum())
    taken[np.argsort(taken - quota, kind="stable")[:rest]] += 1
    order = order[np.argsort(strata[order], kind="stable")]  # stratum by stratum, in random order within
    place = np.arange(n_cells) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: IntArray = np.sort(order[place < np.repeat(taken, counts)])
    return rows


def _stream(latent: ObsmArray, cells: _Cells, rows: IntArray) -> tuple[dict[str, float | None], FloatArray]:
    """Read all cells once: shares of the variance of all, and the latent of the sample."""
    groups, clusters, batches = _numbered(cells.clusters.codes, cells.batches.codes)
    sums = GroupSums(len(clusters), latent.shape[1])
    points = []
    with track("read", cells.n_all, "cells") as progress:
        for start, block in latent.blocks():
            first, last = np.searchsorted(cells.rows, (start, start + len(block)))
            own = block if last - first == len(block) else block[cells.rows[first:last] - start]
            sums.add(own, groups[first:last])
            low, high = np.searchsorted(rows, (first, last))
            points.append(own[rows[low:high] - first])
            progress.advance(len(block))
    shares = {
        "variance_between_batches": sums.share_between(batches),
        "variance_between_batches_in_cluster": sums.share_between(batches, clusters),
    }
    return shares, np.concatenate(points)


def _sizes(neighbors: Neighbors, n_cells: int) -> dict[str, Any]:
    """How many neighbours each score has, the cell itself counted, and what found them."""
    n_most = min(LISI_NEIGHBORS, n_cells)
    return {
        "lisi": n_most,
        "perplexity": n_most // 3,
        "kbet": min(KBET_NEIGHBORS, n_cells),
        "graph": min(GRAPH_NEIGHBORS, n_cells),
        "by": neighbors.by,
    }


def _label_scores(points: FloatArray, neighbors: Neighbors, labels: IntArray) -> dict[str, Any]:
    """Scores of the cells of the sample that have a label, among themselves."""
    kept = labels >= 0
    scores: dict[str, Any] = {"n_sampled_labelled": int(kept.sum())}
    if kept.sum() < MIN_CELLS:
        return scores | dict.fromkeys(("clisi", "clisi_scaled", "graph_connectivity"))
    if not kept.all():
        labels = labels[kept]
        neighbors = find_neighbors(points[kept], LISI_NEIGHBORS - 1)
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    values = lisi(neighbors.distances, neighbors.indices, labels)
    n_labels = int(labels.max()) + 1
    return scores | {
        "clisi": float(np.median(values)),
        "clisi_scaled": scaled_clisi(values, n_labels) if n_labels > 1 else None,
        "graph_connectivity": graph_connectivity(neighbors.nearest(GRAPH_NEIGHBORS - 1).indices, labels),
    }


def shuffle_within(codes: IntArray, groups: IntArray, seed: int = SAMPLE_SEED) -> IntArray:
    """Deal the batches of each group out anew among its cells: what mixing could reach with these cells and this many batches.

    Parameters
    ----------
    codes
        (N,) batch of each cell.
    groups
        (N,) cells that could mix.
    seed
        The same order for the same seed.

    Returns
    -------
    IntArray
        (N,) each group has the batches it had.
    """
    order = numpy_generator(seed, "evaluation shuffle").permutation(len(codes))
    dealt = np.empty_like(codes)
    dealt[np.argsort(groups, kind="stable")] = codes[order[np.argsort(groups[order], kind="stable")]]
    return dealt


def _table(
    neighbors: Neighbors, values: NDArray[np.float64], groups: IntArray, cells: _Cells, rows: IntArray
) -> list[dict[str, Any]]:
    """Each batch by itself: mean LISI, and how often neighbours are of the same batch; None for one that the sample lacks."""
    batches = cells.batches.codes[rows]
    own = own_batch(neighbors.nearest(GRAPH_NEIGHBORS - 1).indices, batches, groups)  # few: a batch may be small
    mean = mean_by(values, batches)
    counts = np.bincount(cells.batches.codes)
    return [
        {
            "batch": name,
            "n_cells": int(counts[at]),
            "mean_lisi": _plain(mean, at),
            "own_neighbors": _plain(own.found, at),
            "own_if_mixed": _plain(own.expected, at),
            "own_excess": _plain(own.excess, at),
        }
        for at, name in enumerate(cells.batches.names)
    ]


def _plain(values: FloatArray, at: int) -> float | None:
    return float(values[at]) if at < len(values) and np.isfinite(values[at]) else None


# ------------------------------------------------------------------ what to do


def _left_out(cells: _Cells, batch_key: str) -> Iterator[str]:
    """Say which batches are not counted."""
    if cells.n_more_batches:
        n_own, n_cells = len(cells.batches.names), cells.n_all - cells.n_cells
        yield (
            f"there are {n_own + cells.n_more_batches:,} batches of {batch_key}; the {n_own:,} with the most cells are counted, the others, "
            f"with {n_cells:,} cells ({n_cells / cells.n_all:.1%}), are left out of all scores of mixing."
        )


def _mixing_warnings(table: list[dict[str, Any]], cells: _Cells, batch_key: str) -> Iterator[str]:
    """Name the batches that hardly mix."""
    within = "" if cells.labels is None else ", each label by itself"
    for row in table:
        if row["own_excess"] is None or row["own_excess"] < OWN_EXCESS:
            continue
        yield (
            f"batch {row['batch']!r} hardly mixes: {row['own_neighbors']:.1%} of the neighbours of its cells are of the same batch, "
            f"{row['own_if_mixed']:.1%} would be if batches were mixed{within} (mean LISI {row['mean_lisi']:.2f} of {len(table)} batches); "
            f"{_advice(batch_key)}."
        )


def _advice(batch_key: str) -> str:
    return f"train with --batch-key {batch_key}, or, if that was done, raise --correction.theta"


def _one_batch_warnings(cells: _Cells, batch_key: str) -> Iterator[str]:
    """Name the clusters and the labels that lie in one batch only."""
    advice = f"if other batches have such cells, {_advice(batch_key)}; if not, keep it"
    yield from _one_batch("cluster", cells.clusters, cells.batches, advice)
    if cells.labels is not None:
        advice = "mixing cannot be judged by it, and a strong correction may blend it with other labels: see that it keeps its own cluster"
        yield from _one_batch("label", cells.labels, cells.batches, advice)


def _one_batch(kind: str, groups: Levels, batches: Levels, advice: str) -> Iterator[str]:
    from scipy.stats import binom

    has_group = groups.codes >= 0
    table = np.zeros((len(groups.names), len(batches.names)), dtype=np.int64)
    np.add.at(table, (groups.codes[has_group], batches.codes[has_group]), 1)
    overall = np.bincount(batches.codes, minlength=len(batches.names)) / len(batches.codes)
    for name, counts in zip(groups.names, table, strict=True):
        total, at = int(counts.sum()), int(counts.argmax())
        others = 1 - counts[at] / total
        is_alone = others <= OTHERS_LEFT * (1 - overall[at])
        if is_alone and binom.sf(counts[at] - 1, total, overall[at]) < CHANCE:
            yield (
                f"{kind} {name!r} lies in one batch: {int(counts[at]):,} of its {total:,} cells ({1 - others:.1%}) are of batch "
                f"{batches.names[at]!r}, which has {overall[at]:.1%} of all cells; {advice}."
            )
