"""Labels, latents, memberships and reconstructions of all cells of a source, streamed to an output in input order."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scamac_scale.durable.alike import check_alike
from scamac_scale.durable.atomic import check_room
from scamac_scale.errors import ConfigError, InputError, NumericalError
from scamac_scale.host.memory import explained
from scamac_scale.infer.attention import AtlasAttention, atlas_attention, scratch_bytes
from scamac_scale.infer.options import MEAN, OWN, PredictOptions
from scamac_scale.infer.output.already_there import IDENTITY
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.journal import identity
from scamac_scale.infer.output.memory import MemoryOutput
from scamac_scale.infer.output.place import OutPlace, find_out
from scamac_scale.infer.output.table import (
    DENOISED_KEY,
    LATENT_KEY,
    MEMBERSHIP_KEY,
    UNCORRECTED_KEY,
    Table,
)
from scamac_scale.infer.reconstruct import denoise
from scamac_scale.infer.tech_batches import place_new_batches, tell_levels
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.nn.embed import EMBED_CELLS, block_input, block_offset, forward_block
from scamac_scale.ranks.collectives import from_first
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import TICK_BATCHES, sweep

if TYPE_CHECKING:
    import anndata as ad

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)

SHOWN_CELLS = 5
"""Cells that an error names."""
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

    Returns
    -------
    AnnData, Path or str
        The result in memory, or where it lies, by its path or URL; in the order of the input, whatever the order of the source.

    Raises
    ------
    ConfigError
        If several ranks have no output on disk, or not the same model and input.
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
    if source.n_cells == 0:
        raise InputError("the input has no cells; predict needs at least one.")
    network, others = model.network.eval(), denoised_levels(model, options)
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
        output = MemoryOutput(_table(model, source, options.is_denoised, world))
    else:
        folder = home.path.absolute().parent
        belongs = identity(model, source, **options.to_plain())
        uns[IDENTITY] = json.dumps(belongs)
        check_alike(belongs, world)
        if (state := from_first(lambda: home.look(belongs, resume=resume), world)) != "wanted":
            return _put(home, world, is_done=state == "done")
        table = _table(model, source, options.is_denoised, world)
        output = DiskOutput(home.path, table, belongs, world=world, resume=resume, scratch_bytes=n_scratch)
    plan = SweepPlan(source.n_cells, EMBED_CELLS, world)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(output)
        if output.needs_rows:
            place_new_batches(model, source, world)
            atlas = None
            look = partial(output.look, is_patient=True)  # a block of queries may take its time
            if attention == "atlas" and output.turns * TICK_BATCHES < plan.n_most:
                atlas = stack.enter_context(atlas_attention(network, source, folder, world, look))
            write = Writer(model, source, output, plan, atlas, others)
            start = min(output.turns * TICK_BATCHES * EMBED_CELLS, plan.bounds[1] - plan.bounds[0])

            def tick(turns: int, done: int) -> None:
                output.tick(turns)

            sweep(source, write, start, label="predict", plan=plan, turns=output.turns, tick=tick)
        found = output.finish(model.n_clusters, uns)
    return found if home is None or home.bucket is None else _put(home, world)


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


def _table(model: FittedModel, source: OpenSource, is_denoised: bool, world: World) -> Table:
    """Say what is predicted; columns of the input on rank 0 alone."""
    genes = list(model.genes.chosen)
    width = model.clusters.centers.shape[1]
    widths = {LATENT_KEY: width, MEMBERSHIP_KEY: model.n_clusters}
    if model.network.correction is not None:
        widths[UNCORRECTED_KEY] = width
    if is_denoised:
        widths[DENOISED_KEY] = len(genes)
    is_first = world.rank == 0
    obs = source.obs.iloc[np.argsort(source.source_rows)] if is_first else pd.DataFrame(index=range(source.n_cells))
    return Table(obs, genes, widths)


@dataclass(frozen=True)
class Writer:
    """Predicts a batch and hands it to the output; for a sweep that counts the cells of this rank.

    Attributes
    ----------
    model, source, output, plan
        Of the prediction.
    atlas
        Where every cell attends to all cells.
    denoised_levels
        (C,) levels in which cells are reconstructed; empty for the mean of all technical batches, None for their own.
    """

    model: FittedModel
    source: OpenSource
    output: MemoryOutput | DiskOutput
    plan: SweepPlan
    atlas: AtlasAttention | None
    denoised_levels: torch.Tensor | None

    @cached_property
    def _places(self) -> IntArray:
        first, stop = self.plan.bounds
        return self.source.source_rows[first:stop].copy()

    def __call__(self, start: int, batch: Batch) -> int:
        """Predict a batch, after `start` cells of this rank; how many are done then."""
        network, n_cells = self.model.network, len(batch.rows)
        values = batch.values.to(network.gene_mean.device)
        levels = levels_of(self.source, batch.rows)
        levels = None if levels is None else levels.to(values.device)
        x = block_input(network, values, levels)
        spatial = self.atlas.read(start, start + n_cells) if self.atlas else None
        found = forward_block(network, x, spatial, self._told(levels))
        latent = found.latent[:n_cells].float()
        u = self.model.clusters.assign(latent)[0]
        blocks = {LATENT_KEY: latent, MEMBERSHIP_KEY: u}
        if UNCORRECTED_KEY in self.output.table.widths:
            blocks[UNCORRECTED_KEY] = forward_block(network, network.scale_input(values)).latent[:n_cells].float()
        if DENOISED_KEY in self.output.table.widths:
            offset = self._offset(x, values, levels)
            blocks[DENOISED_KEY] = denoise(network, found.output[:n_cells].float(), values, offset)
        arrays = {name: block.cpu().numpy() for name, block in blocks.items()}
        rows = self._places[batch.rows - self.plan.bounds[0]]
        _check_finite(blocks, rows)
        self.output.write(rows, u.argmax(dim=1).cpu().numpy(), arrays)
        return start + n_cells

    def _told(self, levels: torch.Tensor | None) -> torch.Tensor | None:
        """(B, C) technical batches that the decoder is told; a level beyond all is that of none."""
        others = self.denoised_levels
        if levels is None or others is None:
            return levels
        return others.expand(len(levels), -1) if len(others) else torch.full_like(levels, 2**31 - 1)

    def _offset(self, x: torch.Tensor, values: torch.Tensor, levels: torch.Tensor | None) -> torch.Tensor | None:
        """(B, G) what the technical batch of the reconstruction adds to cells."""
        network, others = self.model.network, self.denoised_levels
        if network.correction is None or levels is None:
            return None
        if others is None:
            return network.scale_input(values) - x
        if len(others) == 0:
            return None
        return block_offset(network, values, levels, others.expand(len(x), -1))


def _check_finite(blocks: dict[str, torch.Tensor], rows: IntArray) -> None:
    """Refuse to write what is no number, on whichever rank it comes up."""
    for name, block in blocks.items():
        is_finite = block.isfinite().all(dim=1)
        if not bool(is_finite.all()):
            bad = rows[(~is_finite).cpu().numpy()]
            named = ", ".join(map(str, sorted(bad.tolist())[:SHOWN_CELLS]))
            raise NumericalError(
                f"{name} is not finite in {len(bad)} cells, such as rows {named} of the input; nothing is written. Look at the values of "
                "these cells, and at the model with `inspect --verify`."
            )


def denoised_levels(model: FittedModel, options: PredictOptions) -> torch.Tensor | None:
    """Levels in which cells are reconstructed, see `Writer`.

    Raises
    ------
    InputError
        If the model knows no such technical batch.
    """
    named, known = options.denoised_batch, model.tech_levels
    if named == OWN:
        return None
    if not known:
        raise InputError(
            f"the model was fitted without technical batches: cells cannot be reconstructed in {named!r}; leave it out."
        )
    device = model.network.gene_mean.device
    if named == MEAN:
        return torch.zeros(0, dtype=torch.int64, device=device)
    names = [part.strip() for part in named.split(",")] if len(known) > 1 else [named]
    starts = np.cumsum([0, *map(len, known.values())]).tolist()
    is_known = len(names) == len(known) and all(
        name in levels for name, levels in zip(names, known.values(), strict=True)
    )
    if not is_known:
        told = "; ".join(f"{column}: {', '.join(levels[:20])}" for column, levels in known.items()) or "none"
        raise InputError(
            f"the model knows no technical batch {named!r} to reconstruct cells in; it knows {told}, and {OWN} and {MEAN}."
        )
    places = [start + levels.index(name) for start, name, levels in zip(starts, names, known.values(), strict=False)]
    return torch.tensor(places, device=device)


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
