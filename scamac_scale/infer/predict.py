"""Labels, latents, memberships and reconstructions of all cells of a source, streamed to an output in input order."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import InputError, choose
from scamac_scale.infer.atlas import atlas_attention, scratch_bytes
from scamac_scale.infer.output import (
    DENOISED_KEY,
    LATENT_KEY,
    MEMBERSHIP_KEY,
    DiskOutput,
    MemoryOutput,
    check_room,
)
from scamac_scale.infer.reconstruct import denoise
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.embed import BLOCK_CELLS, forward_block
from scamac_scale.ops.fuzzy import soft_assignment
from scamac_scale.sweep import sweep

if TYPE_CHECKING:
    import anndata as ad

    from scamac_scale.checkpoint import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource


ATTENTIONS = dict.fromkeys(("trained", "atlas"))
"""Over which cells spatial attention goes: those of training (its bank, or the block of cells), or all of the input."""


def predict(
    model: FittedModel,
    source: OpenSource,
    out: str | Path | None = None,
    *,
    is_denoised: bool = False,
    attention: str = "trained",
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
        ``trained``: the spatial attention of training. ``atlas``: over all cells of the source, Eq. (10) as printed; O(N^2) time,
        and 12 bytes per scale, latent column and cell of disk beside the output.

    Returns
    -------
    AnnData or Path
        The result in memory, or where it lies; in the order of the input, whatever the order of the source.

    Raises
    ------
    InputError
        If the source has no cells, or its columns cannot be written.
    OutputError
        If the output cannot be written.
    """
    choose(ATTENTIONS, attention, "attention")
    if source.n_cells == 0:
        raise InputError("the input has no cells; predict needs at least one.")
    genes = list(model.genes.chosen)
    widths = {LATENT_KEY: model.centers.shape[1], MEMBERSHIP_KEY: model.n_clusters}
    if is_denoised:
        widths[DENOISED_KEY] = len(genes)
    places = source.source_rows
    obs = source.obs.iloc[np.argsort(places)]
    is_ordered = bool((places == np.arange(places.size)).all())
    network = model.network.eval()
    scratch = scratch_bytes(network, source.n_cells) if attention == "atlas" else 0
    folder = Path(tempfile.gettempdir() if out is None else Path(out).absolute().parent)
    if out is None:
        check_room(folder, scratch)
        output: MemoryOutput | DiskOutput = MemoryOutput(obs, genes, widths)
    else:
        output = DiskOutput(out, obs, genes, widths, is_ordered=is_ordered, scratch_bytes=scratch)
    device = network.gene_mean.device

    def write(start: int, batch: Batch) -> int:
        n_cells = len(batch.rows)
        values = batch.values.to(device)
        spatial = atlas.read(start, start + n_cells) if atlas else None
        found = forward_block(network, network.scale_input(values), spatial)
        latent = found.latent[:n_cells].float()
        u = soft_assignment(latent, model.centers, model.temperature, model.config.loss.epsilon)[0]
        blocks = {LATENT_KEY: latent, MEMBERSHIP_KEY: u}
        if is_denoised:
            blocks[DENOISED_KEY] = denoise(network, found.output[:n_cells].float(), values)
        arrays = {name: block.cpu().numpy() for name, block in blocks.items()}
        output.write(places[batch.rows], u.argmax(dim=1).cpu().numpy(), arrays)
        return start + n_cells

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        atlas = None
        if attention == "atlas":
            atlas = stack.enter_context(atlas_attention(network, source, folder))
        stack.enter_context(output)
        sweep(source, write, 0, label="predict", plan=SweepPlan(source.n_cells, BLOCK_CELLS))
        return output.finish(model.n_clusters, {**description(model), "attention": attention})


def description(model: FittedModel) -> dict[str, Any]:
    """Tell what ``uns["scamac"]`` holds: settings as JSON, versions, seed, centers, temperature, genes."""
    import json

    return {
        "config": json.dumps(asdict(model.config)),
        "versions": dict(model.provenance["versions"]),
        "seed": model.config.seed,
        "n_clusters": model.n_clusters,
        "is_count_estimated": bool(model.provenance["is_count_estimated"]),
        "temperature": model.temperature,
        "centers": model.centers.cpu().numpy(),
        "genes": np.array(model.genes.chosen, dtype=object),
    }
