"""Parts of `scaling.py` on simulated stores: the share of Eq. (15) in a sweep, and epochs and sweeps against the number of cells.

Networks have the default sizes, 50 clusters and a start by PCA. The centers are those of random cells and the codes of the
consensus members are drawn at random, which is the worst case for the table of the pairs of members; times do not depend on them else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import Cost, _peak_bytes, measure
from scaling_parts import MEMBER_SIZES, N_CLUSTERS, fit_law, from_law, sizes_up_to, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scamac_scale.config import ScamacConfig
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.ranks.world import World
    from scamac_scale.train.clusters.targets import ConsensusTarget
    from scamac_scale.train.recipe import Tools
    from scamac_scale.train.state import FitState

CHILD = Path(__file__).resolve().parent / "scaling.py"
SHARE_CELLS, SHARE_GENES = 100_000, 2_000
EPOCH_CELLS, EPOCH_GENES = (50_000, 100_000, 200_000, 400_000, 800_000), 1_000
COUNTS_PER_GENE = 0.3
DEFAULT_ROUNDS = 4
"""Rounds of a fit, for which the codes are counted once."""
SHARE_BARS = {"membership": 0.02, "consensus": 0.05}
"""Most that the sums of Eq. (15) may take of a sweep."""
EXPONENT_BAR = 1.05
MEMORY_FACTOR, MEMORY_PER_CELL = 1.1, 16
READ_CELLS = 8192


def make_store(folder: Path, n_cells: int, n_genes: int) -> tuple[Path, float]:
    """Simulate cells and ingest them with all their genes; the store, and the seconds that it took."""
    import shutil

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.pipeline import ingest
    from scamac_scale.simulation.drawn import simulate

    began = time.perf_counter()
    atlas = simulate(folder / f"atlas-{n_cells}.zarr", n_cells, n_genes=n_genes, counts_per_gene=COUNTS_PER_GENE)
    settings = IngestConfig(n_genes=n_genes, min_cell_fraction=0.0)
    store = ingest(atlas, folder / f"store-{n_cells}.zarr", settings)
    shutil.rmtree(atlas)
    return store, time.perf_counter() - began


def random_target(n_cells: int) -> ConsensusTarget:
    """Landmarks of all cells, and codes of 48 consensus members of landmarks, drawn at random, in the table of a fit."""
    from scamac_scale.config import StartConfig
    from scamac_scale.train.clusters.code_table import CodeTable
    from scamac_scale.train.clusters.consensus import LEIDEN_WEIGHT
    from scamac_scale.train.clusters.landmarks import landmark_count
    from scamac_scale.train.clusters.targets import ConsensusTarget

    n_landmarks = landmark_count(n_cells, StartConfig(), N_CLUSTERS)
    table, rng = CodeTable(n_cells, n_landmarks), np.random.default_rng(0)
    counts = np.zeros(n_landmarks, dtype=np.int64)
    for start in range(0, n_cells, READ_CELLS):
        rows = np.arange(start, min(start + READ_CELLS, n_cells))
        of_cells = rng.integers(0, n_landmarks, len(rows))
        table.write(rows, of_cells)
        counts += np.bincount(of_cells, minlength=n_landmarks)
    codes = rng.integers(0, MEMBER_SIZES, (n_landmarks, len(MEMBER_SIZES)))
    codes[0] = MEMBER_SIZES - 1  # every member has all its clusters
    weights = np.where(MEMBER_SIZES.max() == MEMBER_SIZES, 1.0, LEIDEN_WEIGHT)
    return ConsensusTarget(table, codes, weights, counts)


@dataclass(frozen=True)
class Prepared:
    """A fit between its landmarks and its first round; every sweep starts from the same clusters."""

    tools: Tools
    state: FitState
    clusters: Clusters

    def aim(self, target: ConsensusTarget) -> None:
        """Set the target of Eq. (15), and measure its weight."""
        self.state.target = target
        self.state.weights["clustering"] = self.tools.config.loss.clustering_weight
        self.state.weights["similarity"] = self.tools.stepper.similarity_weight(self.state)

    def sweep(self, label: str) -> None:
        """Renew the centers and what Eq. (15) needs of all cells, as at the end of a round; but the bank stays."""
        state = self.state
        state.clusters, state.pairs = self.tools.sweeps.fuzzy(self.clusters, label=label, target=state.target)


def joint_config(batch_cells: int, n_rounds: int) -> ScamacConfig:
    """Rounds of one epoch each with all terms, steps not capped, cells streamed from the store."""
    from scamac_scale.config import LoaderConfig, PhaseConfig, ScamacConfig, TrainConfig

    terms = ("reconstruction", "layers", "similarity", "clustering")
    phase = PhaseConfig(terms=terms, epochs=1, schedule="cosine")
    train = TrainConfig(batch_cells=batch_cells, rounds=n_rounds, phases=(phase,), accelerator="cpu")
    return ScamacConfig(n_clusters=N_CLUSTERS, loader=LoaderConfig(cache="none"), train=train)


def limited(config: ScamacConfig, n_steps: int) -> ScamacConfig:
    """Phases of so many steps, the pretraining as well, however many cells there are."""
    length: dict[str, Any] = {"epochs": 1, "min_steps": n_steps, "max_steps": n_steps}
    train = config.train
    phases = tuple(replace(phase, **length) for phase in train.phases)
    return replace(config, train=replace(train, pretrain=replace(train.pretrain, **length), phases=phases))


@contextmanager
def prepared(
    store: Path, batch_cells: int, n_rounds: int, world: World | None = None, sums: str = "blocks"
) -> Iterator[Prepared]:
    """Open a store and go through the steps before the first round, but for pretraining and the consensus."""
    from scamac_scale.nn.clusters import clusters_at
    from scamac_scale.nn.embed import embed_rows
    from scamac_scale.ranks.world import ALONE
    from scamac_scale.sources import open_source
    from scamac_scale.train.clusters.landmarks import find_landmarks
    from scamac_scale.train.fit import build_network, gather_tools
    from scamac_scale.train.placement import launch
    from scamac_scale.train.recipe import scale_input, start_weights
    from scamac_scale.train.state import FitState

    config, world = joint_config(batch_cells, n_rounds), world or ALONE
    config = replace(config, train=replace(config.train, sums=sums))
    with open_source(store, loader=config.loader) as source:
        fabric = launch(config.train)
        network = build_network(source, config).to(fabric.device)
        state = FitState(network)
        tools = gather_tools(fabric, state, source, config, world=world)
        for stage in (scale_input, start_weights):
            stage(tools, state)
        groups = find_landmarks(source, network, config, world, tools.watch)
        groups.table.close()
        state.landmarks = groups.landmarks
        latent = embed_rows(network, state.landmarks.x)
        centers = latent[np.random.default_rng(0).permutation(len(latent))[:N_CLUSTERS]].clone()
        state.clusters = clusters_at(centers, latent, config.loss)
        yield Prepared(tools, state, state.clusters)


class Stopwatch:
    """Seconds spent in functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that is timed."""

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@contextmanager
def similarity_timed() -> Iterator[Stopwatch]:
    """Time what a sweep does for Eq. (15) alone: codes (the memberships are there), Gram matrices, their sum over batches, the division."""
    from unittest.mock import patch

    from scamac_scale.ops.similarity import Grams
    from scamac_scale.train import sweeps
    from scamac_scale.train.clusters.targets import ConsensusTarget

    watch = Stopwatch()
    with (
        patch.object(ConsensusTarget, "of", watch.wrap(ConsensusTarget.of)),
        patch.object(sweeps, "_grams", watch.wrap(sweeps._grams)),
        patch.object(sweeps, "pair_means", watch.wrap(sweeps.pair_means)),
        patch.object(Grams, "__add__", watch.wrap(Grams.__add__)),
    ):
        yield watch


def share(
    folder: Path, largest: int | None, n_genes: int | None, batch_cells: int, rounds: int, law: dict[str, Any] | None
) -> dict[str, Any]:
    """How much of a fuzzy sweep the sums of Eq. (15) take, for each of its targets."""
    from scamac_scale.train.clusters.targets import MembershipTarget

    n_cells = min(SHARE_CELLS, largest or SHARE_CELLS)
    store, _ = make_store(folder, n_cells, n_genes or SHARE_GENES)
    with prepared(store, batch_cells, rounds) as fit:
        source, sweeps, consensus = fit.tools.source, fit.tools.sweeps, random_target(n_cells)
        targets = {"none": None, "membership": MembershipTarget(), "consensus": consensus}
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
        counted = []
        for round_number in range(rounds + 1):  # the first one warms up
            for name, target in targets.items():
                with similarity_timed() as watch:
                    began = time.perf_counter()
                    if name == "consensus":
                        _ = consensus.uu_square  # counted once in a fit, and here beside the clock
                        counted.append(time.perf_counter() - began)
                        began = time.perf_counter()
                    sweeps.fuzzy(fit.clusters, label=name, target=target)
                    runs[name].append((time.perf_counter() - began, watch.seconds))
            del consensus.uu_square  # to be counted anew
            if round_number == 0:
                runs, counted = {name: [] for name in targets}, []
        consensus.close()
        sizes = {"n_genes": len(source.gene_names), "values_per_cell": source.csr_bytes / 8 / n_cells}
    found = {"n_cells": n_cells, **sizes, "n_clusters": N_CLUSTERS, "members": len(MEMBER_SIZES), "rounds": rounds}
    found["targets"] = {name: share_row(name, runs) for name in targets}
    row = found["targets"]["consensus"]
    sweep_s, table_s = row["seconds"], statistics.median(counted)
    with_table = {n: (n * row["inside_seconds"] + table_s) / (n * sweep_s + table_s) for n in (1, DEFAULT_ROUNDS)}
    row |= {"share_with_table": with_table[DEFAULT_ROUNDS], "share_with_table_every_round": with_table[1]}
    row["is_within_bar"] = row["share_with_table"] < row["bar"]
    found["contingency"] = {**spread(counted), "share_of_a_round": table_s / sweep_s}
    if law is not None:
        direct_s = from_law(law, n_cells)
        found["direct_form"] = {
            "seconds": direct_s,
            "over_sweep": direct_s and direct_s / sweep_s,
            "extrapolated": True,
        }
    return found


def share_row(name: str, runs: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Times of the sweeps with one target, and how much of them Eq. (15) takes, measured inside and by difference."""
    totals = [total for total, _ in runs[name]]
    row: dict[str, Any] = {**spread(totals)}
    if name == "none":
        return row
    shares = [inside / total for total, inside in runs[name]]
    without = [total for total, _ in runs["none"]]
    differences = [1.0 - base / total for base, total in zip(without, totals, strict=True)]
    row |= spread([inside for _, inside in runs[name]], "inside_seconds")
    row |= {**spread(shares, "share"), **spread(differences, "share_by_difference")}
    return {**row, "bar": SHARE_BARS[name], "is_within_bar": row["share"] < SHARE_BARS[name]}


def run_child(store: Path, batch_cells: int, rounds: int) -> dict[str, Any]:
    """Time sweeps and epochs over one store; runs in a process of its own."""
    from scamac_scale.train.recipe import take_round

    began = time.perf_counter()
    with prepared(store, batch_cells, rounds + 1) as fit:
        source = fit.tools.source
        target = random_target(source.n_cells)
        fit.aim(target)
        counted_s = -time.perf_counter()
        _ = target.uu_square
        counted_s += time.perf_counter()
        prepared_s, prepared_peak = time.perf_counter() - began, _peak_bytes()
        peak, times = Cost(), {"sweep": [], "epoch": []}
        for round_number in range(rounds + 1):  # the first one warms up
            with measure() as sweep_cost:
                fit.sweep("sweep")
            with measure() as epoch_cost:
                take_round(fit.tools, fit.state, round_number)
            peak = peak + sweep_cost + epoch_cost
            if round_number > 0:
                times["sweep"].append(sweep_cost.seconds)
                times["epoch"].append(epoch_cost.seconds)
        target.close()
        return {
            "n_cells": source.n_cells,
            "n_genes": len(source.gene_names),
            "values_per_cell": source.csr_bytes / 8 / source.n_cells,
            "steps": fit.tools.stepper.plan.n_batches,
            **spread(times["epoch"], "epoch_s"),
            **spread(times["sweep"], "sweep_s"),
            "contingency_s": counted_s,
            "prepared_s": prepared_s,
            "peak_bytes": max(prepared_peak, peak.peak_bytes),
            "rounds_peak_bytes": peak.peak_bytes,
            "total_s": time.perf_counter() - began,
            "extrapolated": False,
        }


def in_child(store: Path, batch_cells: int, rounds: int) -> dict[str, Any]:
    """Run `run_child` in a process of its own."""
    command = [sys.executable, str(CHILD), "--child", str(store)]
    command += ["--batch-cells", str(batch_cells), "--rounds", str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def epochs(folder: Path, largest: int | None, n_genes: int | None, batch_cells: int, rounds: int) -> dict[str, Any]:
    """How an epoch, a sweep and the highest memory grow with the number of cells."""
    import shutil

    runs = []
    for n_cells in sizes_up_to(EPOCH_CELLS, largest):
        store, made_s = make_store(folder, n_cells, n_genes or EPOCH_GENES)
        runs.append({**in_child(store, batch_cells, rounds), "made_s": made_s})
        shutil.rmtree(store)
    sizes = [run["n_cells"] for run in runs]
    laws = {name: fit_law(sizes, [run[name] for run in runs], share=1.0) for name in ("epoch_s", "sweep_s")}
    small, large = runs[0], runs[-1]
    allowed = MEMORY_FACTOR * small["peak_bytes"] + MEMORY_PER_CELL * (large["n_cells"] - small["n_cells"])
    return {
        "batch_cells": batch_cells,
        "rounds": rounds,
        "cache": "none",
        "laws": laws,
        "exponent_bar": EXPONENT_BAR,
        "are_exponents_within_bar": all(law["exponent"] <= EXPONENT_BAR for law in laws.values()),
        "memory_ratio": large["peak_bytes"] / small["peak_bytes"],
        "bytes_per_extra_cell": (large["peak_bytes"] - small["peak_bytes"]) / (large["n_cells"] - small["n_cells"]),
        "memory_bar_bytes": allowed,
        "is_memory_within_bar": large["peak_bytes"] <= allowed,
        "total_s": sum(run["total_s"] + run["made_s"] for run in runs),
        "runs": runs,
    }
