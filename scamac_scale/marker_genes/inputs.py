"""The raw cells of a result: opened as ingest does, normalised as in the fit, with all their genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ingestion.formats.gene_names import column_with
from scamac_scale.ingestion.kinds import largest_log
from scamac_scale.ingestion.many.genes import JointGenes, join_genes, onto
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.names import matched_names
from scamac_scale.ingestion.normalise import GeneColumns
from scamac_scale.ingestion.source import compare_with_fit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.many.genes import Names
    from scamac_scale.ingestion.raw import RawMatrix

LOOK_PLACES, LOOK_CELLS = 8, 64
"""Cells that tell how many values above zero a cell has: places spread over the input, and cells at each."""


def open_cells(
    data: Any, config: IngestConfig, space: GeneSpace, accepted: Collection[str]
) -> RawMatrix:  # Any: as of `list_inputs`
    """Open one or several inputs with all genes that they have in common, and those that count for a total in the fit.

    Parameters
    ----------
    data, config
        As of `open_inputs`.
    space
        Of the fit.
    accepted
        Names of `config.Accept`: in what each input may differ from the fit.

    Raises
    ------
    InputError
        As of `open_inputs`, and if an input differs from the fit in what is not accepted.
    """

    def joined(of_inputs: Sequence[tuple[str, Names]], config: IngestConfig) -> JointGenes:
        joint = join_genes(of_inputs, config)
        known = {name for genes in {own for _, own in of_inputs} for name in genes}
        lacking = known.intersection(space.filtered).difference(joint.names)
        if not lacking:
            return joint
        names = (*joint.names, *(name for name in space.filtered if name in lacking))
        found = onto(names, list(dict.fromkeys(own for _, own in of_inputs)))
        return JointGenes(names, tuple(found[own] for _, own in of_inputs))

    def check(raw: RawMatrix) -> None:
        compare_with_fit(raw, space, accepted)

    raw = open_inputs(data, config, joined, check, lambda raw: column_with(space.chosen, raw))
    try:
        if len(raw.parts) < 2:
            check(raw)
    except BaseException:
        raw.close()
        raise
    return raw


@dataclass(frozen=True, eq=False)
class Scaling:
    """How the values of an input are normalised and checked.

    Attributes
    ----------
    is_filtered
        (G,) genes that count for the total of a cell.
    whole
        Whether values must be whole numbers.
    largest
        Largest value that may be.
    """

    is_filtered: NDArray[np.bool_]
    whole: bool
    largest: float


def scaling_of(raw: RawMatrix, space: GeneSpace, accepted: Collection[str]) -> Scaling:
    """Tell how the values of an input are normalised and checked: as they are when they are predicted."""
    columns = GeneColumns.locate(space, matched_names(space, raw.gene_names, accepted))
    is_free = "values" in accepted
    largest = float(np.finfo(np.float64).max)
    if space.kind == "log" and not is_free:
        largest = largest_log(None if space.values is None else space.values.base)
    return Scaling(columns.is_filtered, space.kind == "counts" and not is_free, largest)


def values_of_a_cell(raw: RawMatrix) -> float:
    """Estimate how many values above zero a cell has, by a few of them."""
    if raw.n_cells <= LOOK_PLACES * LOOK_CELLS:
        starts = [0]
        size = raw.n_cells
    else:
        starts, size = np.linspace(0, raw.n_cells - LOOK_CELLS, LOOK_PLACES).astype(int).tolist(), LOOK_CELLS
    counts = [np.count_nonzero(raw.read_block(start, start + size).data) for start in starts]
    return sum(counts) / max(1, size * len(starts))
