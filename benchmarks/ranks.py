"""How much faster are two processes than one, with one thread each, and what do checkpoints cost?

    python benchmarks/ranks.py --json benchmarks/results/ranks.json

A simulated store, streamed; networks have the default sizes, 50 clusters, 48 consensus members of random codes. Steps have all terms.
Rounds take turns between one and several processes; ratios are taken within a round. ``--sums`` compares fixed blocks with plain sums.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import environment
from scaling_parts import spread
from scaling_stores import Prepared, limited, make_store, prepared, random_target

BATCHES = (256, 1024, 4096)
BARS = {"sweep": 1.7, "predict": 1.7, "train 4096": 1.5}
CHECKPOINT_BAR = 0.02
STEP_CELLS = 80_000
"""Cells of the steps that are timed, about."""


def child(store: Path, batch_cells: int, sums: str, out: Path) -> None:
    """Time steps, a sweep, a prediction and a checkpoint on one rank; rank 0 prints."""
    import torch

    from scamac_scale.ranks.collectives import barrier, gather_objects
    from scamac_scale.ranks.connections import joined, waited_s
    from scamac_scale.ranks.place import find_place
    from scamac_scale.train.state import PHASE

    torch.set_num_threads(1)
    place = find_place()
    found: dict[str, float] = {}
    with (
        joined(place, is_cuda=False, timeout_s=600, setup_timeout_s=600) as world,
        prepared(store, batch_cells, 1, world, sums) as fit,
    ):
        tools, stepper = fit.tools, fit.tools.stepper
        fit.aim(random_target(tools.source.n_cells))

        def timed(name: str, work: Any) -> None:
            barrier(world)
            waited, began = waited_s(), time.perf_counter()
            work()
            barrier(world)
            found[name] = time.perf_counter() - began
            found[f"{name} waited"] = waited_s() - waited

        def take(n_steps: int, label: str) -> None:
            stepper.config = limited(stepper.config, n_steps)
            stepper.take(fit.state, f"{PHASE}0", tools.sweeps, label=label)

        fit.sweep("warm up")
        timed("sweep", lambda: fit.sweep("sweep"))
        n_steps = max(4, min(STEP_CELLS // batch_cells, stepper.plan.n_batches - 3))
        take(3, "warm up")
        timed("train", lambda: take(n_steps, "steps"))
        found["train cells"] = n_steps * stepper.plan.n_cells / stepper.plan.n_batches
        if world.rank == 0 and world.size == 1:
            found |= checkpoint_cost(fit, out)
        timed("predict", lambda: predict_all(fit, out, world))
        waits = gather_objects({name: value for name, value in found.items() if "waited" in name}, world)
        found |= {name: statistics.mean(each[name] for each in waits) for name in waits[0]}
    if place.world.rank == 0:
        print(json.dumps(found))


def checkpoint_cost(fit: Prepared, out: Path) -> dict[str, float]:
    """Seconds to write the state of this fit durably, and its bytes."""
    from scamac_scale.train.run.checkpoints import Checkpoints

    times = []
    for step in range(5):
        began = time.perf_counter()
        path = Checkpoints(out).save({"state": fit.state.to_plain()}, step)
        times.append(time.perf_counter() - began)
    return {"checkpoint": statistics.median(times), "checkpoint bytes": path.stat().st_size}


def predict_all(fit: Prepared, out: Path, world: Any) -> None:
    """Write latents and memberships of all cells as `predict` does."""
    from scamac_scale.fitted import FittedModel
    from scamac_scale.infer.predict import predict

    source, provenance = fit.tools.source, {"versions": {}, "is_count_estimated": False}
    model = FittedModel(fit.state.network, fit.clusters, source.gene_space, fit.tools.config, provenance)
    predict(model, source, out / "result.zarr", world=world)


def run(store: Path, size: int, batch_cells: int, sums: str, scratch: Path) -> dict[str, float]:
    """One measurement with so many processes."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, __file__, "--child", str(store), str(batch_cells), sums, str(out)]
    processes = []
    for rank in range(size):
        environ = {**os.environ, **{name: str(value) for name, value in shared.items()}, "RANK": str(rank)}
        pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=environ, stdout=pipe))
    text = processes[0].communicate()[0]
    if any(process.wait() for process in processes):
        raise SystemExit("a rank failed")
    found: dict[str, float] = json.loads(text.splitlines()[-1])
    return found


def compare(alone: list[dict[str, float]], together: list[dict[str, float]], name: str) -> dict[str, Any]:
    """Times of one kind of work, and the ratio within rounds."""
    ratios = [one[name] / two[name] for one, two in zip(alone, together, strict=True)]
    waits = [two[f"{name} waited"] / two[name] for two in together]
    return {
        **spread([one[name] for one in alone], "alone_s"),
        **spread([two[name] for two in together], "together_s"),
        **spread(ratios, "ratio"),
        "share_in_collectives": statistics.median(waits),
    }


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--sums", nargs="+", default=["blocks", "ranks"])
    parser.add_argument("--store", type=Path, help="One from an earlier call; made where it is missing.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), int(args.child[1]), args.child[2], Path(args.child[3]))
        return
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "child", "store")}
    result: dict[str, Any] = {"environment": environment(), "settings": settings, "bars": BARS}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        store = args.store or scratch / "store.zarr"
        if not store.exists():
            made, _ = make_store(scratch, args.cells, args.genes)
            shutil.move(made, store)
        for sums in args.sums:
            for batch_cells in args.batches:
                alone, together = [], []
                for _ in range(args.rounds):
                    alone.append(run(store, 1, batch_cells, sums, scratch))
                    together.append(run(store, args.ranks, batch_cells, sums, scratch))
                row = {kind: compare(alone, together, kind) for kind in ("train", "sweep", "predict")}
                row["train_cells_per_s"] = statistics.median(one["train cells"] / one["train"] for one in alone)
                row["checkpoint_s"] = statistics.median(one["checkpoint"] for one in alone)
                row["checkpoint_bytes"] = alone[0]["checkpoint bytes"]
                row["share_of_checkpoints_every_60_s"] = row["checkpoint_s"] / 60
                result.setdefault(sums, {})[str(batch_cells)] = row
                ratios = {kind: round(row[kind]["ratio"], 2) for kind in ("train", "sweep", "predict")}
                print(
                    f"{sums} {batch_cells}: {ratios}, collectives {row['train']['share_in_collectives']:.2f}",
                    flush=True,
                )
                if args.json:
                    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
