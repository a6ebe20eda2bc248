"""Markers of all genes for every type of an atlas: ours, streamed, beside scanpy in memory on the same cells.

Atlases are resampled from a real labelled set (`simulate --from`), so that genes, depths and sparsity are real; the groups are its
types. Each run is a process of its own, and includes reading the atlas and writing the table. `ours`: `markers` into a zarr with the
columns of these cells. `scanpy`: read, normalize_total to the same total, log1p, rank_genes_groups (t-test, with shares of cells);
where it was run, the largest difference of each column from its table stands beside ours.

    python benchmarks/markers.py --cells 100000
    python benchmarks/markers.py --cells 1000000 --methods ours
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OUT = Path(__file__).resolve().parent / "results" / "markers.json"
TARGET = 1000.0
COLUMNS = ("scores", "logfoldchanges", "pvals", "pvals_adj")
FIELDS = {
    "seconds": "wall clock of the run, imports and compiling left out",
    "cpu_seconds": "of the process and its children",
    "peak_bytes": "highest resident memory of the process, interpreter and libraries included",
    "difference": "largest of a column from that of scanpy, all genes and groups: of scores and fold changes as a share of 1 + |value|",
    "same_top": "share of the best 100 genes of a group, place by place, that are those of scanpy; mean over groups",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", default="zheng_facs3774.h5ad", help="labelled counts; in $SCAMAC_DATA, or a path")
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, help="for the atlases; default: the temporary one")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make_result(atlas: Path, out: Path) -> Path:
    """What predict leaves of the cells of an atlas, as far as markers look at it; all genes count for a total."""
    import zarr
    from anndata import AnnData
    from anndata.io import read_elem, write_elem

    from scamac_scale.cells.genes import GeneSpace

    group: Any = zarr.open_group(atlas, mode="r")
    obs, var = read_elem(group["obs"]), read_elem(group["var"])
    names = tuple(map(str, var.index))
    space = GeneSpace("counts", TARGET, names, names[:100])
    uns = {"scamac": {"gene_space": json.dumps(space.to_dict())}}
    result = AnnData(obs=obs[["cell_type"]], var=var.iloc[:100][[]], uns=uns)
    write_elem(zarr.open_group(out, mode="w", zarr_format=3), "/", result, dataset_kwargs={"shards": None})
    return out


def run_ours(atlas: Path) -> Any:
    """Rank into a result beside the atlas; its table."""
    import zarr
    from anndata.io import read_elem

    from scamac_scale import markers

    out = atlas.with_name("result.zarr")
    markers(out, atlas, groupby="cell_type")
    group: Any = zarr.open_group(out, mode="r")
    return read_elem(group["uns/rank_genes_groups"])


def run_scanpy(atlas: Path) -> Any:
    """Rank in memory; the table."""
    import anndata as ad
    import scanpy as sc

    adata = ad.read_zarr(atlas)
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=TARGET)
    sc.pp.log1p(adata)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    sc.tl.rank_genes_groups(adata, "cell_type", method="t-test", pts=True)
    return adata.uns["rank_genes_groups"]


METHODS: dict[str, Callable[[Path], Any]] = {"scanpy": run_scanpy, "ours": run_ours}


def warm_up(name: str, folder: Path) -> None:
    """Import and compile what a method uses, on a few cells."""
    from scamac_scale import simulate

    atlas = simulate(folder / "warm.zarr", 3000, n_genes=200)
    make_result(atlas, folder / "result.zarr")
    METHODS[name](atlas)


def run_child(name: str, atlas: Path) -> dict[str, Any]:
    """One method on one atlas, in a process of its own; the table lies beside it then."""
    with tempfile.TemporaryDirectory(dir=atlas.parent) as made:
        warm_up(name, Path(made))
    before = os.times()
    with measure() as cost:
        table = METHODS[name](atlas)
    after = os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    groups = table["names"].dtype.names
    arrays = {f"{column}/{at}": table[column][group] for column in COLUMNS for at, group in enumerate(groups)}
    names = {f"names/{at}": np.array(table["names"][group], dtype=str) for at, group in enumerate(groups)}
    np.savez(atlas.with_name(f"{name}.npz"), **arrays, **names)
    return {
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds + children,
        "peak_bytes": cost.peak_bytes,
        "n_groups": len(groups),
        "n_genes": len(table["names"]),
    }


def compare(ours: Any, theirs: Any) -> dict[str, Any]:
    """Largest difference of each column, gene by gene, and how many of the best genes are the same."""
    found: dict[str, Any] = dict.fromkeys(COLUMNS, 0.0)
    same = []
    n_groups = sum(name.startswith("names/") for name in ours)
    for at in range(n_groups):
        a, b = np.argsort(ours[f"names/{at}"]), np.argsort(theirs[f"names/{at}"])
        if (ours[f"names/{at}"][a] != theirs[f"names/{at}"][b]).any():
            raise SystemExit("the two tables are of other genes")
        same.append(float((ours[f"names/{at}"][:100] == theirs[f"names/{at}"][:100]).mean()))
        for column in COLUMNS:
            x, y = (table[f"{column}/{at}"][order].astype(float) for table, order in ((ours, a), (theirs, b)))
            scale = 1.0 if column.startswith("pvals") else 1.0 + np.abs(y)
            found[column] = max(found[column], float(np.max(np.abs(x - y) / scale)))
    return {"difference": found, "same_top": float(np.mean(same))}


def source_of(name: str) -> Path:
    """Find the labelled set."""
    path = Path(os.environ.get("SCAMAC_DATA", "."), name)
    return path if path.exists() else Path(name)


def run(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """All runs, each kept when it has ended."""
    from scamac_scale import resample

    results, where, runs = Results(options.out, ("source", "n_cells", "method")), environment(), []
    results.update(fields=FIELDS)
    for n_cells in options.cells:
        with tempfile.TemporaryDirectory(dir=options.folder) as made:
            folder = Path(made)
            atlas = Path(resample(source_of(options.source), folder / "atlas.zarr", n_cells=n_cells))
            make_result(atlas, folder / "result.zarr")
            for name in sorted(options.methods, reverse=True):  # scanpy first, to compare with
                console.print(f"{n_cells:,} cells, {name}")
                command = [sys.executable, __file__, "--child", name, str(atlas)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                about = {"source": Path(options.source).stem, "n_cells": n_cells, "method": name}
                if done.returncode:
                    found: dict[str, Any] = {"error": done.stderr.strip()[-300:]}
                else:
                    found = json.loads(done.stdout.splitlines()[-1])
                    if name == "ours" and (folder / "scanpy.npz").exists():
                        found |= compare(np.load(folder / "ours.npz"), np.load(folder / "scanpy.npz"))
                runs.append(about | found)
                results.add(runs[-1], where)
    return runs


def show(runs: Sequence[dict[str, Any]]) -> Table:
    """The table for a person."""
    table = Table("cells", "method", "s", "CPU s", "peak MB", "largest difference of a score", "same best 100")
    for each in runs:
        if "error" in each:
            table.add_row(f"{each['n_cells']:,}", each["method"], each["error"][:60])
            continue
        difference = f"{each['difference']['scores']:.1e}" if "difference" in each else ""
        same = f"{each['same_top']:.3f}" if "same_top" in each else ""
        cost = (f"{each['seconds']:.1f}", f"{each['cpu_seconds']:.1f}", f"{each['peak_bytes'] / 1e6:,.0f}")
        table.add_row(f"{each['n_cells']:,}", each["method"], *cost, difference, same)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    options = parse(arguments)
    if options.child:
        print(json.dumps(run_child(options.child[0], Path(options.child[1]))))
        return
    console = Console()
    console.print(show(run(options, console)))


if __name__ == "__main__":
    main()
