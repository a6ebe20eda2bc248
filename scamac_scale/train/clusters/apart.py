"""Few cells that lie apart: small groups of landmarks with a gap around them, which the members of the consensus pass over.

A method that is asked for K clusters spends them where the cells are: a type of 60 among 20,000 cells has landmarks of its own, and they
join a large cluster all the same. Here no cluster is asked for: the shortest distances that connect all landmarks (single linkage) are
compared with how far a landmark commonly is from its nearest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.train.clusters.association import Member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray

LEAST_CELLS = 10
"""Cells of a group that lies apart."""
LEAST_LANDMARKS = 3
"""Landmarks of such a group: one or two of few cells are far from others by the noise of their means."""
MOST_SHARE = 0.02
"""Of all cells, that a group that lies apart has at most."""
FAR = 3.0
"""Spreads (of the distance to the nearest landmark, by the median of deviations) beyond the median that make a gap."""


def groups_apart(points: FloatArray, weights: FloatArray) -> IntArray:
    """Find small groups of landmarks that lie apart from all others.

    Parameters
    ----------
    points
        (M, W) landmarks.
    weights
        (M,) cells of each.

    Returns
    -------
    IntArray
        (M,) 0 for landmarks of no such group, else 1, 2, ... by the first landmark of each.

    Notes
    -----
    O(M^2 W) time, O(M W) memory.
    """
    first, second, length, nearest = _shortest_tree(points)
    spread = 1.4826 * np.median(np.abs(nearest - np.median(nearest)))
    gap, most = np.median(nearest) + FAR * spread, MOST_SHARE * weights.sum()
    root, members = np.arange(len(points)), {row: [row] for row in range(len(points))}
    apart = np.zeros(len(points), dtype=np.int64)
    for edge in np.argsort(length, kind="stable").tolist():
        ends = root[first[edge]], root[second[edge]]
        for end in ends if length[edge] > gap else ():
            if len(members[end]) >= LEAST_LANDMARKS and LEAST_CELLS <= weights[members[end]].sum() <= most:
                apart[members[end]] = members[end][0] + 1  # in place of smaller groups in it
        small, large = sorted(ends, key=lambda end: len(members[end]))
        root[members[small]] = large
        members[large] += members.pop(small)
    values, place, numbers = np.unique(apart, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(np.where(values == 0, -1, place)))
    numbered: IntArray = (rank[numbers] + (values[0] != 0)).astype(np.int64)
    return numbered


def _shortest_tree(points: FloatArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    """Give the M - 1 edges of the least sum of lengths that connect all points, and how far each point is from its nearest."""
    n_points = len(points)
    distance, source = np.full(n_points, np.inf), np.zeros(n_points, dtype=np.int64)
    nearest, is_in = np.full(n_points, np.inf), np.zeros(n_points, dtype=bool)
    first, second, length = [], [], []
    row = 0
    for _ in range(n_points):
        is_in[row] = True
        to_row = np.sqrt(np.square(points - points[row]).sum(axis=1))
        to_row[row] = np.inf
        nearest[row] = to_row.min()
        closer = (to_row < distance) & ~is_in
        distance[closer], source[closer] = to_row[closer], row
        distance[is_in] = np.inf
        if is_in.all():
            break
        row = int(distance.argmin())
        first.append(source[row])
        second.append(row)
        length.append(distance[row])
    return np.array(first), np.array(second), np.array(length), nearest


def member_apart(
    points: FloatArray, weights: FloatArray, members: Sequence[Member], n_clusters: int | None
) -> Member | None:
    """Make a member of the consensus of the groups that lie apart, which counts as much as all others.

    None where there are no groups, or of a number of clusters that was told fewer than two would be left for the rest.

    So no group joins the rest below half the height of the tree, and no two landmarks of the rest above it: a cut gives the groups first.
    """
    labels = groups_apart(points, weights)
    if not labels.any() or (n_clusters is not None and labels.max() > n_clusters - 2):
        return None
    return Member(0, "apart", labels, sum(member.weight for member in members))
