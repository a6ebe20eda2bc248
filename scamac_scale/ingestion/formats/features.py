"""Which features of a table are genes, of which genomes, and how they are named."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

GENES = "Gene Expression"
"""The type of feature that is a gene."""
KINDS = frozenset(
    {
        "Antibody Capture",
        "CRISPR Guide Capture",
        "Multiplexing Capture",
        "Antigen Capture",
        "VDJ",
        "Peaks",
        "Custom",
        GENES,
    }
)
"""Types of features that Cell Ranger knows."""
MOST_GENOMES = 8
_GENOME = re.compile(r"(.+?)_+(?=ENS|[A-Z])")


def gene_expression(kinds: Sequence[str], name: str) -> NDArray[np.bool_]:
    """Tell which features are genes; the log counts the others by their type.

    Parameters
    ----------
    kinds
        (F,) type of each.
    name
        Of the file, for messages.

    Returns
    -------
    ndarray
        (F,) True for genes.

    Raises
    ------
    InputError
        If none is.
    """
    is_gene = np.array([kind == GENES for kind in kinds], dtype=bool)
    others = Counter(kind for kind in kinds if kind != GENES)
    told = ", ".join(f"{n} {kind}" for kind, n in others.most_common(8))
    if kinds and not is_gene.any():
        raise InputError(f"{name} holds no gene expression; none of its {len(kinds)} features has that type ({told}).")
    if others:
        logger.info("%s: %d features that are not gene expression are left out (%s)", name, others.total(), told)
    return is_gene


def genomes_of(ids: Sequence[str]) -> list[str]:
    """Name the genome of each gene by the prefix that Cell Ranger gives identifiers of several; empty where there are none."""
    found = [match.group(1) if (match := _GENOME.match(name)) else "" for name in ids]
    kinds = set(found)
    return found if 1 < len(kinds) <= MOST_GENOMES and "" not in kinds else [""] * len(found)


def unique_names(names: Sequence[str], name: str) -> tuple[str, ...]:
    """Make names unique as scanpy does, by numbers behind repeated ones; the log says how many."""
    import pandas as pd
    from anndata.utils import make_index_unique

    index: pd.Index[str] = pd.Index(list(names))
    if index.is_unique:
        return tuple(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that such names are hard to read; the log says it too
        unique = make_index_unique(index)
    changed = [after for before, after in zip(index, unique, strict=True) if before != after]
    logger.info("%s: %d genes share a name and were made unique, such as %s", name, len(changed), changed[0])
    return tuple(unique)


def warn_of_genomes(name: str, counts: dict[str, int]) -> None:
    """Say that genes of several genomes are read."""
    told = ", ".join(f"{genome} ({n} genes)" for genome, n in counts.items())
    logger.warning(
        "%s holds %d genomes, %s; the genes of all are read. Cells of one species have zeros in the other: to read one, "
        "ingest.matrix=%s",
        name,
        len(counts),
        told,
        next(iter(counts)),
    )
