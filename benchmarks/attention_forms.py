"""Does it matter for the labels whether cells attend to a bank or to all cells?

For every labelled set of a folder: the default fit, told the true number of clusters, and predictions with the attention of training (a
bank of 256 cells and the cell itself) and with that over all cells (`predict --attention atlas`, Eq. 10 as printed). How far
the labels agree, how well each agrees with the known types, and how far the latents lie apart.

    python benchmarks/attention_forms.py --data FOLDER --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import environment
from rich.console import Console
from rich.table import Table
from sets import GROUPS, is_chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = Path(__file__).resolve().parent / "results" / "attention_forms.json"
FORMS = ("trained", "atlas")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def compare(path: Path, label: str, seed: int) -> dict[str, Any]:
    """One fit, predicted with both forms."""
    import anndata

    from scamac_scale import ScAMAC
    from scamac_scale.metrics.clustering import clustering_scores

    truth = anndata.read_h5ad(path, backed="r").obs[label]
    model = ScAMAC(int(truth.nunique()), seed=seed).fit(path)
    found, seconds = {}, {}
    for form in FORMS:
        began = time.perf_counter()
        found[form] = model.predict(path, attention=form)
        seconds[form] = time.perf_counter() - began
    labels = {form: adata.obs["scamac_cluster"].to_numpy() for form, adata in found.items()}
    latent = {form: adata.obsm["X_scAMAC"] for form, adata in found.items()}
    spread = float(np.linalg.norm(latent["trained"] - latent["trained"].mean(axis=0)))
    return {
        "set": path.stem,
        "seed": seed,
        "cells": len(truth),
        "agreement": clustering_scores(labels["trained"], labels["atlas"])["ari"],
        "same_label": float((labels["trained"] == labels["atlas"]).mean()),
        "latent_distance": float(np.linalg.norm(latent["trained"] - latent["atlas"])) / spread,
        **{f"ari_{form}": clustering_scores(truth.to_numpy(), labels[form])["ari"] for form in FORMS},
        **{f"seconds_{form}": round(seconds[form], 3) for form in FORMS},
    }


def table_of(runs: list[dict[str, Any]]) -> Table:
    """Means over seeds."""
    table = Table(title="Attention of training (bank) and over all cells (atlas), means over seeds")
    for column in (
        "set",
        "cells",
        "ARI(atlas, bank)",
        "same label",
        "latent distance",
        "ARI bank",
        "ARI atlas",
        "s bank",
        "s atlas",
    ):
        table.add_column(column, justify="left" if column == "set" else "right")
    fields = ("agreement", "same_label", "latent_distance", *(f"ari_{form}" for form in FORMS))
    names = sorted({run["set"] for run in runs}, key=lambda name: next(r["cells"] for r in runs if r["set"] == name))
    for name in names:
        of_set = [run for run in runs if run["set"] == name]
        means = [f"{statistics.mean(run[field] for run in of_set):.4f}" for field in fields]
        seconds = [f"{statistics.mean(run[f'seconds_{form}'] for run in of_set):.1f}" for form in FORMS]
        table.add_row(name, str(of_set[0]["cells"]), *means, *seconds)
    table.add_row("mean", "", *(f"{statistics.mean(run[field] for run in runs):.4f}" for field in fields), "", "")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument("--group", choices=GROUPS, default="single", help="which sets of sets.py; others are single")
    parser.add_argument("--sets", nargs="+", help="only these files, without .h5ad, of whatever group")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to this minus 1")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    if options.data is None or not Path(options.data).is_dir():
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    paths = [
        path for path in sorted(Path(options.data).glob("*.h5ad")) if is_chosen(path.stem, options.group, options.sets)
    ]
    runs = [compare(path, options.label, seed) for path in paths for seed in range(options.seeds)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment(), "runs": runs}, indent=1) + "\n")
    Console().print(table_of(runs))


if __name__ == "__main__":
    main()
