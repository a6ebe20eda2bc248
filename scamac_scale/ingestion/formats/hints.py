"""What is better taken from another matrix of the same file."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import ScamacError
from scamac_scale.ingestion.formats.transpose import TransposedRows
from scamac_scale.ingestion.raw import blamed

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.ingestion.rows import Rows

logger = logging.getLogger(__name__)

LOOKED_AT = 64
"""Cells of either matrix."""


def tell_of_raw(rows: Rows, open_other: Callable[[], Rows], name: str) -> None:
    """Say that ``raw`` holds counts where X does not, as files of CELLxGENE have it.

    Parameters
    ----------
    rows
        Of X.
    open_other
        Opens ``raw``; whatever is wrong with it matters only to those who read it.
    name
        Of the file.

    Notes
    -----
    A look at the first cells, or at the first values that are stored where these lie by genes.
    """
    with contextlib.suppress(ScamacError), blamed(name, "its first values"):
        if _is_whole(rows) is False and _is_whole(open_other()):
            logger.info("%s: X holds no counts, raw does: ingest.matrix=raw takes them", name)


def _is_whole(rows: Rows) -> bool | None:
    """Whether values are counts; None where that is not seen in a few of them."""
    if not rows.shape[0]:
        return None
    if isinstance(rows, TransposedRows):
        values = next((values for _, _, values in rows.source.read() if values.size), np.zeros(0))
    else:
        values = rows.read(0, min(LOOKED_AT, rows.shape[0])).data
    return bool((values == np.rint(values)).all() and (values >= 0).all()) if values.size else None
