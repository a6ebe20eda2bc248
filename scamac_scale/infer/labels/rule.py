"""What gives a cell its label: linear scores of its input, a temperature, and a probability below which it is called unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.infer.output.journal import with_marks
from scamac_scale.nn.embed import pad_block
from scamac_scale.ops.harmony import rows_times
from scamac_scale.sources import cells_digest

if TYPE_CHECKING:
    from torch import Tensor

    from scamac_scale.infer.labels.column import LabelColumn
    from scamac_scale.infer.labels.options import LabelOptions
    from scamac_scale.ops.calibration import ScoreMap
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource


@dataclass(frozen=True, eq=False)
class LabelRule:
    """Gives labels.

    Attributes
    ----------
    genes
        (G',) int64, genes of the input that are looked at.
    weight, bias
        (G', C) float32 and (C,) float32, of `ops.discriminant.Discriminant`.
    score_map
        Makes probabilities of scores.
    threshold
        Probability below which a cell is unknown.
    report
        How it was found; plain data.
    """

    genes: Tensor
    weight: Tensor
    bias: Tensor
    score_map: ScoreMap
    threshold: float
    report: dict[str, Any]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Label up to `EMBED_CELLS` cells: what a cell gets does not depend on which cells come with it.

        Parameters
        ----------
        x
            (b, G) input, from `ScamacNetwork.scale_input`.

        Returns
        -------
        Tensor
            (b, 2) float32: the number of the label, C where it is unknown, and the probability that the best label is right.
        """
        device, n_cells = x.device, len(x)
        scores = rows_times(pad_block(x)[:, self.genes.to(device)], self.weight.to(device)) + self.bias.to(device)
        label = scores.argmax(dim=1, keepdim=True)
        logits = self.score_map.logits(scores.cpu())  # on the CPU in float64, in a block of one size
        probability = torch.softmax(logits, dim=1).gather(1, label.cpu())[:n_cells, 0]
        label = label.cpu()[:n_cells, 0]
        label = torch.where(probability < self.threshold, self.weight.shape[1], label)
        return torch.stack([label.float(), probability.float()], dim=1)


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labels that are carried over, before and after the rule is found.

    Attributes
    ----------
    names
        The C labels.
    belongs
        What tells it from another one; plain data.
    unknown
        Of `LabelOptions`.
    reference
        The cells and their labels; None once the rule is found.
    rule
        None before.
    """

    names: tuple[str, ...]
    belongs: dict[str, Any]
    unknown: float
    reference: tuple[OpenSource, LabelColumn] | None = None
    rule: LabelRule | None = None


def labelling_of(source: OpenSource, column: LabelColumn, options: LabelOptions, world: World) -> Labelling:
    """Say what labels are carried over, and what tells them from others.

    Parameters
    ----------
    source
        The reference.
    column
        Its labels.
    options
        What was asked for.
    world
        This rank, and how many there are.
    """
    belongs = {
        "reference": cells_digest(source),
        "label": options.label,
        "labels": column.digest(),
        "unknown": options.unknown,
    }
    return Labelling(column.names, with_marks(belongs, source, world), options.unknown, (source, column))
