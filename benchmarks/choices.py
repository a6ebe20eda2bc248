"""Two choices of the default recipe that differ from the literature, each by a measure that needs no labels.

Noise: how well does the network reconstruct clean cells, which inference sees, after training with uniform noise in [0, 1]
(the published code) or in [-0.5, 0.5]? Members: without a given number of clusters, how well do the clusters found on two
random samples of landmarks agree (ARI between them), if the methods that need a number take what Leiden finds in their space, or one
number for all, that of Leiden at resolution 1 in the widest space?

    python benchmarks/choices.py --data FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from methods import LabelledSet, nearest_center, scaled_input
from record import environment
from rich.console import Console
from rich.table import Table
from sets import is_chosen

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUT = Path(__file__).resolve().parent / "results" / "choices.json"
NOISE = {"0 to 1": (0.0, 1.0), "-0.5 to 0.5": (-0.5, 0.5)}
MEMBERS = {"Leiden's in each space": None, "one, of Leiden r = 1": 1.0}
CUT_HEIGHT = 0.6
SAMPLE = 0.9  # of the cells of a set that is smaller than the landmarks


def clean_error(path: Path, low: float, high: float, seed: int) -> float:
    """Mean squared error of the reconstruction of up to 1,000 clean cells, in units of the scaled input."""
    import torch

    from scamac_scale import ScAMAC, ScamacConfig
    from scamac_scale.nn.embed import EMBED_CELLS, forward_block
    from scamac_scale.sources import open_source
    from scamac_scale.train.clusters.selection import read_cells, sample_rows

    config = ScamacConfig(seed=seed)
    config = replace(config, input=replace(config.input, noise_low=low, noise_high=high))
    fitted = ScAMAC(config=config).fit(path).fitted
    with open_source(path, fitted.genes) as source:
        x = read_cells(source, sample_rows(source.n_cells, EMBED_CELLS, seed, "clean cells"), fitted.network)
    with torch.no_grad():
        return float((forward_block(fitted.network, x).output[: len(x)] - x).square().mean())


def labels_of_sample(points: NDArray[np.float64], resolution: float | None, seed: int) -> NDArray[np.int64]:
    """Clusters of all cells from the consensus of one sample of landmarks, the tree cut at its height."""
    from scamac_scale.config import StartConfig
    from scamac_scale.train.clusters import consensus
    from scamac_scale.train.clusters.association import consensus_tree
    from scamac_scale.train.clusters.graph import fuzzy_graph, leiden

    start = StartConfig()
    n_rows = min(start.landmark_cells, int(SAMPLE * len(points)))
    rows = np.sort(np.random.default_rng(seed).permutation(len(points))[:n_rows])
    sources = {"input": points[rows]}
    weights = np.ones(n_rows)
    spaces, found = consensus.build_spaces(sources, weights, start.components)
    count = None
    if resolution is not None:
        count = int(leiden(fuzzy_graph(spaces[-2].project(found["input"])), resolution, seed).max()) + 1
    members = consensus.cluster_members(found, weights, spaces, count, seed)
    tree = consensus_tree(members, weights)
    labels = tree.labels(tree.count_at(CUT_HEIGHT))
    mean, axes = consensus.principal_axes(points[rows], max(start.components))
    projected = (points - mean) @ axes
    return nearest_center(projected, consensus.cluster_means(projected[rows], labels, int(labels.max()) + 1))


def agreement(points: NDArray[np.float64], resolution: float | None, seeds: int) -> float:
    """Mean ARI between the clusters from every two samples."""
    from sklearn.metrics import adjusted_rand_score

    found = [labels_of_sample(points, resolution, seed) for seed in range(seeds)]
    return float(np.mean([adjusted_rand_score(*pair) for pair in itertools.combinations(found, 2)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files")
    parser.add_argument("--label", default="cell_type", help="column of obs; counted, not used")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise-max-cells", type=int, default=1500, help="largest set for the noise, which needs fits")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.data is None:
        parser.error("name a folder of .h5ad files with --data, or in SCAMAC_DATA")

    from scamac_scale.config import InputConfig

    rows: list[dict[str, Any]] = []
    for path in sorted(Path(options.data).glob("*.h5ad"), key=lambda file: file.stat().st_size):
        if not is_chosen(path.stem, "single"):
            continue
        data = LabelledSet(path, options.label)
        points = scaled_input(data.prepared()[0], InputConfig())
        row: dict[str, Any] = {"set": data.name, "cells": data.n_cells}
        row["agreement"] = {name: agreement(points, value, options.seeds) for name, value in MEMBERS.items()}
        if data.n_cells <= options.noise_max_cells:
            row["clean_error"] = {
                name: float(np.mean([clean_error(path, *bounds, seed) for seed in range(options.seeds)]))
                for name, bounds in NOISE.items()
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    means = {
        part: {name: float(np.mean([row[part][name] for row in rows if part in row])) for name in names}
        for part, names in (("clean_error", NOISE), ("agreement", MEMBERS))
    }
    report = {"seeds": options.seeds, "means": means, "sets": rows, "environment": environment()}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    table = Table("measure", "choice", "mean over sets", "sets")
    for part, values in means.items():
        for name, value in values.items():
            table.add_row(part, name, f"{value:.3f}", str(sum(part in row for row in rows)))
    Console().print(table)


if __name__ == "__main__":
    main()
