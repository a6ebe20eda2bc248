"""The two largest sets of the paper at their sizes, drawn and not real: the peak memory of each command, by each config.

Chen: 14,437 cells x 23,284 genes of 47 types. Bhattacharjee: 24,822 x 21,000 of 8. What the published code needs is by the law that was fitted to it,
0.4 GB + 0.82 MB x N + 241 bytes x N^2. `configs/paper.yaml` takes one epoch of its 250: memory does not depend on their number.

    python benchmarks/paper_sizes.py [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas import run_command
from quality import THREAD_SETTINGS
from record import Results, environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "results" / "paper_sizes.json"
SHAPES = {"Chen": (14_437, 23_284, 47), "Bhattacharjee": (24_822, 21_000, 8)}
"""Cells, genes, types."""
CONFIGS = {
    "default": (),
    "paper": ("--config", ROOT / "configs" / "paper.yaml", "--train.pretrain.epochs", 1, "--train.rounds", 1),
}
KEY = ("set", "config")


def published_gb(n_cells: int) -> float:
    """Memory that the published code needs, GB."""
    return 0.4 + 0.82e-3 * n_cells + 241e-9 * n_cells**2


def run(name: str, config: str, folder: Path) -> dict[str, Any]:
    """Draw the cells, and run the commands on them."""
    cells, genes, types = SHAPES[name]
    atlas, store, fit, out = (folder / part for part in ("atlas.zarr", "store.zarr", "run", "out.zarr"))
    run_command("simulate", "--cells", cells, "--genes", genes, "--types", types, "--out", atlas)
    return {
        "cells": cells,
        "genes": genes,
        "types": types,
        "commands": {
            "ingest": run_command("ingest", atlas, "--out", store),
            "train": run_command("train", "--store", store, "--run", fit, *CONFIGS[config], "--n-clusters", types),
            "predict": run_command("predict", "--run", fit, "--input", store, "--out", out),
        },
        "published_gb": round(published_gb(cells), 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both sets by both configs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(arguments)
    for variable in THREAD_SETTINGS:
        os.environ[variable] = str(args.threads)
    results, where = Results(args.out, KEY), environment()
    for name in args.sets:
        for config in args.configs:
            with tempfile.TemporaryDirectory() as folder:
                results.add({"set": name, "config": config, **run(name, config, Path(folder))}, where)
    table = Table("set", "config", "ingest, MB", "train, MB", "predict, MB", "train, CPU s", "published code, GB")
    for row in results.read()["runs"]:
        peaks = [f"{row['commands'][part]['peak_mb']:,}" for part in ("ingest", "train", "predict")]
        table.add_row(
            row["set"],
            row["config"],
            *peaks,
            f"{row['commands']['train']['cpu_seconds']:.0f}",
            str(row["published_gb"]),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
