"""Does the latent keep the order of development? The question of the paper's Figure 8, beside PCA.

On two sets with known time, diffusion pseudotime is computed by scanpy from the latent of scAMAC, from its latent before the
feedback (a fit with ``train.rounds=0``), and from 32 and 50 principal components of the log-normalised variable genes. (The
paper runs Monocle3, on other cells.) Scored are Kendall's tau-b between pseudotime and the rank of the stage, and the
pseudotemporal ordering score (POS) of TSCAN; both are 1 at best, 0 by chance and -1 for the reverse.

The root is the medoid of the first stage: its cell with the least summed distance to the others of that stage, in the
representation itself. Labels give the root and the score, and nothing else: scAMAC finds the number of clusters itself.

Scanpy's graph of 15 neighbours can fall apart: where all neighbours of a cluster lie within it, nothing connects it with the
root. Cells so cut off have no pseudotime; they are counted, and placed last, tied with each other. Every representation is
therefore ordered along three graphs: ``knn``, scanpy's default; ``tree``, the same with the edges of the minimum spanning tree
that it lacks, each as weak as its weakest edge; ``more``, half as many neighbours more until it is connected. A graph that is
connected is left as it is by both.

    python benchmarks/trajectory.py --data FOLDER --threads 1

References
----------
Z. Ji and H. Ji, TSCAN: Pseudo-time reconstruction and evaluation in single-cell RNA-seq analysis, Nucleic Acids Research
44, e117, 2016 (POS). L. Haghverdi et al., Diffusion pseudotime robustly reconstructs lineage branching, Nature Methods 13,
845-848, 2016.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from baselines import N_NEIGHBORS, PREPARATION, prepare, quiet
from imputation import limit_threads
from record import Results, environment
from rich.console import Console
from rich.table import Table
from summary import in_words, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

OUT = Path(__file__).resolve().parent / "results" / "trajectory.json"
KEY = ("set", "method", "graph", "seed")


@dataclass(frozen=True)
class Stages:
    """What is known of the time of the cells.

    Attributes
    ----------
    column
        Of obs.
    order
        Its values, from the first stage to the last.
    """

    column: str
    order: tuple[str, ...]


STAGES = {
    "ipsc_cm315": Stages("cell_type", ("D0", "D6", "D10", "D30", "D60")),
    "deng_counts": Stages(
        "stage10",
        (
            "zygote",
            "early2cell",
            "mid2cell",
            "late2cell",
            "4cell",
            "8cell",
            "16cell",
            "earlyblast",
            "midblast",
            "lateblast",
        ),
    ),
}
"""Days of the differentiation of stem cells to heart muscle; stages of the mouse embryo before implantation."""

GRAPH = {"n_neighbors": N_NEIGHBORS, "n_comps": 15, "n_dcs": 10}
"""Scanpy's defaults: of the neighbour graph, of the diffusion map, and of it in the pseudotime."""
MORE = 1.5
"""Factor by which neighbours are added until the graph is connected."""
COMPONENTS = {"pca32": 32, "pca50": 50}
TITLES = {
    "scamac": "scAMAC latent",
    "before": "scAMAC, before the feedback",
    "pca32": "PCA, 32 components",
    "pca50": "PCA, 50 components",
}
GRAPH_TITLES = {"knn": "15 neighbours", "tree": "and a spanning tree", "more": "more neighbours"}
NOTE = (
    "Diffusion pseudotime from the medoid of the first stage; tau-b and POS are 1 at best, 0 by chance. Cut off: cells "
    "that the graph does not connect with the root, placed last and tied; tau-b forgives ties, POS does not. Tree and more "
    "neighbours change only graphs that are not connected. Seeds vary the fit of scAMAC; PCA and neighbours are exact. "
    "Median over seeds (lowest to highest)."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--sets", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="SET")
    parser.add_argument("--methods", nargs="+", default=list(TITLES), choices=list(TITLES), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this minus 1")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file; replaced")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name a folder of .h5ad files with --data, or in SCAMAC_DATA.")
    missing = [name for name in options.sets if not (Path(options.data) / f"{name}.h5ad").is_file()]
    if missing:
        parser.error(f"--data holds no {', '.join(missing)}; name others with --sets.")
    return options


def stage_ranks(column: pd.Series[Any], order: Sequence[str]) -> NDArray[np.int64]:
    """Rank of each cell's stage, 0 for the first; (N,)."""
    rank = {name: place for place, name in enumerate(order)}
    found = set(column.astype(str))
    if found != set(order):
        raise SystemExit(f"stages {sorted(found)}, expected {list(order)}; correct the table STAGES.")
    return column.astype(str).map(rank).to_numpy().astype(np.int64)


def ordering_score(pseudotime: NDArray[np.floating], stages: NDArray[np.integer]) -> float:
    """Pseudotemporal ordering score (POS).

    Parameters
    ----------
    pseudotime
        (N,); infinity is last.
    stages
        (N,) ranks 0, 1, ...; at least two of them.

    Returns
    -------
    float
        1 if pseudotime never places a later stage before an earlier one, -1 if it always does.

    Notes
    -----
    The sum of ``stage_j - stage_i`` over all pairs in which pseudotime places i before j, over the same sum for the true
    order; a pair that pseudotime ties adds nothing. Each cell's stage so enters once for every cell before it and is taken
    off for every cell after it, which is ``2 rank - N - 1`` times with mean ranks: O(N log N).

    References
    ----------
    Ji and Ji 2016; there pseudotime has no ties.
    """
    from scipy.stats import rankdata

    best = stages @ (2 * rankdata(stages) - len(stages) - 1)
    return float(stages @ (2 * rankdata(pseudotime) - len(stages) - 1) / best)


def order_scores(pseudotime: NDArray[np.floating], stages: NDArray[np.integer]) -> dict[str, Any]:
    """Kendall's tau-b, POS and the number of cells without a pseudotime, which are placed last."""
    from scipy.stats import kendalltau, rankdata

    is_reached = np.isfinite(pseudotime)
    ranks = rankdata(np.where(is_reached, pseudotime, np.inf))
    return {
        "kendall": float(kendalltau(ranks, stages).statistic),
        "pos": ordering_score(ranks, stages),
        "n_unreached": int((~is_reached).sum()),
    }


def medoid(points: NDArray[np.floating], rows: NDArray[np.integer]) -> int:
    """The one of these rows with the least summed Euclidean distance to the others."""
    from scipy.spatial.distance import cdist

    chosen = points[rows].astype(np.float64)
    return int(rows[cdist(chosen, chosen).sum(axis=1).argmin()])


def is_connected(weights: sparse.csr_matrix) -> bool:
    """Whether one can walk from every cell to every other."""
    from scipy.sparse.csgraph import connected_components

    return bool(connected_components(weights, directed=False)[0] == 1)


def with_tree(weights: sparse.csr_matrix, points: NDArray[np.floating]) -> sparse.csr_matrix:
    """Add the edges of the minimum spanning tree of the points that are not there, as weak as the weakest that is.

    Parameters
    ----------
    weights
        (N, N) symmetric.
    points
        (N, D), at most some thousands: all distances are computed.

    Returns
    -------
    csr_matrix
        (N, N), connected.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial.distance import cdist

    distances = cdist(points.astype(np.float64), points.astype(np.float64))
    distances[distances == 0] = np.nextafter(0, 1)  # 0 would be no edge
    tree = minimum_spanning_tree(distances).tocoo()
    rows, columns = np.concatenate([tree.row, tree.col]), np.concatenate([tree.col, tree.row])
    is_lacking = np.asarray(weights[rows, columns]).ravel() == 0
    weak = np.full(int(is_lacking.sum()), weights.data[weights.data > 0].min())
    edges = (rows[is_lacking], columns[is_lacking])
    return sparse.csr_matrix(weights + sparse.csr_matrix((weak, edges), shape=weights.shape))


def diffusion_pseudotime(
    points: NDArray[np.floating], root: int, graph: str, seed: int
) -> tuple[NDArray[np.float64], int]:
    """Pseudotime by scanpy, with the settings GRAPH.

    Parameters
    ----------
    points
        (N, D).
    root
        Row of the first cell.
    graph
        ``knn``, ``tree`` or ``more``.
    seed
        Of scanpy.

    Returns
    -------
    ndarray, int
        (N,), infinite where the root is not connected; the number of neighbours.
    """
    import anndata
    import scanpy as sc

    n_neighbors = GRAPH["n_neighbors"]
    with quiet():
        cells = anndata.AnnData(np.asarray(points, dtype=np.float32))
        sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        while graph == "more" and not is_connected(cells.obsp["connectivities"]) and n_neighbors < len(points) - 1:
            n_neighbors = min(int(MORE * n_neighbors), len(points) - 1)
            sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        if graph == "tree" and not is_connected(cells.obsp["connectivities"]):
            cells.obsp["connectivities"] = with_tree(cells.obsp["connectivities"], points)
        sc.tl.diffmap(cells, n_comps=GRAPH["n_comps"], random_state=seed)
        cells.uns["iroot"] = root
        sc.tl.dpt(cells, n_dcs=GRAPH["n_dcs"])
    return cells.obs["dpt_pseudotime"].to_numpy().astype(np.float64), n_neighbors


def latent(path: Path, seed: int, *, has_feedback: bool) -> tuple[NDArray[np.float32], int]:
    """Latent (N, D) of a fit that is told nothing, and the number of clusters it found."""
    from scamac_scale import ScAMAC
    from scamac_scale.config import ScamacConfig

    config = ScamacConfig()
    if not has_feedback:
        config = replace(config, train=replace(config.train, rounds=0))
    model = ScAMAC("auto", seed=seed, config=config).fit(path)
    return model.predict(path).obsm["X_scAMAC"], model.fitted.n_clusters


def run_set(path: Path, options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All seeds of one set: what it is, and one row for each method."""
    known = STAGES[path.stem]
    prepared = prepare(path)
    stages = stage_ranks(prepared.obs[known.column], known.order)
    first = np.flatnonzero(stages == 0)
    counts = np.bincount(stages).tolist()
    facts = {"cells": len(stages), "column": known.column, "stages": dict(zip(known.order, counts, strict=True))}
    rows = []
    for seed in range(options.seeds):
        own = [name for name in ("scamac", "before") if name in options.methods]
        fitted = {name: latent(path, seed, has_feedback=name == "scamac") for name in own}
        spaces = {name: points for name, (points, _) in fitted.items()}
        spaces |= {name: prepared.obsm["X_pca"][:, :n] for name, n in COMPONENTS.items() if name in options.methods}
        for (name, space), graph in itertools.product(spaces.items(), GRAPH_TITLES):
            root = medoid(space, first)
            pseudotime, n_neighbors = diffusion_pseudotime(space, root, graph, seed)
            scores = order_scores(pseudotime, stages)
            row = {"set": path.stem, "method": name, "graph": graph, "seed": seed, "width": space.shape[1]}
            rows.append(row | {"root": root, "n_neighbors": n_neighbors, **scores})
            if name in fitted:
                rows[-1]["n_clusters"] = fitted[name][1]
            line = f"tau-b {scores['kendall']:.3f}  POS {scores['pos']:.3f}  cut off {scores['n_unreached']}"
            console.print(f"{path.stem}  {name}  {graph}  seed {seed}  {line}", highlight=False, soft_wrap=True)
    return facts, rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each set, method and graph: every score over the seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["method"], row["graph"]), []).append(row)
    return [
        {"set": name, "method": method, "graph": graph}
        | {score: spread([row[score] for row in group]) for score in ("kendall", "pos", "n_unreached", "n_neighbors")}
        for (name, method, graph), group in groups.items()
    ]


def show(summary: Sequence[dict[str, Any]], sets: dict[str, Any]) -> Table:
    """One row for each set, method and graph; the best median is bold."""
    table = Table(title="Order of development", caption=NOTE, caption_justify="left")
    for column in ("set", "cells", "stages", "method", "graph", "Kendall tau-b", "POS", "cut off"):
        is_text = column in ("set", "method", "graph")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for name, facts in sets.items():
        rows = [row for row in summary if row["set"] == name]
        best = {score: max(row[score]["median"] for row in rows) for score in ("kendall", "pos")}
        for index, row in enumerate(rows):
            what = (name, str(facts["cells"]), str(len(facts["stages"]))) if index == 0 else ("", "", "")
            cells = [
                f"[bold]{in_words(row[score])}[/]" if row[score]["median"] == best[score] else in_words(row[score])
                for score in best
            ]
            cells += [in_words(row["n_unreached"], digits=0)]
            names = (TITLES[row["method"]], GRAPH_TITLES[row["graph"]])
            table.add_row(*what, *names, *cells, end_section=index + 1 == len(rows))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, order, score, print, write."""
    options = parse(arguments)
    limit_threads(options.threads)
    from scamac_scale.config import IngestConfig, ScamacConfig

    console = Console(width=None if sys.stdout.isatty() else 160)
    where = environment()
    sets, rows = {}, []
    for name in options.sets:
        sets[name], found = run_set(Path(options.data) / f"{name}.h5ad", options, console)
        rows += found
    summary = summarise(rows)
    Results(options.out, KEY).update(
        environments=[where],
        settings={
            "config": asdict(ScamacConfig()),
            "ingest": asdict(IngestConfig()),
            "pca": PREPARATION,
            "pseudotime": {**GRAPH, "more": MORE},
        },
        note=NOTE,
        sets=sets,
        summary=summary,
        runs=[{**row, "environment": 0} for row in rows],
    )
    console.print(show(summary, sets))


if __name__ == "__main__":
    main()
