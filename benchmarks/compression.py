"""Which compression shall the `small` profile have? Size and decoding time of the two large arrays of a store, codec by codec.

One thread, chunks as the store has them, values and genes of simulated counts; codecs in turns over several rounds.

    python benchmarks/compression.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = Path(__file__).resolve().parent / "results" / "compression.json"
CODECS: dict[str, tuple[tuple[str, int, int], tuple[str, int, int]]] = {
    "zstd 1": (("zstd", 1, 0), ("zstd", 1, 0)),
    "zstd 1, bytes shuffled": (("zstd", 1, 1), ("zstd", 1, 1)),
    "LZ4": (("lz4", 5, 0), ("lz4", 5, 0)),
    "LZ4, bytes shuffled": (("lz4", 5, 1), ("lz4", 5, 1)),
    "LZ4, bits of counts and bytes of genes shuffled (the profile)": (("lz4", 5, 2), ("lz4", 5, 1)),
    "LZ4, bits shuffled": (("lz4", 5, 2), ("lz4", 5, 2)),
}
"""Name to (compressor, level, shuffle) of the counts and of the genes, all in Blosc frames."""


def chunks_of(n_cells: int, n_genes: int) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Whole chunks of counts and genes of a store, and the values per cell."""
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.pipeline import ingest
    from scamac_scale.simulation.drawn import simulate
    from scamac_scale.store.layout import Sizes
    from scamac_scale.store.reader import StoreReader

    with tempfile.TemporaryDirectory() as folder:
        atlas = simulate(Path(folder) / "atlas.zarr", n_cells, n_genes=n_genes, counts_per_gene=0.3)
        settings = IngestConfig(n_genes=n_genes, min_cell_fraction=0.0)
        with StoreReader(ingest(atlas, Path(folder) / "store.zarr", settings)) as store:
            size = Sizes().chunk_values
            edges = range(0, store.n_values - size + 1, size)
            arrays = []
            for shards, dtype in ((store._values, store.value_dtype), (store._genes, np.dtype(np.uint16))):
                whole = np.empty(store.n_values, dtype)
                shards.read(0, store.n_values, whole)
                arrays.append([whole[edge : edge + size].copy() for edge in edges])
            return arrays[0], arrays[1], store.n_values / store.n_cells


def compare(n_cells: int, n_genes: int, rounds: int) -> dict[str, Any]:
    """Encode once, decode in turns."""
    from numcodecs import Blosc

    counts, genes, per_cell = chunks_of(n_cells, n_genes)
    raw_bytes = sum(chunk.nbytes for chunk in (*counts, *genes))
    cells = sum(chunk.size for chunk in counts) / per_cell
    encoded, seconds = {}, {name: [] for name in CODECS}
    for name, kinds in CODECS.items():
        made = [Blosc(cname=cname, clevel=level, shuffle=shuffle) for cname, level, shuffle in kinds]
        encoded[name] = [
            (made[i], chunk.dtype, made[i].encode(chunk)) for i, part in enumerate((counts, genes)) for chunk in part
        ]
    held = {chunk.dtype: np.empty_like(chunk) for chunk in (counts[0], genes[0])}
    for _ in range(rounds):
        for name, frames in encoded.items():
            began = time.perf_counter()
            for codec, dtype, frame in frames:
                codec.decode(frame, held[dtype])
            seconds[name].append(time.perf_counter() - began)
    table = {
        name: {
            "share_of_bytes": sum(len(frame) for *_, frame in encoded[name]) / raw_bytes,
            "decode_us_per_cell": 1e6 * statistics.median(times) / cells,
            "decode_us_per_cell_best": 1e6 * min(times) / cells,
            "decode_us_per_cell_worst": 1e6 * max(times) / cells,
        }
        for name, times in seconds.items()
    }
    types = {"counts": str(counts[0].dtype), "genes": str(genes[0].dtype)}
    return {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "values_per_cell": per_cell,
        "types": types,
        "rounds": rounds,
        "codecs": table,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    found = compare(options.cells, options.genes, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")
    table = Table(title=f"{found['values_per_cell']:.0f} values a cell, {found['types']}")
    for column in ("codec", "of the bytes", "decoding, us per cell"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for name, row in found["codecs"].items():
        table.add_row(name, f"{row['share_of_bytes']:.2f}", f"{row['decode_us_per_cell']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
