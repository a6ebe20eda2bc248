"""How long does one wait for the first gradient step, and for a model, when the data is small?

    python benchmarks/startup.py --json benchmarks/results/startup.json

Real `python -m scamac_scale train` processes, one after another, on the store of the demo (700 cells), and with `--data FOLDER` on
zheng_facs3774.h5ad of it as well. The first call of each, which may compile, is told apart. Times come from what the run folder holds:
when config.yaml was written, the first record of the TensorBoard file, `seconds_by_part` in run.json. ``--package FOLDER`` measures
another checkout beside this one, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, environment

LARGER, LARGER_CLUSTERS = "zheng_facs3774", 10
BARS = {"first step": 6.0, "all": 14.0}
"""Seconds on a quiet machine of two cores, for the demo's cells."""


def make_stores(folder: Path, data: Path | None, only: str | None) -> dict[str, tuple[Path, int]]:
    """Ingest the cells of the demo, and a larger set where there is one; stores and numbers of clusters."""
    from scamac_scale.api import ingest
    from scamac_scale.demonstration import PBMC_LABEL, read_pbmc

    stores = {}
    if only in (None, "pbmc"):
        cells, raw = read_pbmc(), folder / "pbmc.h5ad"
        cells.write_h5ad(raw)
        stores["pbmc"] = ingest(raw, folder / "pbmc.store.zarr"), cells.obs[PBMC_LABEL].nunique()
    if only in (None, LARGER) and data is not None and (data / f"{LARGER}.h5ad").is_file():
        stores[LARGER] = ingest(data / f"{LARGER}.h5ad", folder / f"{LARGER}.store.zarr"), LARGER_CLUSTERS
    return stores


def train(package: Path, store: Path, n_clusters: int, run: Path, options: list[str]) -> dict[str, float]:
    """Train once in a process of its own; seconds from the command on, by part."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    command = [sys.executable, "-m", "scamac_scale", "train", "--store", str(store), "--run", str(run)]
    environ = {**os.environ, "PYTHONPATH": str(package)}
    began = time.time()
    command += ["--n-clusters", str(n_clusters), "--quiet", *options]
    process = subprocess.Popen(command, env=environ, cwd=package)  # python -m looks in its folder first
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"training on {store.name} ended with {process.returncode}")
    (events,) = (run / "tensorboard").glob("events.*")
    first_step = next(iter(EventFileLoader(str(events)).Load())).wall_time
    opened = (run / "config.yaml").stat().st_mtime
    parts: dict[str, float] = json.loads((run / "run.json").read_text())["seconds_by_part"]
    before = parts["gene moments"] + parts["start"]
    after = sum(parts[name] for name in ("pretraining", "landmarks", "rounds", "last sweep"))
    return {
        "first step": first_step - began,
        "all": ended - began,
        "all, processor": usage.ru_utime + usage.ru_stime,
        "process and imports": opened - began,
        "opening data, and the first step": first_step - opened - before,
        **parts,
        "writing the model, and leaving": ended - first_step - after,
    }


def spread(times: list[float]) -> dict[str, float]:
    """Median, best and worst."""
    return {name: round(of(times), 3) for name, of in (("median", statistics.median), ("best", min), ("worst", max))}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="default: SCAMAC_DATA")
    parser.add_argument("--only", choices=("pbmc", LARGER), help="name of the one set to measure")
    parser.add_argument("--package", type=Path, help="folder of another checkout, to compare with")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args(arguments)
    packages = {"this": ROOT, **({"other": args.package.resolve()} if args.package else {})}
    result: dict[str, Any] = {"environment": environment(), "rounds": args.rounds, "options": options, "bars": BARS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = make_stores(folder, Path(args.data) if args.data else None, args.only)
        for data, (store, n_clusters) in stores.items():
            found: dict[str, list[dict[str, float]]] = {version: [] for version in packages}
            for turn in range(args.rounds + 1):
                for version, package in packages.items():
                    run = folder / f"{data}-{version}-{turn}.run"
                    found[version].append(train(package, store, n_clusters, run, options))
            for version, (first, *later) in found.items():
                times = {part: spread([each[part] for each in later]) for part in first}
                result.setdefault(version, {})[data] = {"first_call_s": round(first["all"], 3), "seconds": times}
                print(
                    f"{version} {data}: {json.dumps({part: time['median'] for part, time in times.items()})}",
                    flush=True,
                )
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
