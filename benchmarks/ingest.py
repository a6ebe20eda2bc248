"""Raw counts to what a fit reads: ours against scanpy in memory and on dask, on the same file.

Atlases are resampled from a real labelled set (`simulate --from`), so that genes, depths and sparsity are real. Each run is a process
of its own; its pages are in the cache, for all methods read the file once before (`cat`). `scanpy`: read, filter_genes (5 % of the
cells), normalize_total, log1p, highly_variable_genes (2,000, seurat), write. `scanpy on dask`: the same on dask arrays of the same
file, as its documentation has it. `ours`: `ingest`. Chosen genes are compared. `files`: one file against several that hold the same
cells, values compared.

    python benchmarks/ingest.py --source zheng_facs3774.h5ad --cells 100000 300000
    python benchmarks/ingest.py --cells 1000000 --methods ours --files 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OUT = Path(__file__).resolve().parent / "results" / "ingest.json"
N_GENES = 2000
MIN_SHARE = 0.05
DASK_CELLS = 4096
FIELDS = {
    "seconds": "wall clock of the run, imports and compiling left out, median over rounds; all rounds beside it",
    "cpu_seconds": "of the process and its children",
    "peak_bytes": "highest resident memory of the process, interpreter and libraries included; with workers, of the client alone",
    "same_genes": "how many of the chosen genes are those of scanpy in memory",
    "values_sha256": "of the values and genes of all cells, as stored",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", default="zheng_facs3774.h5ad", help="labelled counts; in $SCAMAC_DATA, or a path")
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--files", type=int, default=1, help="also the same cells in so many files, ours alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the atlases; default: the temporary one")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_ours(inputs: Sequence[Path], out: Path) -> list[str]:
    """Ingest; the chosen genes."""
    from scamac_scale import IngestConfig, ingest
    from scamac_scale.store.reader import StoreReader

    data: Any = inputs[0] if len(inputs) == 1 else list(inputs)
    ingest(data, out, IngestConfig(n_genes=N_GENES, min_cell_fraction=MIN_SHARE))
    with StoreReader(out) as store:
        return list(store.gene_names)


def run_scanpy(inputs: Sequence[Path], out: Path) -> list[str]:
    """The same in memory."""
    import anndata as ad

    return _scanpy(ad.read_zarr(inputs[0]), out)


def run_dask(inputs: Sequence[Path], out: Path) -> list[str]:
    """The same on dask arrays, one block of cells at a time."""
    import anndata as ad
    import zarr
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    group: Any = zarr.open_group(str(inputs[0]), mode="r")
    n_genes = group["X"].attrs["shape"][1]
    x = read_elem_lazy(group["X"], chunks=(DASK_CELLS, n_genes))
    return _scanpy(ad.AnnData(x, obs=read_elem(group["obs"]), var=read_elem(group["var"])), out)


def _scanpy(adata: Any, out: Path) -> list[str]:
    import numpy as np
    import scanpy as sc

    sc.pp.filter_genes(adata, min_cells=int(np.ceil(MIN_SHARE * adata.n_obs)))
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES, flavor="seurat")
    chosen = adata[:, adata.var["highly_variable"]]
    chosen.write_zarr(out)
    return list(chosen.var_names)


METHODS: dict[str, Callable[[Sequence[Path], Path], list[str]]] = {
    "ours": run_ours,
    "scanpy": run_scanpy,
    "scanpy on dask": run_dask,
}


def warm_up(name: str, folder: Path) -> None:
    """Import and compile what a method uses, on a few cells."""
    from scamac_scale import simulate

    atlas = simulate(folder / "warm.zarr", 3000, n_genes=2500)
    METHODS[name]([atlas], folder / "warm-out.zarr")


def run_child(name: str, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
    """One method on one atlas; runs in a process of its own."""
    with tempfile.TemporaryDirectory(dir=out.parent) as made:
        warm_up(name, Path(made))
    before = os.times()
    with measure() as cost:
        genes = METHODS[name](inputs, out)
    after = os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds + children,
        "peak_bytes": cost.peak_bytes,
        "genes": genes,
        "values_sha256": values_sha256(out) if name == "ours" else None,
    }


def values_sha256(store: Path) -> str:
    """Digest of the two large arrays of a store, file by file."""
    digest = hashlib.sha256()
    for array in ("data", "indices", "indptr"):
        for path in sorted((store / "X" / array / "c").iterdir()):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while piece := file.read(2**24):
                    digest.update(piece)
    return digest.hexdigest()


def in_child(name: str, inputs: Path, out: Path) -> dict[str, Any]:
    """Run `run_child` in a process of its own, and take its output away."""
    for path in sorted(inputs.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:  # into the cache
                while file.read(2**24):
                    pass
    try:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name, str(inputs), str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return {"error": f"ended with {done.returncode}"}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        shutil.rmtree(out, ignore_errors=True)


def compare(options: argparse.Namespace, folder: Path, n_cells: int, results: Results) -> None:
    """All methods on one atlas, in turns over the rounds."""
    from scamac_scale import resample

    source = Path(options.source)
    if not source.exists():
        source = Path(os.environ["SCAMAC_DATA"]) / source
    places = {"one file": resample(source, folder / "atlas.zarr", n_cells=n_cells)}
    if options.files > 1:
        places[f"{options.files} files"] = resample(source, folder / "files", n_cells=n_cells, n_files=options.files)
    wanted = [(name, "one file") for name in options.methods]
    wanted += [("ours", place) for place in places if place != "one file"]
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in wanted}
    for _ in range(options.rounds):
        for name, place in wanted:
            rounds[name, place].append(in_child(name, places[place], folder / "out.zarr"))
    where = environment()
    reference = rounds.get(("scanpy", "one file"), [{}])[0].get("genes")
    for (name, place), runs in rounds.items():
        about = {"cells": n_cells, "method": name, "input": place, "source": source.name}
        results.add({**about, **summary(runs, reference)}, where)
    for path in places.values():
        shutil.rmtree(path)


def summary(runs: Sequence[dict[str, Any]], reference: list[str] | None) -> dict[str, Any]:
    """Medians over the rounds of one method."""
    wrong = next((run["error"] for run in runs if "error" in run), None)
    if wrong is not None:
        return {"error": wrong}
    row: dict[str, Any] = {}
    for name in ("seconds", "cpu_seconds", "peak_bytes"):
        values = [run[name] for run in runs]
        row |= {name: statistics.median(values), f"{name}_all": values}
    digests = {run["values_sha256"] for run in runs}
    row["values_sha256"] = digests.pop() if len(digests) == 1 else "differs between rounds"
    row["n_genes"] = len(runs[0]["genes"])
    row["same_genes"] = None if reference is None else len(set(reference) & set(runs[0]["genes"]))
    return row


def show(results: Results, console: Console) -> None:
    """One line a run."""
    table = Table(title="ingest", show_lines=False)
    for column in ("cells", "method", "input", "s", "CPU s", "peak MB", "same genes", "values"):
        table.add_column(column, justify="right")
    for run in results.read()["runs"]:
        if "error" in run:
            table.add_row(f"{run['cells']:,}", run["method"], run["input"], run["error"])
            continue
        numbers = [f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}", f"{run['peak_bytes'] / 1e6:,.0f}"]
        same = "-" if run["same_genes"] is None else f"{run['same_genes']} of {run['n_genes']}"
        table.add_row(
            f"{run['cells']:,}", run["method"], run["input"], *numbers, same, (run["values_sha256"] or "-")[:8]
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(arguments)
    if options.child:
        name, inputs, out = options.child
        path = Path(inputs)
        paths = [path] if (path / "zarr.json").exists() else sorted(path.iterdir())
        print(json.dumps(run_child(name, paths, Path(out))))
        return
    results = Results(options.out, ("cells", "method", "input"))
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        for n_cells in options.cells:
            compare(options, Path(made), n_cells, results)
    results.update(fields=FIELDS)
    show(results, Console())


if __name__ == "__main__":
    main()
