"""The whole fit, from a source of cells to a fitted model: takes the stages of the recipe one by one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.durable.alike import check_alike
from scamac_scale.durable.atomic import check_room
from scamac_scale.durable.faults import reach
from scamac_scale.errors import ScamacError, StoreError
from scamac_scale.fitted import FittedModel
from scamac_scale.nn.clusters import clusters_at
from scamac_scale.nn.embed import embed_rows
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.randomness import integer_seed
from scamac_scale.ranks.collectives import barrier, from_first
from scamac_scale.ranks.connections import waited_s
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sources import cells_digest, origin
from scamac_scale.train.checks import check_counts, check_ranks, check_settings, check_size, warn_of_unused
from scamac_scale.train.clusters.centers import empty_clusters
from scamac_scale.train.clusters.counting import columns_of
from scamac_scale.train.clusters.landmarks import SUM_BYTES, landmark_count
from scamac_scale.train.placement import launch
from scamac_scale.train.recipe import DONE, Tools, recipe, stages_left
from scamac_scale.train.run.checkpoints import KEPT
from scamac_scale.train.run.folder import check_same_cells
from scamac_scale.train.run.out_of_memory import fit_explained
from scamac_scale.train.run.provenance import commit, versions
from scamac_scale.train.run.watch import Watch
from scamac_scale.train.state import FitState
from scamac_scale.train.stepper import Stepper
from scamac_scale.train.sweeps import Sweeps
from scamac_scale.train.told import told

if TYPE_CHECKING:
    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.config import ScamacConfig
    from scamac_scale.ranks.signals import Signals
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.placement import Placement
    from scamac_scale.train.run.folder import RunFolder


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
    Memory hardly grows with the cells (some 16 bytes for each where there are technical batches, 8 where counts are reconstructed): a few batches, samples of them and sums. The clusters of all cells in all members of
    the consensus, about 48 bytes per cell, lie in a file once they are more than some MB.
    """
    check_settings(config)
    check_size(source.n_cells, config)
    check_counts(source, config)
    warn_of_unused(config)
    check_ranks(source.n_cells, config.train, world, has_folder=run is not None)
    with ExitStack() as stack:
        stack.enter_context(fit_explained(config.loader))
        if run is not None:
            run.cells_digest, run.origin = cells_digest(source), origin(source)
            check_alike({"input": run.cells_digest}, world)
        fabric = launch(config.train)
        state = _first_state(build_network(source, config).to(fabric.device), source, config, run, world)
        stack.callback(state.close)
        left = stages_left(recipe(config, has_tech_batches=source.tech_batches is not None), state)
        tools = gather_tools(fabric, state, source, config, run, world, signals)
        if run is not None:
            from_first(run.begin, world)
        barrier(world)  # some have opened their cells sooner than others: sweeps are less patient
        begin = stack.enter_context(told(left, source.n_cells, config))
        for stage, following in zip(left, [*(stage.name for stage in left[1:]), DONE], strict=False):
            begin(stage.part)
            stage.work(tools, state)
            state.times.mark(stage.part)
            state.stage = following
            if stage.is_saved:
                from_first(lambda: _check_room(tools, state), world)
                tools.watch.save()  # finds out early whether it can be written
            tools.watch.stage()
        return _model(tools, state, genes)


def _first_state(
    network: ScamacNetwork, source: OpenSource, config: ScamacConfig, run: RunFolder | None, world: World
) -> FitState:
    """Begin, or take up what a checkpoint holds."""
    if run is None or run.saved is None:
        return FitState(network)
    check_same_cells(run.saved["data"], run.cells_digest, run.name)
    try:
        return FitState.from_plain(run.saved["state"], network, config, source, run.code_path, world)
    except (ScamacError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StoreError(
            f"the newest checkpoint in {run.checkpoints.folder} is not of this fit ({reason}); remove it, and the one before is taken, or "
            "start a new run."
        ) from error


def gather_tools(
    fabric: Placement,
    state: FitState,
    source: OpenSource,
    config: ScamacConfig,
    run: RunFolder | None = None,
    world: World = ALONE,
    signals: Signals | None = None,
) -> Tools:
    """Make what the stages work with; the watch saves this very state."""
    stepper = Stepper(fabric, state.network, source, config, world=world, run=run)
    save = None if run is None else lambda in_flight: run.save(state.to_plain(), in_flight)
    is_cuda = fabric.device.type == "cuda"
    watch = Watch(config.train, world, signals, save, check=lambda: stepper.check(state.step), is_cuda=is_cuda)
    if run is not None and run.saved is not None:
        watch.in_flight = run.saved["in_flight"]
    return Tools(config, source, world, watch, stepper, Sweeps(state.network, source, world, watch), run)


def _check_room(tools: Tools, state: FitState) -> None:
    """Refuse a disk without room for the checkpoints that are kept and the one that is written meanwhile."""
    config, source = tools.config, tools.source
    if tools.run is not None:
        n_bytes = sum(tensor.nbytes for tensor in state.network.state_dict().values())
        moments = 2 * sum(weight.nbytes for weight in state.network.parameters())  # of Adam, for each phase
        n_bytes += (1 + len(config.train.phases)) * moments
        n_landmarks = landmark_count(source.n_cells, config.start, config.n_clusters)
        sums = n_landmarks * len(source.gene_names) * SUM_BYTES
        n_bytes += tools.world.size * sums  # in the middle of their pass
        check_room(tools.run.checkpoints.folder, (KEPT + 1) * n_bytes)


def _model(tools: Tools, state: FitState, genes: GeneSpace) -> FittedModel:
    assert state.clusters is not None
    assert state.landmarks is not None
    latent, config = embed_rows(state.network, state.landmarks.x), tools.config
    clusters = clusters_at(state.clusters.centers, latent, config.loss, state.clusters.weight)
    state.times.mark("last sweep")
    correction = state.network.correction
    knows = correction is not None or state.network.autoencoder.condition is not None
    tech = tools.source.tech_batches if knows else None
    tech_levels = {} if tech is None else dict(zip(tech.columns, tech.names, strict=True))
    table = state.landmarks.counted
    counted = {"n_clusters_tried": columns_of(table)} if len(table) else {}
    provenance: dict[str, Any] = {
        "n_cells": tools.source.n_cells,
        "n_clusters": len(clusters),
        "is_count_estimated": config.n_clusters == "auto",
        **counted,
        "empty_clusters": empty_clusters(clusters),
        "steps": state.step,
        "similarity_over_all_pairs": None
        if state.last_pairs is None
        else float(similarity_from_means(state.last_pairs)),
        "similarity_weight": state.weights.get("similarity"),
        "technical_batches": {column: len(levels) for column, levels in tech_levels.items()},
        "corrections": 0 if correction is None else len(correction.layers),
        "processes": tools.world.size,
        "checkpoints": tools.watch.n_saved,
        "seconds_in_collectives": round(waited_s(), 3),
        "seconds_by_part": {**state.times.parts, "checkpoints": round(tools.watch.seconds, 3)},
        "versions": versions(),
        "commit": commit(),
    }
    reach("train.model")
    digest = tools.run.cells_digest if tools.run else ""
    tree = None if config.train.splits_heaviest else state.landmarks.tree  # the halves of a cluster are not of the tree
    network = state.network.eval()
    return FittedModel(network, clusters, genes, config, provenance, tech_levels, digest, tree, latent.cpu())


def build_network(source: OpenSource, config: ScamacConfig) -> ScamacNetwork:
    """Make a network with random weights that depend on the seed alone."""
    level_counts = () if source.tech_batches is None else source.tech_batches.counts
    model = replace(config.model, bank_cells=min(config.model.bank_cells, source.n_cells))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(config.seed, "weights"))
        return ScamacNetwork(len(source.gene_names), model, config.input, level_counts)
