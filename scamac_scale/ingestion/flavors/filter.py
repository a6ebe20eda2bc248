"""Which genes are expressed by enough cells to be chosen from, and to count for the total of a cell."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)


def min_cells(fraction: float, n_cells: int) -> int:
    """Count the cells that a share means: the smallest whole number at or above it, 0.05 being a twentieth exactly."""
    share = Fraction(repr(float(fraction))) * n_cells
    return -(-share.numerator // share.denominator)


def needed_cells(config: IngestConfig, n_cells: int) -> int:
    """Count the cells that a gene must be in: ``min_cells``, or ``min_cell_fraction`` where that is None."""
    return min_cells(config.min_cell_fraction, n_cells) if config.min_cells is None else config.min_cells


def filter_genes(
    raw: RawMatrix, n_expressing: NDArray[np.int64], config: IngestConfig, given: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Mark the genes that enough cells express, and those that are named, if any cell does.

    Parameters
    ----------
    raw
        (N, G) values, for messages.
    n_expressing
        (G,) cells with a value above zero.
    config
        ``min_cells``, or ``min_cell_fraction`` where that is None.
    given
        (G,) genes that are named; None names none.

    Returns
    -------
    ndarray
        (G,) marks.

    Raises
    ------
    InputError
        If no gene is left.
    """
    needed, setting = needed_cells(config, raw.n_cells), f"ingest.min_cells={config.min_cells}"
    if config.min_cells is None:
        setting = f"ingest.min_cell_fraction={config.min_cell_fraction}"
    is_filtered = n_expressing >= needed
    if given is not None:
        is_filtered |= given & (n_expressing > 0)
    if not is_filtered.any():
        most = int(n_expressing.max(initial=0))
        raise InputError(
            f"{raw.name}: no gene is left: none of {raw.n_genes} is above zero in at least {needed} of {raw.n_cells} "
            f"cells ({setting}), the commonest is in {most}; lower it, take the filtered "
            f"matrix if most cells are empty droplets, or check {raw.matrix}."
        )
    logger.info("%s: %d of %d genes are in at least %d cells", raw.name, is_filtered.sum(), raw.n_genes, needed)
    return np.asarray(is_filtered)
