"""How much memory does an epoch take at 1 and 5 million cells, and how much does each of several ranks read?

Stores of random counts are written directly, without an atlas before them. Every epoch runs in a process of its own, which reports its
highest memory and the bytes that it asked the system for.

    python benchmarks/feed_memory.py --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy import sparse

OUT = Path(__file__).resolve().parent / "results" / "feed_memory.json"
WRITTEN_CELLS = 16384
BATCH_CELLS = 4096


def random_blocks(n_cells: int, n_genes: int, n_values: int) -> Iterator[sparse.csr_matrix]:
    """Counts of 1 to 9 in `n_values` random genes of each cell; every block is a shift of the first."""
    from scipy import sparse

    rng = np.random.default_rng(0)
    step = n_genes // n_values
    genes = np.arange(n_values) * step + rng.integers(0, step, (WRITTEN_CELLS, n_values))
    counts = rng.integers(1, 10, genes.size).astype(np.uint8)
    for start in range(0, n_cells, WRITTEN_CELLS):
        size = min(WRITTEN_CELLS, n_cells - start)
        order = rng.permutation(WRITTEN_CELLS)[:size]
        indptr = np.arange(size + 1) * n_values
        parts = (counts[: size * n_values], genes[order].ravel().astype(np.int32), indptr)
        block = sparse.csr_matrix(parts, shape=(size, n_genes))
        block.has_canonical_format = True
        yield block


def write(path: Path, n_cells: int, n_genes: int, n_values: int) -> float:
    """Write a store of random counts; gives the seconds that it took."""
    import pandas as pd

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.config import IngestConfig
    from scamac_scale.store import layout
    from scamac_scale.store.writer import StoreHeader, write_store

    genes = tuple(f"gene{i}" for i in range(n_genes))
    header = StoreHeader(
        gene_space=GeneSpace("counts", 1e4, genes, genes),
        value_dtype=np.dtype(np.uint8),
        n_values=n_cells * n_values,
        config=IngestConfig(shuffle=False),
    )
    totals = np.full(n_cells, 5.0 * n_values)
    index = pd.Index(np.arange(n_cells).astype(str), dtype=object)
    obs = pd.DataFrame({layout.TOTAL: totals, layout.SOURCE_ROW: np.arange(n_cells)}, index=index)
    var = pd.DataFrame({"n_cells": np.zeros(n_genes)}, index=list(genes))
    began = time.perf_counter()
    write_store(path, random_blocks(n_cells, n_genes, n_values), header=header, obs=obs, var=var, overwrite=True)
    return time.perf_counter() - began


def read_epoch(path: Path, rank: int, size: int) -> dict[str, Any]:
    """Read one epoch, and part of the next; runs in a process of its own."""
    from record import _peak_bytes

    from scamac_scale.loader.feed import Feed
    from scamac_scale.loader.plan import EpochPlan, window_sizes
    from scamac_scale.ranks.world import World
    from scamac_scale.store.reader import StoreReader

    before = _peak_bytes()
    with StoreReader(path) as source, Feed(source) as feed:
        opened, read_before = _peak_bytes(), _read_bytes()
        sizes: dict[str, Any] = window_sizes(source.n_cells, source.csr_bytes)
        plan = EpochPlan(source.n_cells, BATCH_CELLS, 0, World(rank, size), **sizes)
        began, n_cells, held = time.perf_counter(), 0, 0
        for batch in feed.run(plan):
            n_cells += len(batch.rows)
            held = max(held, feed.memory_bytes())
        seconds = time.perf_counter() - began
        return {
            "n_cells": source.n_cells,
            "rank": rank,
            "ranks": size,
            "delivered_cells": n_cells,
            "seconds": seconds,
            "cells_per_s": n_cells / seconds,
            "read_bytes": _read_bytes() - read_before,
            "imported_bytes": before,
            "opened_bytes": opened,
            "feed_bytes": held,
            "peak_bytes": _peak_bytes(),
            **sizes,
        }


def _read_bytes() -> int:
    """Bytes that this process has asked the system to read, from the disk or the page cache."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def in_child(path: Path, rank: int, size: int) -> dict[str, Any]:
    """Run `read_epoch` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), "--rank", str(rank), "--ranks", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, sizes: Sequence[int], n_genes: int, n_values: int, ranks: int) -> dict[str, Any]:
    """Write the stores, and read them."""
    runs = []
    for n_cells in sizes:
        path = folder / f"random-{n_cells}.store.zarr"
        written_s = write(path, n_cells, n_genes, n_values)
        runs.append({**in_child(path, 0, 1), "written_s": written_s})
        runs += [in_child(path, rank, ranks) for rank in range(ranks)] if n_cells == sizes[0] else []
    alone = [run for run in runs if run["ranks"] == 1]
    shared = [run for run in runs if run["ranks"] == ranks]
    small, large = alone[0], alone[-1]
    extra = large["n_cells"] - small["n_cells"]
    return {
        "n_genes": n_genes,
        "values_per_cell": n_values,
        "memory_ratio": large["peak_bytes"] / small["peak_bytes"],
        "bytes_per_extra_cell": (large["peak_bytes"] - small["peak_bytes"]) / max(extra, 1),
        "is_within_bar": large["peak_bytes"] <= 1.1 * small["peak_bytes"] + 16 * extra,
        "read_share_of_a_rank": max(run["read_bytes"] for run in shared) / alone[0]["read_bytes"],
        "runs": runs,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="where the stores are written")
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--values", type=int, default=300, help="per cell")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(read_epoch(options.child, options.rank, options.ranks)))
        return
    if options.folder is None:
        parser.error("--folder is needed")
    options.folder.mkdir(parents=True, exist_ok=True)
    found = compare(options.folder, options.cells, options.genes, options.values, options.ranks)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")
    table = Table(title=f"An epoch in batches of {BATCH_CELLS:,}, {options.values} values per cell")
    for column in ("cells", "rank", "cells/s", "peak MB", "of it feed", "read MB"):
        table.add_column(column, justify="right")
    for run in found["runs"]:
        megabytes = [f"{run[name] / 1e6:,.0f}" for name in ("peak_bytes", "feed_bytes", "read_bytes")]
        table.add_row(
            f"{run['n_cells']:,}", f"{run['rank'] + 1}/{run['ranks']}", f"{run['cells_per_s']:,.0f}", *megabytes
        )
    Console().print(table)
    Console().print({name: value for name, value in found.items() if name != "runs"})


if __name__ == "__main__":
    main()
