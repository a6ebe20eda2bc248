"""Cells whose sums agree, of the values or of what they are the logarithm of: then they were made equal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.ingestion.evidence import FORMS, N_SMALL, N_WHOLE, SUMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_CELLS = 2
"""Cells that agree are no chance from so many on."""
APART = 0.05
"""Totals that differ by less, as a share, are the same: genes may have been left out after cells were scaled."""
AGREEING = ((0.03, 0.5, 5), (0.002, 0.1, 20), (0.001, 0.9, 3), (0.001, 1.0, 2))
"""Sums agree where within so much (as a share) there lie such a share of the cells, and at least so many."""
CLEAR = 3.0
"""How many fold farther all other sums must spread than those that agree."""
TIGHT = 0.001
"""Sums that spread by less, as a share, were made equal."""
ROUNDING = 1e-6
"""How far equal sums spread, as a share, in float32."""


class Mode(NamedTuple):
    """Cells whose sums agree.

    Attributes
    ----------
    form
        Of the values: 0 linear, or 1 + the place of the base in `BASES`.
    total
        That the cells sum to.
    cells
        Their places in the sample.
    """

    form: int
    total: float
    cells: NDArray[np.int64]


def agreeing_sums(sample: NDArray[np.float64]) -> list[Mode]:
    """Find groups of cells whose sums agree, the largest first."""
    modes: list[Mode] = []
    rest = np.arange(len(sample))
    while len(rest) >= MIN_CELLS and len(modes) < 8:
        found = [_mode(sample[rest, SUMS + form], form) for form in range(FORMS)]
        clear = [(_clearness(sample[rest[mode.cells]], mode.form), mode) for mode in found if mode is not None]
        best, mode = max(clear, key=lambda pair: pair[0], default=(0.0, None))
        if mode is None or best < CLEAR:
            break  # cells that are much alike agree whatever is summed, and nobody knows what was made equal
        is_in = _is_close(sample[rest, SUMS + mode.form], mode.total)
        modes.append(mode._replace(cells=rest[is_in]))
        rest = rest[~is_in]
    return modes


def is_sound(mode: Mode, labels: NDArray[np.int64], sample: NDArray[np.float64]) -> bool:
    """Whether sums agree too well for chance, or the cells do not tell another form by themselves.

    A sum of many terms varies little by itself: that of log-normalised values whose genes were left out, in another base, may well be
    within a few percent in half of the cells.
    """
    own, cells = labels[mode.cells], sample[mode.cells]
    is_whole = cells[:, N_WHOLE + mode.form] >= 0.99 * np.maximum(cells[:, N_SMALL + mode.form], 1)
    if mode.form and is_whole.mean() > 0.5:
        return False  # logarithms of counts that nobody has scaled: shallow cells share a total by chance
    return is_tight(mode, sample) or int(((own >= 0) & (own != mode.form)).sum()) * 2 < len(own)


def is_tight(mode: Mode, sample: NDArray[np.float64]) -> bool:
    """Whether sums agree as they do where they were made equal."""
    logs = np.log(sample[mode.cells, SUMS + mode.form])
    return bool(np.quantile(logs, 0.75) - np.quantile(logs, 0.25) <= TIGHT)


def _mode(sums: NDArray[np.float64], form: int) -> Mode | None:
    """Find the total that most cells agree on."""
    is_known = np.isfinite(sums) & (sums > 0)
    logs = np.sort(np.log(sums[is_known]))
    for width, share, least in AGREEING:
        stops = np.searchsorted(logs, logs + width, side="right")
        counts = stops - np.arange(len(logs))
        if not len(logs) or counts.max() < max(least, share * len(sums)):
            continue
        first = int(counts.argmax())
        inside = logs[first : first + int(counts[first])]
        is_in = is_known & (np.abs(sums - np.exp(np.median(inside))) <= np.exp(np.median(inside)) * width)
        return Mode(form, float(np.exp(np.median(inside))), np.flatnonzero(is_in))
    return None


def _clearness(cells: NDArray[np.float64], form: int) -> float:
    """Tell how many fold farther than the sums of one form those of the others spread."""
    spreads = []
    for other in range(FORMS):
        sums = cells[:, SUMS + other]
        is_known = np.isfinite(sums).all() and (sums > 0).all()
        low, high = np.quantile(np.log(sums), [0.25, 0.75]) if is_known else (0.0, math.inf)
        spreads.append(max(float(high - low), ROUNDING))
    return float(min(np.delete(spreads, form)) / spreads[form])


def _is_close(sums: NDArray[np.float64], total: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(sums - total) <= APART * total)
