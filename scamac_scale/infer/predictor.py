"""What a fitted model makes of a batch of cells: labels, latents, memberships, reconstructions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

from scamac_scale.config.choices import COUNT_LOSSES
from scamac_scale.errors import InputError, NumericalError
from scamac_scale.infer.levels import Levels, levels_of
from scamac_scale.infer.options import MEAN, OWN
from scamac_scale.infer.output.table import DENOISED_KEY, LABEL_KEY, LATENT_KEY, MEMBERSHIP_KEY, UNCORRECTED_KEY
from scamac_scale.infer.reconstruct import denoise, denoise_counts
from scamac_scale.loader.source import levels_of as tech_levels_of
from scamac_scale.nn.embed import EMBED_CELLS, block_input, block_offset, embed_block, forward_block

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.infer.attention import AtlasAttention
    from scamac_scale.infer.labels.rule import LabelRule
    from scamac_scale.infer.options import PredictOptions
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource

SHOWN_CELLS = 5
"""Cells that an error names."""


class Predicted(NamedTuple):
    """What is written of some cells.

    Attributes
    ----------
    rows
        (B,) of the input.
    labels
        (B,) clusters, the finest ones where there are levels.
    blocks
        Name of each block of `Table` to its (B, width) values.
    """

    rows: IntArray
    labels: IntArray
    blocks: dict[str, FloatArray]


@dataclass(frozen=True)
class Predictor:
    """Predicts batches, each by itself: the same whatever the process.

    Attributes
    ----------
    model, source
        Of the prediction; the source knows its technical batches.
    widths
        Blocks that are written, of `Table`.
    atlas
        Where every cell attends to all cells.
    levels
        Coarser and finer clusters.
    labels
        Gives cells the labels of a reference; None for none.
    denoised_levels
        (C,) levels in which cells are reconstructed; empty for the mean of all technical batches, None for their own.
    """

    model: FittedModel
    source: OpenSource
    widths: dict[str, int]
    levels: Levels
    denoised_levels: torch.Tensor | None
    atlas: AtlasAttention | None = None
    labels: LabelRule | None = None
    batch_cells: ClassVar[int] = EMBED_CELLS

    @classmethod
    def make(
        cls,
        model: FittedModel,
        source: OpenSource,
        options: PredictOptions,
        widths: dict[str, int],
        atlas: AtlasAttention | None = None,
    ) -> Predictor:
        """Make one of what was asked for, with a model that is cut as asked; raises InputError as `denoised_levels`."""
        labels = None if options.labels is None else options.labels.rule
        levels = levels_of(model, options)
        return cls(model, source, widths, levels, denoised_levels(model, options), atlas, labels)

    @cached_property
    def _places(self) -> IntArray:
        return self.source.source_rows

    @cached_property
    def _is_present(self) -> torch.Tensor | None:
        """(G,) chosen genes that the input has; None where it has all."""
        missing = set(self.source.missing_genes)
        if not missing:
            return None
        device = self.model.network.gene_mean.device
        return torch.tensor([name not in missing for name in self.model.genes.chosen], device=device)

    def __call__(self, start: int, batch: Batch) -> Predicted:
        """Predict a batch, after `start` cells of this rank."""
        network, n_cells = self.model.network, len(batch.rows)
        values = batch.values.to(network.gene_mean.device)
        levels = tech_levels_of(self.source, batch.rows)
        levels = None if levels is None else levels.to(values.device)
        x = block_input(network, values, levels)
        spatial = self.atlas.read(start, start + n_cells) if self.atlas else None
        output = None
        if DENOISED_KEY in self.widths:
            found = forward_block(network, x, spatial, self._told(levels))
            latent, output = found.latent[:n_cells].float(), found.output[:n_cells].float()
        else:
            latent = embed_block(network, x, spatial)
        u = self.model.clusters.assign(latent)[0]
        blocks = {LATENT_KEY: latent, MEMBERSHIP_KEY: u}
        if self.labels is not None:
            blocks[LABEL_KEY] = self.labels(network.scale_input(values))
        if UNCORRECTED_KEY in self.widths:
            blocks[UNCORRECTED_KEY] = embed_block(network, network.scale_input(values))
        if output is not None:
            blocks[DENOISED_KEY] = self._denoised(output, x, values, levels)
        arrays = {name: block.cpu().numpy() for name, block in blocks.items()}
        rows = self._places[batch.rows]
        _check_finite(blocks, rows)
        labels = self.levels.finest(latent, u.argmax(dim=1))
        return Predicted(rows, labels.cpu().numpy(), arrays)

    def _denoised(
        self, output: torch.Tensor, x: torch.Tensor, values: torch.Tensor, levels: torch.Tensor | None
    ) -> torch.Tensor:
        if self.model.config.loss.reconstruction in COUNT_LOSSES:
            return denoise_counts(output, values, self._is_present)
        return denoise(self.model.network, output, values, self._offset(x, values, levels))

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
