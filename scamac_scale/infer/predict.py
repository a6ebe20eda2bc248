"""Labels, latents, memberships and reconstructions of all cells of a source, streamed to an output in input order."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scamac_scale.durable.alike import check_alike
from scamac_scale.durable.atomic import check_room
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.host.memory import explained
from scamac_scale.infer.attention import atlas_attention, scratch_bytes
from scamac_scale.infer.labels.fit import learned
from scamac_scale.infer.levels import dendrogram, levels_of, recut
from scamac_scale.infer.options import PredictOptions
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.journal import identity, with_marks
from scamac_scale.infer.output.memory import MemoryOutput
from scamac_scale.infer.output.place import OutPlace, find_out
from scamac_scale.infer.output.table import (
    DENOISED_KEY,
    GENE_SPACE,
    IDENTITY,
    LATENT_KEY,
    MEMBERSHIP_KEY,
    UNCORRECTED_KEY,
    Table,
)
from scamac_scale.infer.predictor import Predictor, denoised_levels
from scamac_scale.infer.spread import Spread, check_spread, predicted_turns
from scamac_scale.infer.tech_batches import place_new_batches, tell_levels
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.embed import EMBED_CELLS
from scamac_scale.progress import Told, stages, track
from scamac_scale.ranks.collectives import from_first
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.remote.stamps import check_unchanged
from scamac_scale.sweep import TICK_BATCHES, sweep

if TYPE_CHECKING:
    import anndata as ad

    from scamac_scale.fitted import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)

PARTS = (Told("labelling all cells", 4.0, "predict"), Told("writing the result", 1.0, "write "))
"""Stages of a prediction as they are told; only the ratio counts."""
LABELS = "labels"
"""Where ``uns["scamac"]`` says how labels were carried over."""
PLAIN = PredictOptions()
"""Labels, latents and memberships, and no more."""


@explained("predict")
def predict(
    model: FittedModel,
    source: OpenSource,
    out: str | Path | OutPlace | None = None,
    options: PredictOptions = PLAIN,
    *,
    world: World = ALONE,
    resume: bool = False,
    spread: Spread | None = None,
) -> ad.AnnData | Path | str:
    """Predict all cells of a source.

    Parameters
    ----------
    model
        Fitted.
    source
        N cells; its `obs` is carried over to the result, and its `source_rows` say where each row goes.
    out
        Zarr or h5ad to stream to, a path or a URL; None keeps the result in memory.
    options
        What is asked for.
    world
        This rank, and how many there are: each predicts some of the cells, into one output that all of them see.
    resume
        Go on with what a prediction that was stopped has left beside `out`, if it has; a finished one is left as it is.
    spread
        Workers of a cluster that predict the cells, in place of this process: the same to the bit.

    Returns
    -------
    AnnData, Path or str
        The result in memory, or where it lies, by its path or URL; in the order of the input, whatever the order of the source.

    Raises
    ------
    ConfigError
        If several ranks have no output on disk, or not the same model and input; or the tree of the model cannot be cut as asked.
    InputError
        If the source has no cells, or its columns cannot be written.
    NumericalError
        If a value to be written is not finite; nothing is left.
    OutputError
        If the output cannot be written.
    ResumeError
        If what is to be gone on with is of another model, input or other options.
    StoppedError
        After SIGTERM, SIGINT or SIGUSR1, where there is an output on disk: what was done is kept.
    """
    if spread is not None:
        check_spread(options, world)
    if source.n_cells == 0:
        raise InputError("the input has no cells; predict needs at least one.")
    whole, model = model, recut(model, options)
    network = model.network.eval()
    denoised_levels(model, options)  # refuses what is not known
    tell_levels(model, source, options.batch_key)
    attention = options.attention
    uns = {**description(model), "attention": attention}
    n_scratch = scratch_bytes(network, source.n_cells) if attention == "atlas" else 0
    output: MemoryOutput | DiskOutput
    home = out if out is None or isinstance(out, OutPlace) else find_out(out)
    if home is None:
        check_ranks(out, world)
        folder = Path(tempfile.gettempdir())
        check_room(folder, n_scratch)
        output = MemoryOutput(_table(model, source, options, world))
    else:
        folder = home.path.absolute().parent
        belongs = identity(whole, source, **options.to_plain())
        check_alike(belongs, world)
        belongs = with_marks(belongs, source, world)
        uns[IDENTITY] = json.dumps(belongs)
        if (state := from_first(lambda: home.look(belongs, resume=resume), world)) != "wanted":
            return _put(home, world, is_done=state == "done")
        table = _table(model, source, options, world)
        output = DiskOutput(home.path, table, belongs, world=world, resume=resume, scratch_bytes=n_scratch)
    plan = SweepPlan(source.n_cells, EMBED_CELLS, world)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(output)
        if output.needs_rows:
            options = _with_rule(model, options, uns, output, world)
            stack.enter_context(stages(PARTS))
            place_new_batches(model, source, world)
            atlas = None
            look = partial(output.look, is_patient=True)  # a block of queries may take its time
            if attention == "atlas" and output.turns * TICK_BATCHES < plan.n_most:
                atlas = stack.enter_context(atlas_attention(network, source, folder, world, look))
            if spread is None:
                _sweep(Predictor.make(model, source, options, output.table.widths, atlas), output, plan)
            else:
                _sweep_by_workers(replace(spread, stamps=source.stamps), model, options, output, plan)
        check_unchanged(source.stamps)
        found = output.finish(model.n_clusters, uns)
    return found if home is None or home.bucket is None else _put(home, world)


def _sweep(predictor: Predictor, output: MemoryOutput | DiskOutput, plan: SweepPlan) -> None:
    """Predict the cells of this rank in order, and write them."""
    start = min(output.turns * TICK_BATCHES * EMBED_CELLS, plan.bounds[1] - plan.bounds[0])

    def write(start: int, batch: Batch) -> int:
        output.write(*predictor(start, batch))
        return start + len(batch.rows)

    def tick(turns: int, done: int) -> None:
        output.tick(turns)

    sweep(predictor.source, write, start, label="predict", plan=plan, turns=output.turns, tick=tick)


def _sweep_by_workers(
    spread: Spread, model: FittedModel, options: PredictOptions, output: MemoryOutput | DiskOutput, plan: SweepPlan
) -> None:
    """Have the cells predicted by workers, and write them: turn by turn as `_sweep` does."""
    first = output.turns
    edges = [*range(first * TICK_BATCHES, plan.n_batches, TICK_BATCHES), plan.n_batches]
    turns = list(pairwise(edges))
    n_done = min(first * TICK_BATCHES * EMBED_CELLS, plan.n_cells)
    results = predicted_turns(spread, model, options, output.table.widths, turns)
    with closing(results), track("predict", plan.n_cells, "cells") as progress:
        progress.advance(n_done)
        for turn, parts in enumerate(results, first + 1):
            for part in parts:
                output.write(*part)
                progress.advance(len(part.rows))
            output.tick(turn)


def _with_rule(
    model: FittedModel, options: PredictOptions, uns: dict[str, Any], output: MemoryOutput | DiskOutput, world: World
) -> PredictOptions:
    """Find the rule of the labels that are carried over, if any are, and tell of it in the result."""
    if options.labels is None:
        return options
    labels = learned(options.labels, model, world, output.look)
    assert labels.rule is not None
    uns[LABELS] = {**labels.rule.report, "threshold": labels.rule.threshold}
    return replace(options, labels=labels)


def _put(home: OutPlace, world: World, *, is_done: bool = False) -> Path | str:
    """Put a result that is made into its bucket, if it belongs into one; where it is then."""
    if is_done:
        logger.info("%s is finished; there is nothing to resume", home)
    elif home.bucket is not None:
        from_first(home.bucket.put, world)
    return home.found_at


def check_ranks(out: object, world: World) -> None:
    """Refuse several ranks without an output in which they can meet."""
    if out is None and world.size > 1:
        raise ConfigError(f"{world.size} processes need an output on a disk that all of them see; name one.")


def _table(model: FittedModel, source: OpenSource, options: PredictOptions, world: World) -> Table:
    """Say what is predicted; columns of the input on rank 0 alone."""
    genes = list(model.genes.chosen)
    width = model.clusters.centers.shape[1]
    widths = {LATENT_KEY: width, MEMBERSHIP_KEY: model.n_clusters}
    if model.network.correction is not None:
        widths[UNCORRECTED_KEY] = width
    if options.is_denoised:
        widths[DENOISED_KEY] = len(genes)
    is_first = world.rank == 0
    obs = source.obs.iloc[np.argsort(source.source_rows)] if is_first else pd.DataFrame(index=range(source.n_cells))
    labels = () if options.labels is None else options.labels.names
    return Table(obs, genes, widths, levels_of(model, options).columns, dendrogram(model), labels)


def description(model: FittedModel) -> dict[str, Any]:
    """Tell what uns holds of the fit: settings as JSON, versions, seed, centers, temperature, genes; how values are normalised."""
    return {
        "config": json.dumps(asdict(model.config)),
        "versions": dict(model.provenance["versions"]),
        "seed": model.config.seed,
        "n_clusters": model.n_clusters,
        "is_count_estimated": bool(model.provenance["is_count_estimated"]),
        "temperature": model.clusters.temperature,
        "centers": model.clusters.centers.cpu().numpy(),
        "genes": np.array(model.genes.chosen, dtype=object),
        GENE_SPACE: json.dumps(model.genes.to_dict()),
    }
