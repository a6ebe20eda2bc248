"""Raw counts to labels and a report: the commands as a user runs them, each in a process of its own, at several sizes.

The atlas is resampled from real labelled cells (`simulate --from`) or drawn with many types (`--types`), so its labels are known. For each size: CPU seconds, wall seconds and
peak memory of every command, ARI, and beside it the ARI of PCA + Ward on 2,000 cells with the nearest center for all others. The
number of clusters is told. Peers, if asked for, do the same work in memory: scanpy (PCA and Leiden) and scVI with Leiden, at each size until
they run out of memory or of half an hour.

    python benchmarks/atlas.py --source zheng_facs3774.h5ad --cells 20000 1000000 --threads 2
    python benchmarks/atlas.py --types 200 --cells 100000 1000000 --scanpy 100000
    python benchmarks/atlas.py --source zheng_facs3774.h5ad --cells 20000 100000 300000 --scanpy 300000 --picture docs/images/atlas.png
    python benchmarks/atlas.py --report

scVI needs an environment of its own, named by --peer-python: pip install -c constraints.txt 'scvi-tools==1.4.2' scanpy igraph
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
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
COMMANDS = ("ingest", "train", "predict", "evaluate", "report")
TO_LABELS = ("ingest", "train", "predict")
PEER = Path(__file__).resolve().parent / "peers" / "run_leiden.py"
LIMIT_S = 1800
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
    parser.add_argument("--scvi", type=int, default=0, help="up to so many cells also scVI and Leiden")
    parser.add_argument(
        "--scvi-epochs", default="", help="epochs of scVI in place of its own number, which is said in the result"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, help="Python of the environment with scvi-tools and scanpy"
    )
    parser.add_argument("--picture", type=Path, help="draw costs by size")
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


def run_process(*words: object, python: str = sys.executable, limit_s: float | None = None) -> dict[str, float]:
    """Run Python with these words; its cost, and ``ended``, an exit code, where that is not 0 and there is a limit."""
    began = time.perf_counter()
    child = subprocess.Popen([python, *map(str, words)])
    timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, child.kill)
    timer.daemon = True
    timer.start()
    _, status, used = os.wait4(child.pid, 0)
    timer.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode and limit_s is None:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {child.returncode}")
    ended = {"ended": child.returncode} if child.returncode else {}
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": round(used.ru_maxrss / 1024),
        **ended,
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
    costs["evaluate"] = run_command("evaluate", out, "--label", label)
    costs["report"] = run_command("report", "--run", run, "--result", out, "--label", label, "--out", folder / "report")
    obs = ad.io.read_elem(zarr.open_group(out, mode="r")["obs"])
    ward = ward_labels(store, n_clusters)
    peers: dict[str, Any] = {}
    if n_cells <= args.scanpy:
        peers["scanpy"] = run_peer(atlas, folder, types, "pca")
    if n_cells <= args.scvi:
        peers["scvi"] = run_peer(atlas, folder, types, "scvi", args.scvi_epochs, python=args.peer_python)
    return {
        "commands": costs,
        "cpu_seconds": round(sum(costs[name]["cpu_seconds"] for name in TO_LABELS), 1),
        "peak_mb": max(costs[name]["peak_mb"] for name in TO_LABELS),
        "ari": round(float(adjusted_rand_score(types, obs["scamac_cluster"].to_numpy())), 4),
        "ari_pca_ward": round(float(adjusted_rand_score(types, ward)), 4),
        "n_clusters": int(n_clusters),
        **peers,
    }


def run_peer(atlas: Path, folder: Path, types: Any, method: str, epochs: str = "", **options: str) -> dict[str, Any]:
    """Let a peer cluster the atlas in memory."""
    from sklearn.metrics import adjusted_rand_score

    out = folder / f"{method}.npy"
    cost: dict[str, Any] = run_process(PEER, atlas, out, method, epochs, limit_s=LIMIT_S, **options)
    if "ended" in cost:
        return cost
    labels = np.load(out)
    told = {"epochs": int(epochs)} if epochs else {}
    return {
        **cost,
        **told,
        "ari": round(float(adjusted_rand_score(types, labels)), 4),
        "n_clusters": len(set(labels.tolist())),
    }


def draw(path: Path, picture: Path) -> None:
    """Draw CPU seconds and peak memory from raw counts to labels by the number of cells, both axes in logarithms."""
    from matplotlib.figure import Figure

    runs = [run for run in Results(path, KEY).read()["runs"] if not run["source"].endswith(" types")]
    runs.sort(key=lambda run: run["cells"])
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for panel, (name, words) in zip(
        figure.subplots(1, 2), (("cpu_seconds", "CPU seconds"), ("peak_mb", "peak memory, MB")), strict=True
    ):
        for method, color in (("this program", "#0072B2"), ("scanpy", "#D55E00"), ("scvi", "#009E73")):
            found = [(run["cells"], run if method == "this program" else run.get(method)) for run in runs]
            points = [(cells, cost[name]) for cells, cost in found if cost and "ended" not in cost]
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=color,
                    label={"scvi": "scVI + Leiden", "scanpy": "scanpy, PCA + Leiden"}.get(method, method),
                )
        panel.set(xscale="log", yscale="log", xlabel="cells", title=words)
        panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


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
        "scanpy",
        "scVI",
    )
    for run in sorted(Results(path, KEY).read()["runs"], key=lambda run: (run["source"], run["cells"])):
        costs = [cost_text(run["commands"].get(name)) for name in COMMANDS]
        scores = (f"{run['cpu_seconds']:.0f}", f"{run['peak_mb']:,}", f"{run['ari']:.3f}", f"{run['ari_pca_ward']:.3f}")
        table.add_row(
            run["source"],
            f"{run['cells']:,}",
            *costs,
            *scores,
            cost_text(run.get("scanpy")),
            cost_text(run.get("scvi")),
        )
    Console(width=150).print(table)


def cost_text(cost: dict[str, Any] | None) -> str:
    """Write CPU seconds, seconds, MB, and ARI where there is one."""
    if cost is None:
        return "-"
    text = "{cpu_seconds:.0f} / {seconds:.0f} / {peak_mb:,}".format(**cost)
    ended = f", ended by {cost['ended']}" if "ended" in cost else ""
    return text + (f" / {cost['ari']:.3f}" if "ari" in cost else "") + ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    args = parse(arguments)
    if args.report:
        report(args.out)
        if args.picture:
            draw(args.out, args.picture)
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
    if args.picture:
        draw(args.out, args.picture)


if __name__ == "__main__":
    main(sys.argv[1:])
