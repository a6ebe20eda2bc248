"""The table of flavors, and the one call that chooses genes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.flavors.cell_ranger import choose_cell_ranger
from scamac_scale.ingestion.flavors.given import take_given
from scamac_scale.ingestion.flavors.pearson_residuals import choose_pearson_residuals
from scamac_scale.ingestion.flavors.seurat import choose_seurat
from scamac_scale.ingestion.flavors.seurat_v3 import choose_seurat_v3, choose_seurat_v3_paper, import_loess

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scamac_scale.cells.tech_batches import TechBatches
    from scamac_scale.ingestion.flavors.sums import Candidates, Choice
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavor:
    """A way to choose genes.

    Attributes
    ----------
    choose
        From the genes that passed the filter to a choice; it may pass over the cells again.
    needs_counts
        Whether it is defined for whole counts only.
    check
        Raises where something that it needs is not installed; None needs nothing.
    """

    choose: Callable[[Candidates], Choice]
    needs_counts: bool = False
    check: Callable[[], object] | None = None


FLAVORS: dict[str, Flavor] = {
    "seurat": Flavor(choose_seurat),
    "cell_ranger": Flavor(choose_cell_ranger),
    "seurat_v3": Flavor(choose_seurat_v3, needs_counts=True, check=import_loess),
    "seurat_v3_paper": Flavor(choose_seurat_v3_paper, needs_counts=True, check=import_loess),
    "pearson_residuals": Flavor(choose_pearson_residuals, needs_counts=True),
}
"""How ``ingest.flavor`` chooses genes; named as in scanpy."""


def check_flavor(name: str, kind: str, where: str) -> None:
    """Refuse a flavor that cannot be had: for these values, or because something is not installed.

    Parameters
    ----------
    name
        Of `FLAVORS`.
    kind
        Of the values: counts, linear or log, or auto while it is not known.
    where
        The input and the matrix, for the message.

    Raises
    ------
    InputError
        If it needs counts, and these are none.
    MissingExtraError
        If scikit-misc is not installed and it is needed.
    """
    flavor = FLAVORS[name]
    if flavor.needs_counts and kind not in ("auto", "counts"):
        others = " and ".join(other for other, found in FLAVORS.items() if not found.needs_counts)
        raise InputError(
            f"{where} holds {kind} values, and ingest.flavor={name} needs counts; give the matrix of counts (ingest.matrix), or take a "
            f"flavor for such values: {others}."
        )
    if flavor.check is not None:
        flavor.check()


def choose_genes(
    candidates: Candidates, flavor: str, tech: TechBatches | None = None, given: NDArray[np.bool_] | None = None
) -> Choice:
    """Choose genes, and tell the log.

    Parameters
    ----------
    candidates
        The genes that passed the filter, and what is known of them.
    flavor
        Of `FLAVORS`.
    tech
        The technical batches, for the log.
    given
        (G,) genes that are named, in place of a choice; None chooses.

    Returns
    -------
    Choice
        Marks of the chosen genes, and what was measured of all.

    Raises
    ------
    InputError
        If no gene can be chosen.
    """
    if given is not None:
        return take_given(candidates, given)
    found = FLAVORS[flavor].choose(candidates)
    if tech is not None:
        _log_batches(candidates.raw, tech, found)
    _log_choice(candidates.raw, found.is_variable, candidates.n_genes)
    return found


def _log_batches(raw: RawMatrix, tech: TechBatches, found: Choice) -> None:
    joint, what, silent = tech.joint(), " x ".join(tech.columns), found.silent
    n_batches = int(joint.max()) + 1
    logger.info("%s: genes are ranked in each of %d batches (%s)", raw.name, n_batches, what)
    if silent:
        cells = [int(np.argmax(joint == batch)) for batch in silent[:5]]
        levels = [
            " x ".join(names[code] for names, code in zip(tech.names, tech.codes[cell], strict=True)) for cell in cells
        ]
        logger.warning(
            "%s: in %d of %d batches %s: %s%s; they have no say in the choice of genes",
            raw.name,
            len(silent),
            n_batches,
            found.why,
            ", ".join(levels),
            ", ..." if len(silent) > len(levels) else "",
        )


def _log_choice(raw: RawMatrix, is_variable: NDArray[np.bool_], asked: int) -> None:
    n_chosen, n_filtered = int(is_variable.sum()), len(is_variable)
    if n_chosen < asked:
        logger.warning(
            "%s: %d genes asked for, %d pass the filter and vary; all of them are taken", raw.name, asked, n_chosen
        )
    elif n_chosen > asked:
        logger.info("%s: %d genes for %d asked, for some vary equally", raw.name, n_chosen, asked)
    logger.info("%s: %d of %d genes chosen", raw.name, n_chosen, n_filtered)
