"""What does an epoch of training cost from disk, beside the same training on cells in memory?

One process, rounds interleaved, real gradient steps of the default recipe: from the store (both profiles) cell by cell of the same
plan, from the same cells held in memory, and with one batch used again and again, which is the network alone.

    python benchmarks/train_feed.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.train.recipe import Tools
    from scamac_scale.train.state import FitState

OUT = Path(__file__).resolve().parent / "results" / "train_feed.json"
CASES = {"memory": ("fast", "host"), "store, fast": ("fast", "none"), "store, small": ("small", "none")}
"""Name to the profile of the store and where its cells are kept."""
BASELINE = "memory"


def make_fit(path: Path, cache: str, batch_cells: int) -> tuple[Tools, FitState]:
    """Build a network of the default recipe over a store, whose source is for the caller to close."""
    from scamac_scale.config import PhaseConfig, ScamacConfig
    from scamac_scale.sources import open_source
    from scamac_scale.train.fit import build_network, gather_tools
    from scamac_scale.train.placement import launch
    from scamac_scale.train.state import FitState

    config = ScamacConfig()
    train = replace(config.train, batch_cells=batch_cells, pretrain=PhaseConfig(epochs=1), accelerator="cpu")
    config = replace(config, train=train, loader=replace(config.loader, cache=cache))
    source = open_source(path, loader=config.loader)
    fabric = launch(config.train)
    state = FitState(build_network(source, config).to(fabric.device))
    return gather_tools(fabric, state, source, config), state


def compute_only(tools: Tools, state: FitState) -> float:
    """Seconds of an epoch of steps on one batch that is there already."""
    from scamac_scale.loader.feed import Batch, Feed
    from scamac_scale.train.state import PRETRAINING

    stepper, train = tools.stepper, tools.config.train
    with Feed(tools.source) as feed:
        first = next(iter(feed.run(stepper.plan)))
        batch = Batch(first.rows, first.values.clone())
    optimizer, _ = state.optimizer(PRETRAINING, train)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    began = time.perf_counter()
    for _ in range(stepper.plan.n_batches):
        stepper._step(state, train.pretrain, batch, optimizer, tools.world)
    return time.perf_counter() - began


def compare(folder: Path, n_cells: int, n_genes: int, batch_cells: int, rounds: int) -> dict[str, Any]:
    """Run the rounds."""
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.pipeline import ingest
    from scamac_scale.simulation.drawn import simulate
    from scamac_scale.train.recipe import pretrain
    from scamac_scale.train.state import FitState

    atlas = simulate(folder / "atlas.zarr", n_cells, n_genes=n_genes, counts_per_gene=0.3)
    stores = {name: ingest(atlas, folder / f"{name}.zarr", IngestConfig(profile=name)) for name in ("fast", "small")}
    fits = {name: make_fit(stores[store], cache, batch_cells) for name, (store, cache) in CASES.items()}
    tools, state = fits[BASELINE]
    alone = FitState(state.network)  # the same network, by an optimizer of its own
    seconds: dict[str, list[float]] = {name: [] for name in (*CASES, "network alone")}
    for round_number in range(rounds + 1):  # the first one warms up
        for name, fit in fits.items():
            began = time.perf_counter()
            pretrain(*fit)
            seconds[name].append(time.perf_counter() - began)
        seconds["network alone"].append(compute_only(tools, alone))
        if round_number == 0:
            seconds = {name: [] for name in seconds}
    sizes = {"n_genes": len(tools.source.gene_names), "bytes_per_cell": tools.source.load_bytes / n_cells}
    for opened, _ in fits.values():
        opened.source.close()
    return {"n_cells": n_cells, "batch_cells": batch_cells, "rounds": rounds, **sizes, "cases": summary(seconds)}


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians, spread, and the ratio to memory within each round."""
    found = {}
    for name, times in seconds.items():
        ratios = [mine / base for mine, base in zip(times, seconds[BASELINE], strict=True)]
        found[name] = {
            "seconds_median": statistics.median(times),
            "seconds_best": min(times),
            "seconds_worst": max(times),
            "ratio_median": statistics.median(ratios),
            "ratio_best": min(ratios),
            "ratio_worst": max(ratios),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--batch-cells", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sizes = options.cells, options.genes, options.batch_cells, options.rounds
        found = compare(Path(folder), *sizes)
    where = environment()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": where, **found}, indent=1) + "\n")
    table = Table(
        title=f"An epoch of {found['n_cells']:,} cells x {found['n_genes']:,} genes, batches of {options.batch_cells}"
    )
    for column in ("cells from", "seconds", "over memory", "best", "worst"):
        table.add_column(column, justify="left" if column == "cells from" else "right")
    for name, case in found["cases"].items():
        ratios = (case["ratio_median"], case["ratio_best"], case["ratio_worst"])
        table.add_row(name, f"{case['seconds_median']:.2f}", *(f"{ratio:.3f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
