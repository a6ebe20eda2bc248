"""The whole fit, from a source of cells to a fitted model, in stages between which it can be stopped and resumed.

Scale of the input -> start of the weights -> pretraining -> landmarks labelled -> rounds of (phases, exact sweep) -> one
fuzzy sweep. Everything random is keyed by the seed, everything summed over the atlas is a sweep.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from scamac_scale.checkpoint import FittedModel
from scamac_scale.durable.alike import check_alike
from scamac_scale.durable.atomic import check_room
from scamac_scale.durable.faults import reach
from scamac_scale.errors import StoreError, choose
from scamac_scale.links import waited_s
from scamac_scale.nn.embed import embed_rows
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.randomness import integer_seed
from scamac_scale.reduce import barrier, from_first
from scamac_scale.sources import cells_digest
from scamac_scale.train.centers import empty_clusters, tend_clusters
from scamac_scale.train.checkpoints import KEPT
from scamac_scale.train.checks import check_ranks, check_settings, check_size
from scamac_scale.train.codes import CodeTable
from scamac_scale.train.landmarks import Landmarks, choose_landmarks, has_similarity, label_landmarks, landmark_clusters
from scamac_scale.train.logs import check_same_cells
from scamac_scale.train.memory import memory_explained
from scamac_scale.train.objective import ConsensusTarget, MembershipTarget, temperature_of
from scamac_scale.train.phases import Stepper
from scamac_scale.train.provenance import commit, versions
from scamac_scale.train.selection import choose_bank, read_cells
from scamac_scale.train.start import WEIGHT_STARTS, fit_input_scale
from scamac_scale.train.watch import Watch
from scamac_scale.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.config import ScamacConfig
    from scamac_scale.genes import GeneSpace
    from scamac_scale.ops.similarity import PairMeans
    from scamac_scale.signals import Signals
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.logs import RunFolder
    from scamac_scale.train.objective import Clusters


def fit(
    source: OpenSource,
    genes: GeneSpace,
    config: ScamacConfig,
    run: RunFolder | None = None,
    world: World = ALONE,
    signals: Signals | None = None,
) -> FittedModel:
    """Fit scAMAC to all cells of a source.

    Parameters
    ----------
    source
        N cells, log-normalised values of G genes.
    genes
        Kept with the model.
    config
        The whole run.
    run
        Where metrics and checkpoints go, and where an earlier one may be taken up; None keeps nothing.
    world
        This rank, and how many there are; several need `run`, in a folder that all of them see.
    signals
        Entered; what stops the fit. None where nothing does, or there is no `run`.

    Returns
    -------
    FittedModel
        On the device of the fit; the same on all ranks.

    Raises
    ------
    ConfigError
        If K exceeds the number of cells, or settings are at odds.
    InputError
        If there are too few cells.
    NumericalError
        If the loss or a center is not finite.
    StoppedError
        After a signal, once a checkpoint is saved.
    LostRankError
        If another rank does not answer.

    Notes
    -----
    Memory does not grow with the cells: a few batches, samples of them and sums. The clusters of all cells in all members of
    the consensus, about 48 bytes per cell, lie in a file once they are more than some MB.
    """
    check_settings(config)
    check_size(source.n_cells, config)
    check_ranks(source.n_cells, config, world, has_folder=run is not None)
    with ExitStack() as stack:
        stack.enter_context(memory_explained(config))
        fitting = Fit(source, config, run, world, signals)
        stack.callback(fitting.close)
        return fitting.run_to_end(genes)


class Fit:
    """A fit in the making: what it holds between two stages, and how that is saved and restored.

    Parameters
    ----------
    source, config, run, world
        As of `fit`.
    signals
        That stop it; None where nothing does.
    """

    def __init__(
        self, source: OpenSource, config: ScamacConfig, run: RunFolder | None, world: World, signals: Signals | None
    ) -> None:
        self.source, self.config, self.run, self.world = source, config, run, world
        self.fabric = launch(config)
        self.network = build_network(source, config).to(self.fabric.device)
        is_cuda = self.fabric.device.type == "cuda"
        write = self._write if run is not None else None
        self.watch = Watch(config.train, world, signals, write, check=self._check, is_cuda=is_cuda)
        self.stepper = Stepper(self.fabric, self.network, source, config, world=world, watch=self.watch, run=run)
        self.landmarks: Landmarks | None = None
        self.pairs: PairMeans | None = None
        self.times = _Times()
        self.stage = 0
        if run is not None:
            run.cells_digest = cells_digest(source)
        self._stages = list(self._list_stages())

    def _list_stages(self) -> list[tuple[str, Callable[[], None]]]:
        """Every stage, with the part of the fit that its time counts for; what a stage does can be done again from its start."""
        stages: list[tuple[str, Callable[[], None]]] = [
            ("gene moments", self._scale),
            ("start", self._start),
            ("pretraining", self.stepper.pretrain),
            ("pretraining", self._choose_bank),
            ("pretraining", lambda: self.stepper.sweeps.freeze("freeze")),
            ("landmarks", self._label),
        ]
        for index in range(self.config.train.rounds):
            stages += [("rounds", partial(self.stepper.take_round, index)), ("rounds", partial(self._sweep, index))]
        return [
            *stages,
            ("last sweep", lambda: self.stepper.sweeps.freeze("last freeze")),
            ("last sweep", self._sweep_last),
        ]

    def run_to_end(self, genes: GeneSpace) -> FittedModel:
        """Take all stages that are left."""
        if self.run is not None:
            check_alike({"input": self.run.cells_digest}, self.world)
        if self.run is not None and self.run.saved is not None:
            self._restore(self.run.saved)
        barrier(self.world)  # some have opened their cells sooner than others: sweeps are less patient
        while self.stage < len(self._stages):
            part, do = self._stages[self.stage]
            do()
            self.times.mark(part)
            self.stage += 1
            if self.stage == FIRST_SAVE:
                from_first(self._check_room, self.world)
                self.watch.save()  # finds out early whether it can be written
            self.watch.stage()
        return self._model(genes)

    # ------------------------------------------------------------------ stages

    def _scale(self) -> None:
        config = self.config.input
        with self.watch.sweep("gene moments") as (in_flight, tick):
            fit_input_scale(
                self.network, self.source, config.gene_sd, config.center, self.world, in_flight=in_flight, tick=tick
            )

    def _start(self) -> None:
        start = choose(WEIGHT_STARTS, self.config.start.weights, "start.weights")
        with self.watch.sweep("principal components") as (_, tick):
            start(self.network, self.source, self.config, self.world, tick)
        bank = choose_bank(self.source, self.network, self.config, "random", self.world)
        self.network.start_attention(bank.to(self.fabric.device))

    def _choose_bank(self) -> None:
        if self.network.has_bank and self.config.model.bank_choice != "random":
            self.network.refresh_bank()  # for the latents by which the cells are chosen
            self.network.bank_cells.copy_(choose_bank(self.source, self.network, self.config, world=self.world))

    def _label(self) -> None:
        landmarks = choose_landmarks(self.source, self.network, self.config, self.world)
        path = self.run.code_path if self.run else None
        options: dict[str, Any] = {"path": path, "watch": self.watch, "world": self.world}
        target = label_landmarks(landmarks, self.network, self.source, self.config, **options)
        self.landmarks = landmarks
        self.stepper.cluster(landmark_clusters(landmarks, self.network, self.config), target, landmarks)

    def _sweep(self, index: int) -> None:
        landmarks, stepper = self._known_landmarks, self.stepper
        self.network.refresh_bank()
        clusters = stepper.sweep(self._first_clusters(), f"sweep {index + 1}/{self.config.train.rounds}")
        tended = tend_clusters(clusters, landmarks, self.network, self.config)
        if tended is not clusters:
            stepper.clusters, stepper.atlas = tended, None  # the sums are of the clusters before

    def _sweep_last(self) -> None:
        stepper = self.stepper
        options: dict[str, Any] = {"label": "last sweep", "target": stepper.target, "is_final": True}
        clusters, self.pairs = stepper.sweeps.fuzzy(self._first_clusters(), self.config.loss.epsilon, **options)
        stepper.clusters = tend_clusters(clusters, self._known_landmarks, self.network, self.config)

    @property
    def _known_landmarks(self) -> Landmarks:
        assert self.landmarks is not None  # after the stage that finds them
        return self.landmarks

    def _first_clusters(self) -> Clusters:
        """Clusters that a sweep starts from."""
        if not self.config.train.carries_centers:
            return landmark_clusters(self._known_landmarks, self.network, self.config)
        assert self.stepper.clusters is not None
        return self.stepper.clusters

    def _model(self, genes: GeneSpace) -> FittedModel:
        clusters = self.stepper.clusters
        assert clusters is not None
        latent = embed_rows(self.network, self._known_landmarks.x)
        clusters.temperature = temperature_of(latent, clusters.centers, self.config.loss)
        self.times.mark("last sweep")
        provenance: dict[str, Any] = {
            "n_cells": self.source.n_cells,
            "n_clusters": len(clusters.centers),
            "is_count_estimated": self.config.n_clusters == "auto",
            "empty_clusters": empty_clusters(clusters),
            "steps": self.stepper.step,
            "similarity_over_all_pairs": None if self.pairs is None else float(similarity_from_means(self.pairs)),
            "similarity_weight": self.stepper.weights.get("similarity"),
            "processes": self.world.size,
            "checkpoints": self.watch.n_saved,
            "seconds_in_collectives": round(waited_s(), 3),
            "seconds_by_part": {**self.times.parts, "checkpoints": round(self.watch.seconds, 3)},
            "versions": versions(),
            "commit": commit(),
        }
        reach("train.model")
        return FittedModel(self.network.eval(), clusters.centers, clusters.temperature, genes, self.config, provenance)

    # ------------------------------------------------------------------ checkpoints

    def _check(self) -> None:
        self.stepper.check()

    def _check_room(self) -> None:
        """Refuse a disk without room for the checkpoints that are kept and the one that is written meanwhile."""
        if self.run is not None:
            state = sum(tensor.nbytes for tensor in self.network.state_dict().values())
            moments = 2 * sum(weight.nbytes for weight in self.network.parameters())  # of Adam, for each phase
            n_bytes = state + (1 + len(self.config.train.phases)) * moments
            check_room(self.run.checkpoints.folder, (KEPT + 1) * n_bytes)

    def _write(self, in_flight: dict[str, Any] | None) -> None:
        """Save all that the rest of the fit depends on."""
        assert self.run is not None
        landmarks, target = self.landmarks, self.stepper.target
        self.run.save(
            {
                "stage": self.stage,
                "in_flight": in_flight,
                "network": self.network.state_dict(),
                "seconds_by_part": dict(self.times.parts),
                "landmarks": landmarks and [torch.from_numpy(landmarks.rows), torch.from_numpy(landmarks.labels)],
                "codes": _describe(target) if isinstance(target, ConsensusTarget) else None,
                **self.stepper.state(),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        assert self.run is not None
        check_same_cells(state["data"], self.run.cells_digest, str(self.run.path))
        self.stage, self.watch.in_flight = state["stage"], state["in_flight"]
        self.network.load_state_dict(state["network"])
        self.times.parts = dict(state["seconds_by_part"])
        self.stepper.restore(state)
        if state["landmarks"] is not None:
            rows, labels = (part.numpy() for part in state["landmarks"])
            self.landmarks = Landmarks(rows, read_cells(self.source, rows, self.network), labels)
            self.stepper.target = self._restore_target(state["codes"])

    def _restore_target(self, codes: dict[str, Any] | None) -> ConsensusTarget | MembershipTarget | None:
        if codes is None:
            return MembershipTarget(self.config.loss.epsilon) if has_similarity(self.config) else None
        assert self.run is not None
        path = self.run.code_path
        if not path.exists():
            raise StoreError(f"{path} is missing, without which the run cannot go on; start a new run.")
        table = CodeTable(self.source.n_cells, codes["sizes"].numpy(), path)
        table.finish()
        table.known_digest = from_first(table.digest, self.world)
        if table.known_digest != codes["digest"]:
            raise StoreError(f"{path} is not what was written; start a new run.")
        return ConsensusTarget(table, codes["weights"].numpy(), codes["uu_square"])

    def close(self) -> None:
        """Close files, and let go of all that is held: the watch and the stages hold this object, which would keep its cells."""
        if self.stepper.target is not None:
            self.stepper.target.close()
        vars(self).clear()


FIRST_SAVE = 2
"""Stages before the first checkpoint: it shows at once whether there is room for the next ones."""


def _describe(target: ConsensusTarget) -> dict[str, Any]:
    return {
        "sizes": torch.from_numpy(target.table.sizes),
        "weights": torch.from_numpy(np.asarray(target.weights, dtype=np.float64)),
        "uu_square": float(target.uu_square),
        "digest": target.table.known_digest,
    }


class _Times:
    """Wall time by part of the fit, in all processes that worked on it."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = round(self.parts.get(part, 0.0) + now - self._last_s, 3)
        self._last_s = now


def launch(config: ScamacConfig) -> Fabric:
    """Fabric on one device of this process: CUDA where there is one, in bf16 where it has that.

    Notes
    -----
    Fabric places and casts; the ranks are ours (`reduce`): its launcher kills all processes as soon as one has ended, also those that
    are saving.
    """
    accelerator = config.train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = config.train.precision == "bf16-mixed"
    if config.train.precision == "auto":
        is_bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported()
    fabric = Fabric(
        accelerator=accelerator,
        devices=[torch.cuda.current_device()] if accelerator == "cuda" else 1,
        precision="bf16-mixed" if is_bf16 else "32-true",
        plugins=[LightningEnvironment()],  # one process, whatever the environment says
    )
    fabric.launch()
    return fabric


def build_network(source: OpenSource, config: ScamacConfig) -> ScamacNetwork:
    """Make a network with random weights that depend on the seed alone."""
    model = replace(config.model, bank_cells=min(config.model.bank_cells, source.n_cells))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(config.seed, "weights"))
        return ScamacNetwork(len(source.gene_names), model, config.input)
