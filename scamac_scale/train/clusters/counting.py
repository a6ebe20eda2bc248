"""How many clusters are there, where nobody says: the number on which clusterings agree, and whose clusters lie apart.

For each K, the landmarks are clustered in every space by Ward and by Ward on directions, whose trees are made once, and the communities of
Leiden, whatever K, count as much as both. Their consensus of K clusters gets two silhouettes, each a mean over cells:

    agreement    by 1 - co-association: stability between clusterings of other kinds, in other spaces
    separation   by the cosine distance in the spaces, mean over spaces

The score is their product; K is where it is highest. Neither of both does alone: few clusters are stable however much they hold, and
what lies apart in one space may be nothing in others. No labels, no resampling, no threshold.

References
----------
Rousseeuw, J. Comput. Appl. Math. 1987, for silhouettes; Monti et al., Machine Learning 2003, for consensus by K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ops.linkage import weighted_linkage
from scamac_scale.ops.tree import Tree
from scamac_scale.train.clusters.association import Member, consensus_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray

MOST_LANDMARKS = 2000
"""Landmarks that are looked at; of more, as many at even steps: they come in no order that matters."""
LANDMARKS_PER_CLUSTER = 5
LEAST_TOP = 30
"""Numbers up to here are tried however few communities there are, as far as the landmarks allow."""
COMMUNITIES_WEIGHT = 2.0
STEP = 1.1
"""Factor between two numbers, where they are large."""


@dataclass(frozen=True, eq=False)
class Counted:
    """A number of clusters, and why.

    Attributes
    ----------
    n_clusters
        K.
    tried
        (T,) numbers, ascending.
    agreement, separation
        (T,) silhouettes of each, see above.
    """

    n_clusters: int
    tried: IntArray
    agreement: FloatArray
    separation: FloatArray

    @property
    def score(self) -> FloatArray:
        """(T,) the product; what is below zero counts as nothing."""
        found: FloatArray = np.maximum(self.agreement, 0) * np.maximum(self.separation, 0)
        return found

    @property
    def table(self) -> FloatArray:
        """(T, 4): the numbers, agreement, separation and score."""
        return np.stack([self.tried.astype(np.float64), self.agreement, self.separation, self.score], axis=1)


def columns_of(table: FloatArray) -> dict[str, list[Any]]:
    """Give the columns of `Counted.table` by their names, to be reported: a row for each number that was tried."""
    names = ("agreement", "separation", "score")
    rounded = {name: [round(float(value), 6) for value in table[:, at]] for at, name in enumerate(names, 1)}
    return {"n_clusters": table[:, 0].astype(int).tolist(), **rounded}


def numbers_to_try(n_landmarks: int, communities: Sequence[IntArray]) -> IntArray:
    """Numbers of clusters among which one is chosen: each up to 20 or so, then by steps of a tenth, up to twice what Leiden finds."""
    top = max(LEAST_TOP, 2 * max(int(labels.max()) + 1 for labels in communities))
    top = min(top, max(2, n_landmarks // LANDMARKS_PER_CLUSTER), n_landmarks)
    found = [1] if n_landmarks == 1 else [2]
    while (following := max(found[-1] + 1, int(found[-1] * STEP))) <= top:
        found.append(following)
    return np.array(found)


def count_clusters(
    points: Sequence[FloatArray], communities: Sequence[IntArray], weights: FloatArray | None = None
) -> Counted:
    """Choose the number of clusters.

    Parameters
    ----------
    points
        Of each space, (M, W) landmarks.
    communities
        Of each space, (M,) communities that Leiden finds.
    weights
        (M,) cells that each landmark stands for; None takes ones.

    Returns
    -------
    Counted
        The number with the highest score; of equals the smallest.

    Notes
    -----
    O(M^2) for each number, of at most `MOST_LANDMARKS` landmarks.
    """
    step = -(-len(points[0]) // MOST_LANDMARKS)
    sizes = np.ones(len(points[0])) if weights is None else np.asarray(weights, dtype=np.float64)
    points, sizes = [part[::step] for part in points], sizes[::step]
    communities = [np.unique(labels[::step], return_inverse=True)[1] for labels in communities]
    if not any(np.ptp(part, axis=0).any() for part in points):  # all landmarks are alike
        return Counted(1, np.ones(1, dtype=np.int64), np.ones(1), np.ones(1))
    units = [unit_rows(part) for part in points]
    trees = [Tree(weighted_linkage(part, sizes, "ward"), sizes) for part in (*points, *units)]
    fixed = [Member(0, "leiden", labels, COMMUNITIES_WEIGHT) for labels in communities]
    tried = numbers_to_try(len(sizes), communities)
    found = []
    for k in tried.tolist():
        members = [*fixed, *(Member(0, "ward", tree.labels(k), 1.0) for tree in trees)]
        labels = consensus_tree(members, sizes).labels(k)
        agreement = agreement_silhouette(members, labels, sizes)
        found.append((agreement, float(np.mean([cosine_silhouette(unit, labels, sizes) for unit in units]))))
    agreement, separation = np.array(found).T
    counted = Counted(0, tried, agreement, separation)
    return Counted(int(tried[counted.score.argmax()]), tried, agreement, separation)


def unit_rows(points: FloatArray) -> FloatArray:
    """Rows of length 1; (M, W) to (M, W), zeros stay."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    found: FloatArray = points / np.where(norms > 0, norms, 1.0)
    return found


def cosine_silhouette(unit: FloatArray, labels: IntArray, weights: FloatArray) -> float:
    """Mean silhouette by 1 - cosine, of (M, W) rows of length 1, (M,) clusters and (M,) weights; from sums over clusters, O(M K W)."""
    n_clusters = int(labels.max()) + 1
    sums = np.zeros((n_clusters, unit.shape[1]))
    np.add.at(sums, labels, unit * weights[:, None])
    totals = np.bincount(labels, weights, minlength=n_clusters)
    return _mean_silhouette(np.maximum(totals - unit @ sums.T, 0.0), labels, weights)


def agreement_silhouette(members: Sequence[Member], labels: IntArray, weights: FloatArray) -> float:
    """Mean silhouette by 1 - co-association, from the cells that each member's clusters share with those of `labels`; O(M K R)."""
    n_clusters = int(labels.max()) + 1
    totals = np.bincount(labels, weights, minlength=n_clusters)
    apart = np.zeros((len(labels), n_clusters))
    for member in members:
        shared = np.zeros((member.n_clusters, n_clusters))
        np.add.at(shared, (member.labels, labels), weights)
        apart += member.weight * (totals - shared[member.labels])
    return _mean_silhouette(apart / sum(member.weight for member in members), labels, weights)


def _mean_silhouette(sums: FloatArray, labels: IntArray, weights: FloatArray) -> float:
    """Mean over cells of (b - a) / max(a, b), from (M, K) sums of dissimilarities to the cells of each cluster."""
    totals = np.bincount(labels, weights, minlength=sums.shape[1])
    if sums.shape[1] == 1:
        return 0.0
    rows = np.arange(len(labels))
    others = totals[labels] - 1.0
    within = sums[rows, labels] / np.where(others > 0, others, 1.0)
    between = sums / totals
    between[rows, labels] = np.inf
    nearest = between.min(axis=1)
    larger = np.maximum(within, nearest)
    each = np.where((others > 0) & (larger > 0), (nearest - within) / np.where(larger > 0, larger, 1.0), 0.0)
    return float((each * weights).sum() / weights.sum())
