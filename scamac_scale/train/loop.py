"""The whole fit, from a source of cells to a fitted model.

Scale of the input -> start of the weights -> pretraining -> landmarks labelled -> rounds of (phases, exact sweep) -> one
fuzzy sweep. Everything random is keyed by the seed, everything summed over the atlas is a sweep.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric

from scamac_scale.checkpoint import FittedModel
from scamac_scale.errors import choose
from scamac_scale.nn.embed import embed_rows
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.randomness import integer_seed
from scamac_scale.train.centers import empty_clusters, tend_clusters
from scamac_scale.train.checks import check_settings, check_size
from scamac_scale.train.landmarks import choose_landmarks, label_landmarks, landmark_clusters
from scamac_scale.train.objective import temperature_of
from scamac_scale.train.phases import Stepper
from scamac_scale.train.provenance import commit, versions
from scamac_scale.train.selection import choose_bank
from scamac_scale.train.start import WEIGHT_STARTS, fit_input_scale

if TYPE_CHECKING:
    from scamac_scale.config import ScamacConfig
    from scamac_scale.genes import GeneSpace
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.logs import RunFolder


def fit(source: OpenSource, genes: GeneSpace, config: ScamacConfig, run: RunFolder | None = None) -> FittedModel:
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
        If the loss or a center is not finite.

    Notes
    -----
    Memory does not grow with the cells: a few batches, samples of them and sums. The clusters of all cells in all members of
    the consensus, about 48 bytes per cell, lie in a file once they are more than some MB.
    """
    check_settings(config)
    check_size(source.n_cells, config)
    times = _Times()
    fabric = launch(config, run)
    network = build_network(source, config).to(fabric.device)
    fit_input_scale(network, source, config.input.gene_sd, config.input.center)
    times.mark("gene moments")
    choose(WEIGHT_STARTS, config.start.weights, "start.weights")(network, source, config)
    network.start_attention(choose_bank(source, network, config, "random").to(fabric.device))
    times.mark("start")
    stepper = Stepper(fabric, network, source, config)
    stepper.pretrain()
    if network.has_bank and config.model.bank_choice != "random":
        network.refresh_bank()  # for the latents by which the cells are chosen
        network.bank_cells.copy_(choose_bank(source, network, config))
    stepper.sweeps.freeze()
    times.mark("pretraining")

    landmarks = choose_landmarks(source, network, config)
    target = label_landmarks(landmarks, network, source, config, folder=run.path if run else None)
    clusters = landmark_clusters(landmarks, network, config)
    stepper.cluster(clusters, target, landmarks)
    times.mark("landmarks")
    for index in range(config.train.rounds):
        stepper.take_round(index)
        network.refresh_bank()
        start = clusters if config.train.carries_centers else landmark_clusters(landmarks, network, config)
        clusters = stepper.sweep(start, f"sweep {index + 1}/{config.train.rounds}")
        tended = tend_clusters(clusters, landmarks, network, config)
        if tended is not clusters:
            stepper.clusters, stepper.atlas = tended, None  # the sums are of the clusters before
        clusters = tended
    times.mark("rounds")
    stepper.sweeps.freeze()
    start = clusters if config.train.carries_centers else landmark_clusters(landmarks, network, config)
    clusters, pairs = stepper.sweeps.fuzzy(start, config.loss.epsilon, label="last sweep", target=target, is_final=True)
    if target is not None:
        target.close()
    clusters = tend_clusters(clusters, landmarks, network, config)
    latent = embed_rows(network, landmarks.x)
    clusters.temperature = temperature_of(latent, clusters.centers, config.loss)
    times.mark("last sweep")
    provenance: dict[str, Any] = {
        "n_cells": source.n_cells,
        "n_clusters": len(clusters.centers),
        "is_count_estimated": config.n_clusters == "auto",
        "empty_clusters": empty_clusters(clusters),
        "steps": stepper.step,
        "similarity_over_all_pairs": None if pairs is None else float(similarity_from_means(pairs)),
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


def launch(config: ScamacConfig, run: RunFolder | None) -> Fabric:
    """Fabric on one device of this process: CUDA where there is one, in bf16 where it has that."""
    accelerator = config.train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = config.train.precision == "bf16-mixed"
    if config.train.precision == "auto":
        is_bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported()
    fabric = Fabric(
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if is_bf16 else "32-true",
        loggers=run.loggers if run else None,
    )
    fabric.launch()
    return fabric


def build_network(source: OpenSource, config: ScamacConfig) -> ScamacNetwork:
    """Make a network with random weights that depend on the seed alone."""
    model = replace(config.model, bank_cells=min(config.model.bank_cells, source.n_cells))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(config.seed, "weights"))
        return ScamacNetwork(len(source.gene_names), model, config.input)
