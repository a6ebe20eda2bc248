"""What do gradient steps buy? Fits of the same cells with other batches, numbers of steps and rounds.

For each setting, over some seeds: CPU seconds, the reconstruction of all cells (Eq. 5, first term, without noise), Eq. (15) over all
pairs, the agreement of labels between seeds (ARI), which needs no known type, and ARI against the known types, which chooses nothing.

    python benchmarks/steps.py --data pbmc.h5ad atlas.store.zarr --label cell_type --threads 1
    python benchmarks/steps.py --report
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import THREAD_SETTINGS
from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.config import ScamacConfig
    from scamac_scale.fitted import FittedModel
    from scamac_scale.sources import OpenSource

OUT = Path(__file__).resolve().parent / "results" / "steps.json"
KEY = ("set", "setting", "batch")
SETTINGS = {
    "default": {},
    "0 + 0": {"pretrain": 0, "rounds": 0, "steps": 0},
    "0 + 1 x 100": {"pretrain": 0, "rounds": 1, "steps": 100},
    "50 + 1 x 100": {"pretrain": 50, "rounds": 1, "steps": 100},
    "100 + 1 x 100": {"pretrain": 100, "rounds": 1, "steps": 100},
    "100 + 2 x 50": {"pretrain": 100, "rounds": 2, "steps": 50},
    "100 + 2 x 100": {"pretrain": 100, "rounds": 2, "steps": 100},
    "100 + 4 x 50": {"pretrain": 100, "rounds": 4, "steps": 50},
    "200 + 2 x 200": {"pretrain": 200, "rounds": 2, "steps": 200},
    "500 + 2 x 500": {"pretrain": 500, "rounds": 2, "steps": 500},
}
"""Steps of pretraining, rounds, steps of each; the defaults where nothing is said."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", nargs="+", type=Path, help="labelled cells: raw files or training stores")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help=f"of: {', '.join(SETTINGS)}")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[256, 1024], help="cells of a batch; 0 for the default"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--report", action="store_true")
    return parser.parse_args(arguments)


def config_of(setting: dict[str, int], batch_cells: int, n_clusters: int, seed: int) -> ScamacConfig:
    """Settings of one fit."""
    from scamac_scale.config import ScamacConfig

    config = ScamacConfig(n_clusters=n_clusters, seed=seed)
    train = replace(config.train, batch_cells=batch_cells or None)
    if setting:
        pretrain, steps = setting["pretrain"], setting["steps"]
        phase, first = replace(train.phases[0], steps=steps), replace(train.pretrain, steps=pretrain)
        train = replace(train, pretrain=first, rounds=setting["rounds"], phases=(phase,))
    return replace(config, train=train)


def reconstruction(model: FittedModel, source: OpenSource) -> float:
    """Mean over cells and genes of the squared error, in units of the scaled input."""
    import torch

    from scamac_scale.loader.source import levels_of
    from scamac_scale.sweep import sum_over_cells

    network = model.network

    @torch.no_grad()
    def part(batch: Any) -> torch.Tensor:
        levels = levels_of(source, batch.rows)
        x = network.cell_input(batch.values, levels)
        return (network.layers(x, levels).output - x).double().square().sum()[None]

    total = sum_over_cells(source, part, label="reconstruction")
    return float(total) / source.n_cells / len(source.gene_names)


def run_setting(
    data: Path, label: str, setting: dict[str, int], batch_cells: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Fit with every seed."""
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    from scamac_scale.infer.predict import predict
    from scamac_scale.sources import open_source, tell_tech_batches
    from scamac_scale.train.fit import fit

    found: list[dict[str, Any]] = []
    labels = []
    for seed in seeds:
        with open_source(data) as opened:
            known = opened.obs[label]
            n_clusters = known.nunique()
        config = config_of(setting, batch_cells, n_clusters, seed)
        with open_source(data, loader=config.loader) as source:
            tell_tech_batches(source, config.batch_key)
            with measure() as cost:
                model = fit(source, source.gene_space, config)
            labels.append(predict(model, source).obs["scamac_cluster"].to_numpy())
            types = pd.factorize(source.obs[label])[0][np.argsort(source.source_rows)]
            is_known = types >= 0
            found.append(
                {
                    "seed": seed,
                    "cpu_seconds": cost.cpu_seconds,
                    "peak_bytes": cost.peak_bytes,
                    "steps": model.provenance["steps"],
                    "reconstruction": reconstruction(model, source),
                    "similarity": model.provenance["similarity_over_all_pairs"],
                    "ari": adjusted_rand_score(types[is_known], labels[-1][is_known]),
                }
            )
    pairs = [adjusted_rand_score(one, other) for one, other in itertools.combinations(labels, 2)]
    return {"fits": found, "agreement": float(np.mean(pairs)) if pairs else None}


def report(path: Path) -> None:
    """Print the table."""
    runs = Results(path, KEY).read()["runs"]
    table = Table(*("set", "steps", "batch", "of a fit", "CPU s", "reconstruction", "Eq. (15)", "seeds agree", "ARI"))
    for run in runs:
        mean = {
            name: np.mean([fit[name] for fit in run["fits"]])
            for name in ("cpu_seconds", "reconstruction", "ari", "steps")
        }
        pairs = [fit["similarity"] for fit in run["fits"] if fit["similarity"] is not None]
        table.add_row(
            run["set"],
            run["setting"],
            str(run["batch"] or "default"),
            f"{mean['steps']:.0f}",
            f"{mean['cpu_seconds']:.1f}",
            f"{mean['reconstruction']:.5f}",
            f"{np.mean(pairs):.5f}" if pairs else "-",
            "-" if run["agreement"] is None else f"{run['agreement']:.3f}",
            f"{mean['ari']:.3f}",
        )
    Console(width=150).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    args = parse(arguments)
    if args.report:
        report(args.out)
        return
    for name in THREAD_SETTINGS:
        os.environ[name] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    results = Results(args.out, KEY)
    done = results.done() if args.resume else set()
    where = environment()
    for data, batch_cells, name in itertools.product(args.data, args.batches, args.settings):
        key = (data.name.split(".")[0], name, batch_cells)
        if key in done or (name == "0 + 0" and batch_cells != args.batches[0]):
            continue
        run = run_setting(data, args.label, SETTINGS[name], batch_cells, args.seeds)
        results.add({"set": key[0], "setting": name, "batch": batch_cells, "threads": args.threads, **run}, where)
        print(key, run["agreement"], [fit["ari"] for fit in run["fits"]], run["fits"][0]["cpu_seconds"], flush=True)
    report(args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
