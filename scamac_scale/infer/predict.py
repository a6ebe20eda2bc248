"""Labels, latents, memberships and reconstructions of all cells of a source, streamed to an output in input order."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import InputError
from scamac_scale.infer.output import (
    DENOISED_KEY,
    LATENT_KEY,
    MEMBERSHIP_KEY,
    DiskOutput,
    MemoryOutput,
)
from scamac_scale.infer.reconstruct import denoise
from scamac_scale.nn.embed import BLOCK_CELLS, forward_block
from scamac_scale.ops.fuzzy import soft_assignment
from scamac_scale.sweep import sweep

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

    from scamac_scale.checkpoint import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource


def predict(
    model: FittedModel,
    source: OpenSource,
    out: str | Path | None = None,
    *,
    is_denoised: bool = False,
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
    if source.n_cells == 0:
        raise InputError("the input has no cells; predict needs at least one.")
    genes = list(model.genes.chosen)
    widths = {LATENT_KEY: model.centers.shape[1], MEMBERSHIP_KEY: model.n_clusters}
    if is_denoised:
        widths[DENOISED_KEY] = len(genes)
    places = source.source_rows
    obs = source.obs.iloc[np.argsort(places)]
    is_ordered = bool((places == np.arange(places.size)).all())
    output = (
        MemoryOutput(obs, genes, widths) if out is None else DiskOutput(out, obs, genes, widths, is_ordered=is_ordered)
    )
    network = model.network.eval()
    device = network.gene_mean.device

    def write(start: int, batch: Batch) -> int:
        n_cells = len(batch.rows)
        values = batch.values.to(device)
        found = forward_block(network, network.scale_input(values))
        latent = found.latent[:n_cells].float()
        u = soft_assignment(latent, model.centers, model.temperature, model.config.loss.epsilon)[0]
        blocks = {LATENT_KEY: latent, MEMBERSHIP_KEY: u}
        if is_denoised:
            blocks[DENOISED_KEY] = denoise(network, found.output[:n_cells].float(), values)
        arrays = {name: block.cpu().numpy() for name, block in blocks.items()}
        output.write(places[batch.rows], u.argmax(dim=1).cpu().numpy(), arrays)
        return start + n_cells

    with torch.no_grad(), output:
        sweep(source, write, 0, label="predict", batch_cells=BLOCK_CELLS)
        return output.finish(model.n_clusters, description(model))


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
