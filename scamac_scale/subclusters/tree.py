"""One cluster: a tree of splits, found on some of its cells, and the part of each cell of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.randomness import numpy_generator
from scamac_scale.subclusters.population import Cells
from scamac_scale.subclusters.split import Split, find_split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.subclusters.cell_files import CellFiles

LANDMARKS = 2000
"""Cells of a cluster on which splits are looked for; all others then take their parts in one pass."""
MOST_DEPTH = 5
"""Splits behind one another, at most: 32 parts of a cluster."""
TOLD_GENES = 5
ROOT = 1


class Cluster(NamedTuple):
    """A cluster that is to be cut.

    Attributes
    ----------
    code, name
        Its number among those that are cut, and its name.
    genes
        Names of its own genes.
    depth, batches
        Of its cells, in the order of the input.
    is_counts
        Whether its values are counts.
    """

    code: int
    name: str
    genes: tuple[str, ...]
    depth: NDArray[np.float64]
    batches: IntArray
    is_counts: bool


@dataclass(frozen=True, eq=False)
class Found:
    """What came of a cluster.

    Attributes
    ----------
    parts
        (n,) part of each cell, 0 the largest.
    tests
        A row for each test: plain data.
    """

    parts: IntArray
    tests: list[dict[str, Any]]


def cut_cluster(cluster: Cluster, files: CellFiles, min_cells: int, seed: int) -> Found:
    """Cut a cluster as often as its cells ask for.

    Parameters
    ----------
    cluster
        Which.
    files
        With its cells.
    min_cells
        A part with fewer cells (as far as the landmarks tell) is not cut further.
    seed
        Of the run.

    Returns
    -------
    Found
        Parts and tests; the same whatever else is cut.

    Notes
    -----
    Memory: `LANDMARKS` cells of some hundred genes a few times over, and a block of cells.
    """
    n_cells, key = len(cluster.depth), zlib.crc32(cluster.name.encode())
    stream = numpy_generator(seed, "refine.landmarks", key)
    rows = np.sort(stream.permutation(n_cells)[:LANDMARKS])
    landmarks = _landmarks(cluster, files, rows)
    splits: dict[int, Split] = {}
    tests: list[dict[str, Any]] = []
    waiting = [(ROOT, np.arange(len(rows)))]
    while waiting:
        node, members = waiting.pop(0)
        if len(members) * n_cells < min_cells * len(rows):
            continue
        own = landmarks.of(members)
        split = find_split(own, seed, key, node)
        tests.append({"cluster": cluster.name, "part": _path(node), "n_cells": 0, **_told(split, own, cluster)})
        if split.verdict.is_split:
            splits[node] = split
            sides = split.side(own)
            if node < 2**MOST_DEPTH:
                waiting += [(2 * node + side, members[sides == side]) for side in (0, 1)]
    nodes = np.concatenate(list(_nodes(cluster, files, splits)))
    leaves, counts = np.unique(nodes, return_counts=True)
    rank = np.empty(len(leaves), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(leaves))
    sizes = dict(zip(leaves.tolist(), counts.tolist(), strict=True))
    for row, node in zip(tests, [_node(row["part"]) for row in tests], strict=True):
        row["n_cells"] = sum(size for leaf, size in sizes.items() if _is_below(leaf, node))
    return Found(rank[np.searchsorted(leaves, nodes)], tests)


def _landmarks(cluster: Cluster, files: CellFiles, rows: IntArray) -> Cells:
    found = []
    for start, block in files.blocks(cluster.code, len(cluster.genes)):
        own = rows[(rows >= start) & (rows < start + block.shape[0])] - start
        found.append(block[own].toarray())
    return Cells(np.concatenate(found), cluster.depth[rows], cluster.batches[rows], cluster.is_counts)


def _nodes(cluster: Cluster, files: CellFiles, splits: dict[int, Split]) -> Iterator[IntArray]:
    """Find the leaf of each cell, by blocks."""
    for start, block in files.blocks(cluster.code, len(cluster.genes)):
        nodes = np.full(block.shape[0], ROOT, dtype=np.int64)
        if splits:
            stop = start + block.shape[0]
            cells = Cells(block.toarray(), cluster.depth[start:stop], cluster.batches[start:stop], cluster.is_counts)
            for node in sorted(splits):
                own = np.flatnonzero(nodes == node)
                if len(own):
                    nodes[own] = 2 * node + splits[node].side(cells.of(own))
        yield nodes


def _told(split: Split, cells: Cells, cluster: Cluster) -> dict[str, Any]:
    """Say what a split looks like: its test, how much deeper its second part is, and the genes that are higher in either."""
    row = split.verdict.to_plain()
    row["n_tested"] = row.pop("n_cells")
    row |= {"depth_log2_ratio": 0.0, "genes_first": "", "genes_second": ""}
    if split.cut is None:
        return row
    sides = split.side(cells).astype(bool)
    if not 0 < sides.sum() < len(sides):
        return row
    residuals = split.scale.residuals(cells)
    difference = residuals[sides].mean(axis=0) - residuals[~sides].mean(axis=0)
    order = np.argsort(difference, kind="stable")
    names = np.array(cluster.genes, dtype=object)
    row["genes_first"] = " ".join(map(str, names[order[:TOLD_GENES]]))
    row["genes_second"] = " ".join(map(str, names[order[::-1][:TOLD_GENES]]))
    if cells.is_counts:
        logs = np.log2(np.maximum(cells.depth, 1.0))
        row["depth_log2_ratio"] = float(logs[sides].mean() - logs[~sides].mean())
    return row


def _path(node: int) -> str:
    """Name a node by the sides that lead to it: empty for the whole cluster, "0" and "1" for the two parts of its first split."""
    return bin(node)[3:]


def _node(path: str) -> int:
    return int(f"1{path}", 2)


def _is_below(leaf: int, node: int) -> bool:
    while leaf > node:
        leaf //= 2
    return leaf == node
