"""Evidence of what values are, of each of several inputs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.ingestion.evidence import SAMPLE_CELLS, Evidence, SeenCells

if TYPE_CHECKING:
    from scipy import sparse

    from scamac_scale.ingestion.raw import RawMatrix

ALL_SAMPLES = 8 * SAMPLE_CELLS
"""Cells that are looked at closely, of all inputs together; `FEW_SAMPLES` of each at least."""
FEW_SAMPLES = 512


def bounds_of(raw: RawMatrix) -> tuple[int, ...]:
    """Say where the cells of each input end; of a single one that is the number of all cells."""
    if len(raw.parts) < 2:
        return (raw.n_cells,)
    return tuple(np.cumsum([part.n_taken for part in raw.parts]).tolist())


def no_evidence(raw: RawMatrix) -> tuple[Evidence, ...]:
    """Begin to gather evidence of each input; none where there is only one."""
    n_inputs = len(bounds_of(raw))
    return tuple(Evidence(room=_room(n_inputs)) for _ in range(n_inputs)) if n_inputs > 1 else ()


def evidence_of_each(
    block: sparse.csr_matrix, seen: SeenCells, start: int, bounds: tuple[int, ...]
) -> tuple[tuple[int, Evidence], ...]:
    """Gather what a block tells of each input that its cells are from; a pure function of it, see `Evidence.of_block`.

    Parameters
    ----------
    block, seen, start
        As of `Evidence.of_block`.
    bounds
        From `bounds_of`.

    Returns
    -------
    tuple of (number, Evidence)
        Empty where there is only one input.
    """
    if len(bounds) < 2:
        return ()
    starts, stop = np.array([0, *bounds]), start + block.shape[0]
    found = []
    for number in range(max(0, int(np.searchsorted(starts, start, side="right")) - 1), len(bounds)):
        if starts[number] >= stop:
            break
        low, high = max(start, int(starts[number])), min(stop, bounds[number])
        if low < high:
            n_cells = int(bounds[number] - starts[number])
            own, own_seen = _between(block, seen, low - start, high - start)
            found.append((number, Evidence.of_block(own, own_seen, low, n_cells, _room(len(bounds)))))
    return tuple(found)


def _room(n_inputs: int) -> int:
    return min(SAMPLE_CELLS, max(FEW_SAMPLES, ALL_SAMPLES // n_inputs))


def _between(block: sparse.csr_matrix, seen: SeenCells, low: int, high: int) -> tuple[sparse.csr_matrix, SeenCells]:
    """Take some cells of a block, and what was seen of them."""
    if high - low == block.shape[0]:
        return block, seen
    own, first = block[low:high], int(block.indptr[low])
    broken = seen.broken[low:high]
    return own, SeenCells(
        np.where(broken >= 0, broken - first, -1),
        seen.n_above[low:high],
        seen.n_filled[low:high],
        seen.total[low:high],
        float(own.data.max(initial=0.0)),
    )
