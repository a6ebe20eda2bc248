"""Raw counts to labels: `ingest`, `train` and `predict` as a user runs them, each in a process of its own, at several sizes.

The atlas is resampled from real labelled cells (`simulate --from`) or drawn with many types (`--types`), so its labels are known. For each size: CPU seconds, wall seconds and
peak memory of every command, ARI, and beside it the ARI of PCA + Ward on 2,000 cells with the nearest center for all others. The
number of clusters is told.

    python benchmarks/atlas.py --source zheng_facs3774.h5ad --cells 20000 1000000 --threads 2
    python benchmarks/atlas.py --types 200 --cells 100000 1000000 --scanpy 100000
    python benchmarks/atlas.py --report
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = Path(__file__).resolve().parent / "results" / "atlas.json"
KEY = ("source", "cells")
COMMANDS = ("ingest", "train", "predict")
WARD_CELLS = 2_000
COMPONENTS = 50
N_GENES = 2_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", type=Path, help="labelled real cells, as h5ad")
    parser.add_argument("--types", type=int, help="draw so many types of cells of 2,000 genes in place of a source")
    parser.add_argument(
        "--scanpy", type=int, default=0, help="up to so many cells also scanpy in memory: PCA and Leiden"
    )
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--cells", nargs="+", type=int, default=[20_000, 1_000_000])
    parser.add_argument("--atlas", type=Path, help="an atlas that `simulate --from` has made, in place of making one")
    parser.add_argument("--threads", type=int, help="of every library; default: theirs")
    parser.add_argument("--folder", type=Path, help="where atlases and results lie meanwhile")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true")
    return parser.parse_args(arguments)


def run_command(*words: object) -> dict[str, float]:
    """Run one command of the program; its cost."""
    return run_process("-m", "scamac_scale", *words, "--quiet")


def run_process(*words: object) -> dict[str, float]:
    """Run Python with these words; its cost."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *map(str, words)])
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {child.returncode}")
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def ward_labels(store: Path, n_clusters: int) -> Any:  # Any: an array
    """PCA + Ward on a sample of the cells of a store; all join the nearest center."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.decomposition import PCA

    from scamac_scale.loader.feed import Feed
    from scamac_scale.loader.ordered import RowsPlan, SweepPlan
    from scamac_scale.sources import open_source

    with open_source(store) as source, Feed(source) as feed:
        chosen = np.random.default_rng(0).permutation(source.n_cells)[:WARD_CELLS]
        sample = np.concatenate([batch.values.numpy().copy() for batch in feed.run(RowsPlan([np.sort(chosen)]))])
        pca = PCA(COMPONENTS, random_state=0).fit(sample)
        points = pca.transform(sample)
        found = AgglomerativeClustering(n_clusters).fit_predict(points)
        centers = np.stack([points[found == cluster].mean(axis=0) for cluster in range(n_clusters)])
        labels = np.empty(source.n_cells, dtype=np.int64)
        with Feed(source) as ordered:
            for batch in ordered.run(SweepPlan(source.n_cells, 4096)):
                z = pca.transform(batch.values.numpy())
                labels[source.source_rows[batch.rows]] = ((centers**2).sum(axis=1) - 2.0 * z @ centers.T).argmin(axis=1)
    return labels


def scanpy_labels(atlas: Path, out: Path) -> None:
    """Cluster with scanpy in memory, as its tutorial does: 2,000 genes, 50 components, 15 neighbours, Leiden at resolution 1."""
    import anndata as ad
    import scanpy as sc

    adata = ad.read_zarr(atlas)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(2_000, adata.n_vars))
    sc.pp.pca(adata, n_comps=COMPONENTS)
    sc.pp.neighbors(adata, n_neighbors=15)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    np.save(out, adata.obs["leiden"].cat.codes.to_numpy())


def known_types(path: Path, label: str) -> Any:  # Any: an array
    """Number of the type of each cell of a zarr."""
    import anndata as ad
    import pandas as pd
    import zarr

    return pd.factorize(ad.io.read_elem(zarr.open_group(path, mode="r")["obs"])[label])[0]


def run_size(args: argparse.Namespace, n_cells: int, folder: Path) -> dict[str, Any]:
    """All three commands, and the scores."""
    import anndata as ad
    import zarr
    from sklearn.metrics import adjusted_rand_score

    atlas, label = args.atlas, args.label
    if atlas is None:
        atlas = folder / "atlas.zarr"
        of = ("--from", args.source, "--label", label) if args.source else ("--types", args.types, "--genes", N_GENES)
        run_command("simulate", *of, "--cells", n_cells, "--out", atlas)
    store, run, out = (folder / name for name in ("store.zarr", "run", "out.zarr"))
    types = known_types(atlas, label)
    n_clusters = len(set(types.tolist()))
    costs = {
        "ingest": run_command("ingest", atlas, "--out", store),
        "train": run_command("train", "--store", store, "--run", run, "--n-clusters", n_clusters),
        "predict": run_command("predict", "--run", run, "--input", store, "--out", out),
    }
    obs = ad.io.read_elem(zarr.open_group(out, mode="r")["obs"])
    ward = ward_labels(store, n_clusters)
    peer: dict[str, Any] = {}
    if n_cells <= args.scanpy:
        cost = run_process(__file__, "--peer", atlas, folder / "leiden.npy")
        labels = np.load(folder / "leiden.npy")
        ari = float(adjusted_rand_score(types, labels))
        peer = {"scanpy": {**cost, "ari": round(ari, 4), "n_clusters": len(set(labels.tolist()))}}
    return {
        "commands": costs,
        "cpu_seconds": round(sum(cost["cpu_seconds"] for cost in costs.values()), 1),
        "peak_mb": max(cost["peak_mb"] for cost in costs.values()),
        "ari": round(float(adjusted_rand_score(types, obs["scamac_cluster"].to_numpy())), 4),
        "ari_pca_ward": round(float(adjusted_rand_score(types, ward)), 4),
        "n_clusters": int(n_clusters),
        **peer,
    }


def report(path: Path) -> None:
    """Print the table."""
    table = Table(
        "source",
        "cells",
        *(f"{name}, CPU s / s / MB" for name in COMMANDS),
        "all, CPU s",
        "peak MB",
        "ARI",
        "PCA + Ward",
    )
    for run in sorted(Results(path, KEY).read()["runs"], key=lambda run: (run["source"], run["cells"])):
        costs = ["{cpu_seconds:.0f} / {seconds:.0f} / {peak_mb:,}".format(**run["commands"][name]) for name in COMMANDS]
        scores = (f"{run['cpu_seconds']:.0f}", f"{run['peak_mb']:,}", f"{run['ari']:.3f}", f"{run['ari_pca_ward']:.3f}")
        table.add_row(run["source"], f"{run['cells']:,}", *costs, *scores)
    Console(width=150).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    args = parse(arguments)
    if args.report:
        report(args.out)
        return
    if args.peer:
        scanpy_labels(*map(Path, args.peer))
        return
    if args.threads is not None:
        for name in THREAD_SETTINGS:
            os.environ[name] = str(args.threads)
    results, where = Results(args.out, KEY), environment()
    for n_cells in args.cells:
        folder = Path(tempfile.mkdtemp(dir=args.folder))
        try:
            found = run_size(args, n_cells, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        source = args.source.stem if args.source else f"{args.types} types"
        results.add({"source": source, "cells": n_cells, "threads": args.threads, **found}, where)
    report(args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
