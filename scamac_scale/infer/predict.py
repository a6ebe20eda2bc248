"""Labels, latents, memberships and reconstructions of all cells of a source, streamed to an output in input order."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scamac_scale.config import Attention, check_value
from scamac_scale.durable.alike import check_alike
from scamac_scale.durable.atomic import check_room
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.infer.attention import AtlasAttention, atlas_attention, scratch_bytes
from scamac_scale.infer.output.already_there import IDENTITY, is_finished
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.journal import identity
from scamac_scale.infer.output.memory import MemoryOutput
from scamac_scale.infer.output.table import DENOISED_KEY, LATENT_KEY, MEMBERSHIP_KEY, Table
from scamac_scale.infer.reconstruct import denoise
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.embed import EMBED_CELLS, forward_block
from scamac_scale.ranks.collectives import from_first
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import TICK_BATCHES, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

    from scamac_scale.fitted import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)


def predict(
    model: FittedModel,
    source: OpenSource,
    out: str | Path | None = None,
    *,
    is_denoised: bool = False,
    attention: Attention = "trained",
    world: World = ALONE,
    resume: bool = False,
) -> ad.AnnData | Path:
    """Predict all cells of a source.

    Parameters
    ----------
    model
        Fitted.
    source
        N cells; its `obs` is carried over to the result, and its `source_rows` say where each row goes.
    out
        Zarr or h5ad to stream to; None keeps the result in memory.
    is_denoised
        Also write the reconstruction, log-normalised units, N x G float32.
    attention
        ``trained``: the spatial attention of training (over its bank, or the block of cells). ``atlas``: over all cells of the source, Eq. (10) as printed; O(N^2) time,
        and 12 bytes per scale, latent column and cell of disk beside the output.
    world
        This rank, and how many there are: each predicts some of the cells, into one output that all of them see.
    resume
        Go on with what a prediction that was stopped has left beside `out`, if it has; a finished one is left as it is.

    Returns
    -------
    AnnData or Path
        The result in memory, or where it lies; in the order of the input, whatever the order of the source.

    Raises
    ------
    ConfigError
        If several ranks have no output on disk, or not the same model and input, or `attention` is not known.
    InputError
        If the source has no cells, or its columns cannot be written.
    OutputError
        If the output cannot be written.
    ResumeError
        If what is to be gone on with is of another model, input or other options.
    StoppedError
        After SIGTERM, SIGINT or SIGUSR1, where there is an output on disk: what was done is kept.
    """
    check_value(Attention, attention, "attention")
    if source.n_cells == 0:
        raise InputError("the input has no cells; predict needs at least one.")
    network = model.network.eval()
    uns = {**description(model), "attention": attention}
    n_scratch = scratch_bytes(network, source.n_cells) if attention == "atlas" else 0
    output: MemoryOutput | DiskOutput
    if out is None:
        check_ranks(out, world)
        folder = Path(tempfile.gettempdir())
        check_room(folder, n_scratch)
        output = MemoryOutput(_table(model, source, is_denoised, world))
    else:
        folder = Path(out).absolute().parent
        belongs = identity(model, source, attention=attention, denoised=is_denoised)
        uns[IDENTITY] = json.dumps(belongs)
        check_alike(belongs, world)
        if resume and from_first(lambda: is_finished(Path(out), belongs), world):
            logger.info("%s is finished; there is nothing to resume", out)
            return Path(out)
        table = _table(model, source, is_denoised, world)
        output = DiskOutput(out, table, belongs, world=world, resume=resume, scratch_bytes=n_scratch)
    plan = SweepPlan(source.n_cells, EMBED_CELLS, world)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(output)
        if output.needs_rows:
            atlas = None
            look = partial(output.look, is_patient=True)  # a block of queries may take its time
            if attention == "atlas" and output.turns * TICK_BATCHES < plan.n_most:
                atlas = stack.enter_context(atlas_attention(network, source, folder, world, look))
            write = _writer(model, source, output, plan, atlas)
            start = min(output.turns * TICK_BATCHES * EMBED_CELLS, plan.bounds[1] - plan.bounds[0])

            def tick(turns: int, done: int) -> None:
                output.tick(turns)

            sweep(source, write, start, label="predict", plan=plan, turns=output.turns, tick=tick)
        return output.finish(model.n_clusters, uns)


def check_ranks(out: str | Path | None, world: World) -> None:
    """Refuse several ranks without an output in which they can meet."""
    if out is None and world.size > 1:
        raise ConfigError(f"{world.size} processes need an output on a disk that all of them see; name one.")


def _table(model: FittedModel, source: OpenSource, is_denoised: bool, world: World) -> Table:
    """Say what is predicted; columns of the input on rank 0 alone."""
    genes = list(model.genes.chosen)
    widths = {LATENT_KEY: model.clusters.centers.shape[1], MEMBERSHIP_KEY: model.n_clusters}
    if is_denoised:
        widths[DENOISED_KEY] = len(genes)
    is_first = world.rank == 0
    obs = source.obs.iloc[np.argsort(source.source_rows)] if is_first else pd.DataFrame(index=range(source.n_cells))
    return Table(obs, genes, widths)


def _writer(
    model: FittedModel,
    source: OpenSource,
    output: MemoryOutput | DiskOutput,
    plan: SweepPlan,
    atlas: AtlasAttention | None,
) -> Callable[[int, Batch], int]:
    """Predicts a batch and hands it to the output; for a sweep that counts the cells of this rank."""
    network, device = model.network, model.network.gene_mean.device
    first, stop = plan.bounds
    places = source.source_rows[first:stop].copy()

    def write(start: int, batch: Batch) -> int:
        n_cells = len(batch.rows)
        values = batch.values.to(device)
        spatial = atlas.read(start, start + n_cells) if atlas else None
        found = forward_block(network, network.scale_input(values), spatial)
        latent = found.latent[:n_cells].float()
        u = model.clusters.assign(latent)[0]
        blocks = {LATENT_KEY: latent, MEMBERSHIP_KEY: u}
        if DENOISED_KEY in output.table.widths:
            blocks[DENOISED_KEY] = denoise(network, found.output[:n_cells].float(), values)
        arrays = {name: block.cpu().numpy() for name, block in blocks.items()}
        output.write(places[batch.rows - first], u.argmax(dim=1).cpu().numpy(), arrays)
        return start + n_cells

    return write


def description(model: FittedModel) -> dict[str, Any]:
    """Tell what ``uns["scamac"]`` holds: settings as JSON, versions, seed, centers, temperature, genes."""
    return {
        "config": json.dumps(asdict(model.config)),
        "versions": dict(model.provenance["versions"]),
        "seed": model.config.seed,
        "n_clusters": model.n_clusters,
        "is_count_estimated": bool(model.provenance["is_count_estimated"]),
        "temperature": model.clusters.temperature,
        "centers": model.clusters.centers.cpu().numpy(),
        "genes": np.array(model.genes.chosen, dtype=object),
    }
