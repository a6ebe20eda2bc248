"""The whole fit, from a source of cells to a fitted model.

Scale of the input -> start of the weights -> pretraining -> landmarks labelled -> rounds of (phases, exact sweep) -> one
fuzzy sweep. Everything random is keyed by the seed, everything summed over the atlas is a sweep.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric

from scamac_scale.checkpoint import FittedModel
from scamac_scale.errors import ConfigError, InputError, choose
from scamac_scale.nn.embed import embed_rows
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.fuzzy import CenterSums, center_sums, centers_from_sums
from scamac_scale.randomness import integer_seed
from scamac_scale.sweep import sweep
from scamac_scale.train.consensus import Consensus, MemberAssigner, cluster_means, find_consensus
from scamac_scale.train.logs import RunFolder, commit, versions
from scamac_scale.train.objective import (
    Clusters,
    ConsensusTarget,
    MembershipTarget,
    Objective,
    Target,
    soft_assignment,
    temperature_of,
)
from scamac_scale.train.phases import Stepper
from scamac_scale.train.start import (
    CENTER_STARTS,
    WEIGHT_STARTS,
    fit_input_scale,
    landmark_count,
    read_cells,
    sample_rows,
)

if TYPE_CHECKING:
    from scamac_scale.arrays import IntArray
    from scamac_scale.config import ScamacConfig
    from scamac_scale.genes import GeneSpace
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource

logger = logging.getLogger(__name__)

MIN_CELLS = 10
ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS: tuple[Literal["32-true", "bf16-mixed"], ...] = ("32-true", "bf16-mixed")


@dataclass
class Landmarks:
    """The sample of cells on which the centers are found.

    Attributes
    ----------
    rows
        (M,) rows of the atlas.
    x
        (M, G) scaled input.
    labels
        (M,) cluster of each, once found.
    """

    rows: IntArray
    x: torch.Tensor
    labels: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def fit(source: CellSource, genes: GeneSpace, config: ScamacConfig, run: RunFolder | None = None) -> FittedModel:
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
        Where metrics go; None keeps nothing.

    Returns
    -------
    FittedModel
        On the device of the fit.

    Raises
    ------
    ConfigError
        If K exceeds the number of cells, or settings are at odds.
    InputError
        If there are too few cells.
    NumericalError
        If the loss is not finite.
    """
    check_fit(source, config)
    times = _Times()
    fabric = launch(config, run)
    network = build_network(source, config).to(fabric.device)
    fit_input_scale(network, source, config.input.gene_sd, config.input.center)
    times.mark("gene moments")
    choose(WEIGHT_STARTS, config.start.weights, "start.weights")(network, source, config)
    bank_rows = sample_rows(source.n_cells, config.model.bank_cells, config.seed, "bank")
    network.bank_cells.copy_(read_cells(source, bank_rows, network))
    times.mark("start")
    stepper = Stepper(fabric, network, source, config)
    stepper.run(config.train.pretrain, stepper.steps(config.train.pretrain), label="pretraining")
    freeze(network, source)
    times.mark("pretraining")

    rows = sample_rows(source.n_cells, landmark_count(source.n_cells, config), config.seed, "landmarks")
    landmarks = Landmarks(rows, read_cells(source, rows, network))
    target = label_landmarks(landmarks, network, source, config)
    clusters = landmark_clusters(landmarks, network, config)
    stepper.cluster(Objective(config.loss), clusters, target, landmarks)
    times.mark("landmarks")
    for index in range(config.train.rounds):
        for phase in config.train.phases:
            stepper.run(phase, stepper.steps(phase), label=f"round {index + 1}/{config.train.rounds}")
        network.refresh_bank()
        start = clusters if config.train.carries_centers else landmark_clusters(landmarks, network, config)
        clusters = fuzzy_sweep(network, source, start, config, label=f"sweep {index + 1}/{config.train.rounds}")
        stepper.clusters = clusters
    times.mark("rounds")
    freeze(network, source)
    start = clusters if config.train.carries_centers else landmark_clusters(landmarks, network, config)
    clusters = fuzzy_sweep(network, source, start, config, label="last sweep", is_frozen=True)
    latent = embed_rows(network, landmarks.x)
    clusters.temperature = temperature_of(latent, clusters.centers, config.loss)
    times.mark("last sweep")
    provenance: dict[str, Any] = {
        "n_cells": source.n_cells,
        "n_clusters": len(clusters.centers),
        "is_count_estimated": config.n_clusters == "auto",
        "steps": stepper.step,
        "similarity_weight": stepper.weights.get("similarity"),
        "seconds_by_part": times.parts,
        "versions": versions(),
        "commit": commit(),
    }
    return FittedModel(network.eval(), clusters.centers, clusters.temperature, genes, config, provenance)


class _Times:
    """Wall time by part of the fit."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = round(now - self._last_s, 3)
        self._last_s = now


def check_fit(source: CellSource, config: ScamacConfig) -> None:
    """Refuse what cannot be fitted, before anything is read or written."""
    if source.n_cells < MIN_CELLS:
        raise InputError(f"the input has {source.n_cells} cells; at least {MIN_CELLS} are needed.")
    if isinstance(config.n_clusters, int) and config.n_clusters > source.n_cells:
        raise ConfigError(
            f"n_clusters={config.n_clusters} exceeds the number of cells, {source.n_cells}; ask for fewer clusters."
        )
    choose(dict.fromkeys(ACCELERATORS), config.train.accelerator, "train.accelerator")
    choose(dict.fromkeys(("auto", *PRECISIONS)), config.train.precision, "train.precision")
    choose(WEIGHT_STARTS, config.start.weights, "start.weights")
    choose(CENTER_STARTS, config.start.centers, "start.centers")
    choose(TARGETS, config.loss.similarity_target, "loss.similarity_target")
    if config.n_clusters == "auto" and config.start.centers != "consensus":
        raise ConfigError(
            f"start.centers={config.start.centers!r} needs a number of clusters; set n_clusters, or use 'consensus'."
        )


def launch(config: ScamacConfig, run: RunFolder | None) -> Fabric:
    """Fabric on one device of this process: CUDA where there is one, in bf16 where it has that."""
    accelerator = config.train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = config.train.precision == "bf16-mixed"
    if config.train.precision == "auto":
        is_bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported()
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.accelerator='cuda', but torch sees no CUDA device here; set it to 'cpu' or 'auto'.")
    fabric = Fabric(
        accelerator=accelerator, devices=1, precision=PRECISIONS[is_bf16], loggers=run.loggers if run else None
    )
    fabric.launch()
    return fabric


def build_network(source: CellSource, config: ScamacConfig) -> ScamacNetwork:
    """Make a network with random weights that depend on the seed alone."""
    model = replace(config.model, bank_cells=min(config.model.bank_cells, source.n_cells))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(config.seed, "weights"))
        return ScamacNetwork(len(source.gene_names), model, config.input)


def freeze(network: ScamacNetwork, source: CellSource) -> None:
    """Re-encode the bank and set Eq. (11)'s product to its mean over all cells."""
    network.refresh_bank()
    device = network.gene_mean.device

    @torch.no_grad()
    def add(total: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = network.scale_input(batch.values.to(device))
        return total + network.channel_sum(x).cpu()

    total = sweep(
        source, add, torch.zeros_like(network.mean_product, dtype=torch.float64, device="cpu"), label="freeze"
    )
    network.mean_product.copy_(total / source.n_cells)


def label_landmarks(
    landmarks: Landmarks, network: ScamacNetwork, source: CellSource, config: ScamacConfig
) -> Target | None:
    """Label the landmarks and make the target of Eq. (15)."""
    latent = embed_rows(network, landmarks.x).double().cpu().numpy()
    consensus = None
    needs_members = config.loss.similarity_target == "consensus" and any(
        "similarity" in phase.terms for phase in config.train.phases
    )
    start = CENTER_STARTS[config.start.centers]
    if start is None or needs_members:
        sources = {"input": landmarks.x.double().cpu().numpy(), "latent": latent}
        known = config.n_clusters if isinstance(config.n_clusters, int) else None
        consensus = find_consensus(
            sources,
            known,
            components=config.start.components,
            cut_height=config.start.cut_height,
            seed=integer_seed(config.seed, "consensus"),
        )
        landmarks.labels = consensus.labels
    if start is not None:
        assert isinstance(config.n_clusters, int)
        landmarks.labels = np.unique(start(latent, config.n_clusters, config.seed), return_inverse=True)[1]
    return TARGETS[config.loss.similarity_target](landmarks, consensus, network, source, config)


def _consensus_target(
    landmarks: Landmarks,
    consensus: Consensus | None,
    network: ScamacNetwork,
    source: CellSource,
    config: ScamacConfig,
) -> Target | None:
    """Clusters of every cell in every member, by the nearest center; the landmarks keep their own."""
    if consensus is None:
        return None
    sources = {"input": landmarks.x.numpy(), "latent": embed_rows(network, landmarks.x).cpu().numpy()}
    assigner = MemberAssigner.from_consensus(consensus, sources)
    largest = max(member.n_clusters for member in consensus.members)
    codes = np.empty((source.n_cells, len(consensus.members)), dtype=np.min_scalar_type(largest))
    device = network.gene_mean.device

    @torch.no_grad()
    def assign(done: int, batch: Batch) -> int:
        x = network.scale_input(batch.values.to(device))
        latent = network.embed(x)
        codes[batch.rows] = assigner.assign({"input": x.cpu().numpy(), "latent": latent.cpu().numpy()})
        return done + len(batch.rows)

    sweep(source, assign, 0, label="members")
    codes[landmarks.rows] = np.stack([member.labels for member in consensus.members], axis=1)
    return ConsensusTarget(codes, consensus.members)


def _membership_target(
    landmarks: Landmarks,
    consensus: Consensus | None,
    network: ScamacNetwork,
    source: CellSource,
    config: ScamacConfig,
) -> Target | None:
    return MembershipTarget(config.loss.epsilon)


TARGETS = {"consensus": _consensus_target, "membership": _membership_target}


def landmark_clusters(landmarks: Landmarks, network: ScamacNetwork, config: ScamacConfig) -> Clusters:
    """Centers as the means of the labelled landmarks in the present latent, and the temperature they give."""
    latent = embed_rows(network, landmarks.x)
    means = cluster_means(latent.double().cpu().numpy(), landmarks.labels, int(landmarks.labels.max()) + 1)
    centers = torch.from_numpy(means).to(latent)
    return Clusters(centers, temperature_of(latent, centers, config.loss))


def fuzzy_sweep(
    network: ScamacNetwork,
    source: CellSource,
    start: Clusters,
    config: ScamacConfig,
    *,
    label: str,
    is_frozen: bool = False,
) -> Clusters:
    """One exact update of the centers (Eq. 13) over all cells; Eq. (11)'s mean product is renewed on the way.

    Parameters
    ----------
    network
        Its `mean_product` serves the pass and is renewed after it, unless `is_frozen`.
    source
        N cells.
    start
        Centers and temperature of the memberships.
    config
        Of the run.
    label
        Shown beside the progress bar.
    is_frozen
        Leave the mean product as it is.

    Returns
    -------
    Clusters
        New centers, with the temperature of `start`; an empty cluster keeps its center.
    """
    device = network.gene_mean.device
    product = torch.zeros_like(network.mean_product, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(sums: CenterSums | None, batch: Batch) -> CenterSums:
        z, channel_sum = network.embed_and_sum(network.scale_input(batch.values.to(device)))
        product.add_(channel_sum.cpu())
        u, h = soft_assignment(z, start, config.loss.epsilon)
        found = center_sums(z, u, h)
        return found if sums is None else sums + found

    sums = sweep(source, add, None, label=label)
    assert sums is not None
    if not is_frozen:
        network.mean_product.copy_(product / source.n_cells)
    return Clusters(centers_from_sums(sums, start.centers).to(start.centers), start.temperature)
