"""Are the chosen genes those of scanpy, and which filter of genes should come before the choice?

Two parts, each with a JSON file of its own.

`parity`: every flavor on labelled sets, with and without batches, beside scanpy on the same genes (those that 5 % of the cells
express): how many genes both choose, and how far the largest difference of what they were ranked by is. Ours reads the file twice, in
blocks of other sizes, and must choose the same.

`min_cells`: whole fits, told the number of clusters, after the filter by a share of 5 % of the cells and by 3 and 10 cells. ARI over all
cells, and the F1 of the best matching cluster of every type that has less than 5 % of the cells, which is what a filter by share may lose.
Labels are only scored.

    python benchmarks/genes.py parity --data FOLDER --resume
    python benchmarks/genes.py min_cells --data FOLDER --seeds 2 --threads 1 --resume
    python benchmarks/genes.py min_cells --report
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import FAILURES, THREAD_SETTINGS, with_error
from record import Results, environment
from rich.console import Console
from rich.table import Table
from sets import find_set, is_chosen
from summary import TIE, set_means, standard_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from methods import LabelledSet, Method
    from numpy.typing import NDArray
    from pandas import DataFrame

RESULTS = Path(__file__).resolve().parent / "results"
KEYS = {"parity": ("set", "flavor", "batch", "n_genes"), "min_cells": ("set", "filter", "seed")}
FILES = {"parity": RESULTS / "genes.json", "min_cells": RESULTS / "min_cells.json"}
RANKED_BY = {
    "seurat": "dispersions_norm",
    "cell_ranger": "dispersions_norm",
    "seurat_v3": "variances_norm",
    "seurat_v3_paper": "variances_norm",
    "pearson_residuals": "residual_variances",
}
"""Flavor to what its genes are ranked by."""
COUNTS_ONLY = ("seurat_v3", "seurat_v3_paper", "pearson_residuals")
N_GENES = (500, 1000, 2000, 3000)
BLOCKS = (512, 4096)
FILTERS: dict[str, dict[str, float]] = {
    "share 0.05": {},
    "cells 10": {"min_cells": 10},
    "cells 3": {"min_cells": 3},
}
"""The first one is the default, which the others are compared with."""
RARE = 0.05
"""Share of the cells below which a type is rare."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("part", choices=KEYS)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument(
        "--sets", nargs="+", help="only these files, without .h5ad; default: all, or the 14 of quality.py"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument("--seeds", type=int, default=1, help="of min_cells: seeds 0 to this minus 1")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="nothing is run: the table of what the file holds")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    if not options.report and (options.data is None or not Path(options.data).is_dir()):
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    options.out = options.out or FILES[options.part]
    return options


# --- parity


def theirs(adata: AnnData, flavor: str, n_genes: int, batch: str | None) -> DataFrame:
    """What scanpy says of filtered counts."""
    import scanpy as sc

    adata = adata.copy()
    options = {"n_top_genes": n_genes, "batch_key": batch, "inplace": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if flavor == "pearson_residuals":
            return sc.experimental.pp.highly_variable_genes(adata, **options)
        if flavor not in COUNTS_ONLY:
            sc.pp.normalize_total(adata)
            sc.pp.log1p(adata)
        return sc.pp.highly_variable_genes(adata, flavor=flavor, **options)


def compare(path: Path, adata: AnnData, flavor: str, n_genes: int, batch: str | None) -> dict[str, Any]:
    """Both choices of one set."""
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.open import open_raw
    from scamac_scale.ingestion.statistics import measure

    began = time.process_time()
    table = theirs(adata, flavor, n_genes, batch)
    wanted = set(table.index[table["highly_variable"]])
    cost, found = time.process_time() - began, []
    began = time.process_time()
    for block_cells in BLOCKS:
        config = IngestConfig(flavor=flavor, n_genes=n_genes, batch_key=batch, block_cells=block_cells)
        with open_raw(path) as raw:
            found.append(measure(raw, config))
    ours = found[0].gene_space.chosen
    column = RANKED_BY[flavor]
    mine, known = (frame.loc[list(ours), column].to_numpy(float) for frame in (found[0].var, table))
    apart = np.abs(mine - known) / np.maximum(np.abs(known), 1e-12)
    return {
        "n_filtered": len(found[0].gene_space.filtered),
        "scanpy": len(wanted),
        "ours": len(ours),
        "same": len(wanted & set(ours)),
        "is_same_in_blocks": all(other.gene_space == found[0].gene_space for other in found),
        "largest_difference": float(f"{np.nanmax(apart[np.isfinite(apart)], initial=0.0):.2g}"),
        "cpu_seconds": round((time.process_time() - began) / len(BLOCKS), 2),
        "scanpy_cpu_seconds": round(cost, 2),
    }


def run_parity(options: argparse.Namespace, console: Console) -> int:
    """Compare every flavor on every set; the number of comparisons that failed."""
    import anndata
    import scanpy as sc

    results, where, failed = Results(options.out, KEYS["parity"]), environment(), 0
    paths = [path for path in Path(options.data).glob("*.h5ad") if not options.sets or path.stem in options.sets]
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        adata = anndata.read_h5ad(path)
        sc.pp.filter_genes(adata, min_cells=math.ceil(round(0.05 * adata.n_obs, 6)))
        is_whole = not (adata.X.data % 1).any()
        if (key := find_set(path.stem).batch) is not None:
            adata.obs[key] = adata.obs[key].astype(str).astype("category")
        for flavor, n_genes, batch in plan(adata.n_vars, key, is_whole=is_whole):
            run = {"set": path.stem, "flavor": flavor, "batch": batch or "", "n_genes": n_genes}
            if options.resume and tuple(run.values()) in results.done():
                continue
            try:
                run |= compare(path, adata, flavor, n_genes, batch)
            except FAILURES as error:
                run["error"] = f"{type(error).__name__}: {error}".replace(str(path), path.name)
                failed += 1
            results.add(run, where)
            console.print(run, highlight=False, markup=False, soft_wrap=True)
    return failed


def plan(n_filtered: int, key: str | None, *, is_whole: bool) -> Iterator[tuple[str, int, str | None]]:
    """What is compared on one set: flavor, number of genes, batch column."""
    for flavor in RANKED_BY:
        for n_genes in N_GENES:
            for batch in (None, key) if key else (None,):
                if n_genes < n_filtered and (is_whole or flavor not in COUNTS_ONLY):
                    yield flavor, n_genes, batch


def report_parity(held: dict[str, Any]) -> tuple[Table, list[dict[str, Any]]]:
    """One row for each flavor and number of genes, with and without batches."""
    table = Table("flavor", "batches", "genes", "sets", "all same", "fewest same", "largest difference", "blocks alike")
    rows = []
    for flavor in RANKED_BY:
        for has_batches in (False, True):
            for n_genes in N_GENES:
                runs = [
                    run
                    for run in held["runs"]
                    if (run["flavor"], bool(run["batch"]), run["n_genes"]) == (flavor, has_batches, n_genes)
                    and "error" not in run
                ]
                if runs:
                    row = {
                        "flavor": flavor,
                        "has_batches": has_batches,
                        "n_genes": n_genes,
                        "sets": len(runs),
                        "all_same": sum(run["same"] == run["scanpy"] == run["ours"] for run in runs),
                        "fewest_same": min(run["same"] for run in runs),
                        "largest_difference": max(run["largest_difference"] for run in runs),
                        "blocks_alike": sum(run["is_same_in_blocks"] for run in runs),
                    }
                    rows.append(row)
                    table.add_row(*map(str, row.values()))
    return table, rows


# --- filter


def rare_f1(truth: NDArray[np.str_], labels: NDArray[np.int64]) -> list[float]:
    """F1 of the best matching cluster of every type that has less than `RARE` of the labelled cells."""
    from rare import best_f1

    names, counts = np.unique(truth, return_counts=True)
    return [round(best_f1(truth == name, labels), 4) for name in names[counts < RARE * len(truth)]]


def filter_method(name: str) -> Method:
    """The default recipe after one of `FILTERS`."""
    from methods import scamac_method

    from scamac_scale.config import IngestConfig, ScamacConfig

    filtered: Any = FILTERS[name]
    return scamac_method(name, ScamacConfig(), IngestConfig(**filtered), is_told=True)


def n_passing(data: LabelledSet, name: str) -> int:
    """Genes that pass a filter."""
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.open import open_raw
    from scamac_scale.ingestion.statistics import measure

    filtered: Any = FILTERS[name]
    with open_raw(data.path) as raw:
        return len(measure(raw, IngestConfig(**filtered)).gene_space.filtered)


def run_filters(options: argparse.Namespace, console: Console) -> int:
    """Fit and score, small sets first, one seed after the other; the number of fits that failed."""
    from methods import LabelledSet, warm_up

    results, failed = Results(options.out, KEYS["min_cells"]), 0
    paths = sorted(Path(options.data).glob("*.h5ad"))
    sets = [LabelledSet(path, options.label) for path in paths if is_chosen(path.stem, "single", options.sets)]
    warm_up(["scamac"], 0)
    where = environment()
    methods = {name: filter_method(name) for name in FILTERS}
    for seed in range(options.seeds):
        for data in sorted(sets, key=lambda data: data.n_cells):
            for name, method in methods.items():
                run: dict[str, Any] = {"set": data.name, "filter": name, "seed": seed}
                if options.resume and tuple(run.values()) in results.done():
                    continue
                try:
                    labels, cost, latent = method.fit(data, seed)
                    assert latent is not None
                    run |= {**data.score(labels), **data.score_latent(latent), "n_passing": n_passing(data, name)}
                    run["rare_f1"] = rare_f1(data.truth[data.is_labelled], labels[data.is_labelled])
                    run["cpu_seconds"] = round(cost.cpu_seconds, 1)
                except FAILURES as error:
                    run["error"] = f"{type(error).__name__}: {error}".replace(str(data.path), data.path.name)
                    failed += 1
                results.add(run, where)
                console.print(run, highlight=False, markup=False, soft_wrap=True)
    return failed


def report_filters(held: dict[str, Any]) -> tuple[Table, list[dict[str, Any]]]:
    """Means over sets of every filter, and its differences from the default by pairs of the same set and seed."""
    table = Table(
        "filter", "sets", "seeds", "ARI", "15-NN", "F1 of rare types", "minus default: ARI", "won/lost/tied", "F1"
    )
    scored = {
        name: {(run["set"], run["seed"]): run for run in held["runs"] if run["filter"] == name and "ari" in run}
        for name in FILTERS
    }
    base, rows = scored[next(iter(FILTERS))], []
    for name, mine in scored.items():
        if not mine:
            continue
        both = mine.keys() & base.keys()
        apart = set_means({key: mine[key]["ari"] - base[key]["ari"] for key in both})
        with_rare = [key for key in both if mine[key]["rare_f1"]]
        rare = set_means({key: fmean(mine[key]["rare_f1"]) - fmean(base[key]["rare_f1"]) for key in with_rare})
        differences = list(apart.values())
        row = {
            "filter": name,
            "sets": len({key[0] for key in mine}),
            "seeds": len({key[1] for key in mine}),
            "ari": mean_of(mine, lambda run: run["ari"]),
            "neighbor_accuracy": mean_of(mine, lambda run: run.get("neighbor_accuracy")),
            "rare_f1": mean_of(mine, lambda run: fmean(run["rare_f1"]) if run["rare_f1"] else None),
            "ari_difference": fmean(differences),
            "ari_standard_error": standard_error(differences),
            "won": sum(value >= TIE for value in differences),
            "lost": sum(value <= -TIE for value in differences),
            "rare_f1_difference": fmean(rare.values()) if rare else None,
            "rare_f1_standard_error": standard_error(list(rare.values())),
        }
        rows.append(row)
        won = f"{row['won']}/{row['lost']}/{len(differences) - row['won'] - row['lost']}"
        shown = [f"{row[key]:.3f}" for key in ("ari", "neighbor_accuracy", "rare_f1")]
        by_pairs = [
            ""
            if row[f"{key}_difference"] is None
            else with_error(row[f"{key}_difference"], row[f"{key}_standard_error"])
            for key in ("ari", "rare_f1")
        ]
        table.add_row(name, str(row["sets"]), str(row["seeds"]), *shown, by_pairs[0], won, by_pairs[1])
    return table, rows


def mean_of(runs: dict[tuple[str, int], dict[str, Any]], score: Callable[[dict[str, Any]], float | None]) -> float:
    """Mean over sets of the mean over seeds of a score, of those that have it."""
    known = {key: value for key, run in runs.items() if (value := score(run)) is not None}
    return fmean(set_means(known).values()) if known else math.nan


PARTS = {"parity": (run_parity, report_parity), "min_cells": (run_filters, report_filters)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part and report; 1 if something failed."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 200)
    run, tell = PARTS[options.part]
    failed = 0 if options.report else run(options, console)
    results = Results(options.out, KEYS[options.part])
    table, rows = tell(results.read())
    results.update(summary=rows)
    console.print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
